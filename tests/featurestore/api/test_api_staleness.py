"""Readiness says how far the streams are behind, and ends where a view is staler than it may be."""

import msgspec
import pytest

from featurestore.api.staleness import refuse_stale, staleness_of
from featurestore.errors import StaleStore
from featurestore.online.control import CONTROL_CHECK, CONTROL_FIELDS, control_check
from featurestore.online.keys import Shard, shards_key
from featurestore.online.sealed import sealed
from featurestore.plan import Plan, Topic
from featurestore.plan_store import PlanStore


def write_control(store, key, watermark):
    """A control hash as the stream writes it."""
    held = {"watermark": watermark.encode(), "offset": b"1"}
    check = control_check([held.get(name) for name in CONTROL_FIELDS])
    store.hset(key, mapping={**held, CONTROL_CHECK: check})


def streamed(plan: Plan, **tags: str) -> Plan:
    """The tests' plan with its weather kept current by a stream."""
    weather = plan.views["weather"]
    topic = Topic(name="readings", bootstrap_servers="", message_format="json")
    source = msgspec.structs.replace(weather.source, topic=topic)
    weather = msgspec.structs.replace(weather, source=source, tags=tags)
    return msgspec.structs.replace(plan, views=plan.views | {"weather": weather}, version=4, digest="4")


def seen(store, marks_us: list[int | None]) -> None:
    """Writes what the stream keeps of its partitions: the list of shards, and each one's watermark."""
    states = [{"topic_id": "t", "partition": number, "complete_from_us": None} for number in range(len(marks_us))]
    store.set(shards_key("flights", "weather", 1), sealed(msgspec.json.encode(states)))
    for number, mark in enumerate(marks_us):
        control = Shard("flights", "weather", 1, "t", number).control_key
        write_control(store, control, "" if mark is None else str(mark))


def test_the_slowest_partition_counts(store, project) -> None:
    """A view is as stale as the slowest partition that had events; empty ones say nothing, batch views neither."""
    look = staleness_of(store, lambda: project.NOW_US)
    plan = streamed(project.make_plan())
    assert look(project.make_plan()) == {}
    assert look(plan)["weather"].staleness_s is None
    seen(store, [project.NOW_US - 2_000_000, project.NOW_US - 7_500_000, None])
    assert look(plan)["weather"].staleness_s == 7.5
    seen(store, [project.NOW_US + 1])
    assert look(plan)["weather"].staleness_s == 0.0


@pytest.mark.parametrize("other", ["t.replay", "t.before-4", "0123456789abcdef0123456789abcdef"])
def test_what_nobody_awaits_is_never_late(store, project, other: str) -> None:
    """Nobody promised that anything would be replayed; a history and a file are over."""
    look = staleness_of(store, lambda: project.NOW_US)
    seen(store, [project.NOW_US - 2_000_000])
    states = [{"topic_id": name, "partition": 0, "complete_from_us": None} for name in ("t", other)]
    store.set(shards_key("flights", "weather", 1), sealed(msgspec.json.encode(states)))
    control = Shard("flights", "weather", 1, other, 0).control_key
    write_control(store, control, str(project.NOW_US - 9_000_000_000))
    assert look(streamed(project.make_plan()))["weather"].staleness_s == 2.0


@pytest.mark.parametrize(
    ("tag", "marks", "ready"),
    [(None, [], True), ("10", [9], True), ("10", [11], False), ("10", [], False), ("soon", [1], False)],
)
def test_what_is_too_stale_is_not_ready(store, project, tag: str | None, marks: list[int], ready: bool) -> None:
    """Only a view whose tag says so can end readiness: by its lag, or by never having had an event."""
    seen(store, [project.NOW_US - mark * 1_000_000 for mark in marks])
    plan = streamed(project.make_plan(), **({"max_staleness_s": tag} if tag else {}))
    found = staleness_of(store, lambda: project.NOW_US)(plan)
    if ready:
        refuse_stale(found)
    else:
        with pytest.raises(StaleStore, match="weather is"):
            refuse_stale(found)


def test_ready_tells(landed, project) -> None:
    """/ready lists the lag while it is allowed, and is 503 with the reason once it is not."""
    PlanStore(landed, project.name).publish(streamed(project.make_plan(), max_staleness_s="10"))
    seen(landed, [project.NOW_US - 1_500_000])
    app = project.make_app(landed, staleness=staleness_of(landed, lambda: project.NOW_US))
    with project.serve(app) as api:
        assert api.get("/ready").json()["staleness_s"] == {"weather": 1.5}
        seen(landed, [project.NOW_US - 60_000_000])
        response = api.get("/ready")
        assert response.status_code == 503
        assert "weather is 60.0 s behind, at most 10 s allowed" in response.json()["message"]
