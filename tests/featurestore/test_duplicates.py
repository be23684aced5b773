"""Does every event of a log count once, by the log alone?"""

import random
from pathlib import Path

import msgspec
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from featurestore.errors import SourceError
from featurestore.offline import windowed_stored
from featurestore.offline.duplicates import duplicates
from featurestore.offline.event_log import write_events
from featurestore.offline.history import historical_features
from featurestore.plan import Aggregation, Field, JoinKey, Plan, Projection, Source, Topic, View

HORIZON = 10
US = pa.timestamp("us", "UTC")
T0 = 1_700_000_000_000_000
MINUTE = 60_000_000


class Event(msgspec.Struct, frozen=True):
    partition: int
    offset: int
    id: str | None
    key: str | None
    ts: int
    arrival: int


def counted(events, horizon=HORIZON):
    """The rule, read aloud: an event counts unless one of its like counted within the horizon of its arrival."""
    anchors, counting = {}, set()
    for event in sorted(events, key=lambda event: (event.partition, event.offset)):
        own = anchors.setdefault((event.partition, event.id, event.key, event.ts), [])
        if event.id is None or event.key is None or all(abs(event.arrival - at) > horizon for at in own):
            own.append(event.arrival)
            counting.add((event.partition, event.offset))
    return counting


def ours(events, horizon=HORIZON, implementation=duplicates):
    ids = [event.id for event in events]
    found = implementation(
        pa.chunked_array([pa.array(ids[:3], pa.string()), pa.array(ids[3:], pa.string())]),
        [
            pa.array([event.partition for event in events], pa.int32()),
            pa.array([event.key for event in events], pa.string()),
            pa.array([event.ts for event in events], pa.int64()),
        ],
        np.array([event.offset for event in events], np.int64),
        np.array([event.arrival for event in events], np.int64),
        horizon_us=horizon,
    )
    return {(event.partition, event.offset) for event, repeated in zip(events, found, strict=True) if not repeated}


@st.composite
def logs(draw, *, monotone=False):
    """Events of few ids, whose arrivals lie on and around the horizons of others, in any order of rows."""
    steps = st.sampled_from([0, 1, HORIZON - 1, HORIZON, HORIZON + 1, 2 * HORIZON, 2 * HORIZON + 1, 5 * HORIZON])
    back = st.just(1) if monotone else st.sampled_from([1, 1, -1])
    events, arrival = [], 1000
    for offset in range(draw(st.integers(0, 25))):
        arrival += draw(back) * draw(steps)
        draws = [st.integers(0, 1), st.sampled_from(["a", "a", "b", None]), st.sampled_from(["k", "k", "l", None])]
        partition, event_id, key = (draw(each) for each in draws)
        events.append(Event(partition, offset, event_id, key, draw(st.sampled_from([7, 7, 8])), arrival))
    return draw(st.permutations(events))


@given(logs())
def test_an_event_counts_unless_one_of_its_like_counted_within_the_horizon(events):
    """The horizon is inclusive, in both directions where producers set arrivals; nulls repeat nothing."""
    assert ours(events) == counted(events)


@given(logs(monotone=True))
def test_the_horizon_begins_with_the_event_that_counted(events):
    """Where the broker sets arrivals: the first to arrive, and each more than a horizon after the last that counted."""
    last, counting = {}, set()
    for event in sorted(events, key=lambda event: (event.arrival, event.partition, event.offset)):
        like = (event.partition, event.id, event.key, event.ts)
        if None in like or event.arrival > last.get(like, -(2**60)) + HORIZON:
            last[like] = event.arrival
            counting.add((event.partition, event.offset))
    assert ours(events) == counting


@given(logs(monotone=True), st.integers(990, 1200))
def test_what_arrives_later_changes_nothing_that_was_known(events, t):
    """As known at t: what had arrived has the duplicates that it has in the whole log."""
    known = [event for event in events if event.arrival <= t]
    places = {(event.partition, event.offset) for event in known}
    assert ours(known) == ours(events) & places


@pytest.mark.parametrize("step", [HORIZON + 1, 3, -3, -HORIZON - 1])
def test_an_event_may_be_repeated_very_often(step):
    """Thousands of repeats, of which many count anew, are told in one go."""
    events = [Event(0, offset, "a", "k", 7, 10**6 + step * offset) for offset in range(3000)]
    assert ours(events) == counted(events)


def test_an_empty_log_has_no_duplicates():
    """Nothing in, nothing out."""
    assert ours([]) == set()


def exclusive(ids, same, offset, arrival_us, *, horizon_us):
    return duplicates(ids, same, offset, arrival_us, horizon_us=horizon_us - 1)


def from_the_last_repeat(ids, same, offset, arrival_us, *, horizon_us):
    rows = list(zip(ids.to_pylist(), *(column.to_pylist() for column in same), strict=True))
    last, found = {}, np.zeros(len(rows), bool)
    for row in np.argsort(offset).tolist():
        if None not in rows[row]:
            found[row] = abs(arrival_us[row] - last.get(rows[row], -(2**60))) <= horizon_us
            last[rows[row]] = arrival_us[row]
    return found


def of_all_partitions(ids, same, offset, arrival_us, *, horizon_us):
    return duplicates(ids, same[1:], offset, arrival_us, horizon_us=horizon_us)


def by_rows(ids, same, offset, arrival_us, *, horizon_us):
    return duplicates(ids, same, np.arange(len(offset)), arrival_us, horizon_us=horizon_us)


@pytest.mark.parametrize("fault", [exclusive, from_the_last_repeat, of_all_partitions, by_rows])
def test_a_planted_fault_is_caught(fault):
    """Each of these wrong rules differs from the right one in some drawn log."""
    dice = random.Random(0)
    for _ in range(200):
        arrival, events = 1000, []
        for offset in range(20):
            arrival += dice.choice((0, 1, HORIZON - 1, HORIZON, HORIZON + 1))
            events.append(Event(dice.randrange(2), offset, dice.choice("ab"), "k", 7, arrival))
        dice.shuffle(events)
        assert ours(events) == counted(events)
        if ours(events, implementation=fault) != counted(events):
            return
    pytest.fail("no log noticed the planted fault")


def topic(horizon_us):
    return Topic(
        name="taps", bootstrap_servers="", message_format="json", event_id="uid", event_id_horizon_us=horizon_us
    )


def plan_of(horizon_us):
    features = {"taps_1h": "count", "spent_1h": "sum"}
    dtypes = {"count": "INT64", "sum": "DOUBLE"}
    aggregations = tuple(
        Aggregation(
            feature=name,
            column="fare",
            column_dtype="DOUBLE",
            function=function,
            dtype=dtypes[function],
            window_us=60 * MINUTE,
            hop_us=5 * MINUTE,
        )
        for name, function in features.items()
    )
    view = View(
        name="spending",
        version=1,
        kind="windowed",
        join_keys=(JoinKey(entity="card", name="card", dtype="STRING"),),
        features=tuple(Field(name=each.feature, dtype=each.dtype) for each in aggregations),
        ttl_us=0,
        source=Source(
            name="taps",
            path="log/taps",
            timestamp_field="at",
            created_field="_arrival",
            field_mapping={"CARD": "card", "AMOUNT": "fare", "TS": "at"},
            topic=topic(horizon_us),
        ),
        columns=(Field(name="card", dtype="STRING"), Field(name="fare", dtype="DOUBLE")),
        aggregations=aggregations,
    )
    return Plan(project="p", version=1, digest="", created_us=0, views={"spending": view})


def taps(*rows):
    """(uid, card, minute of the event, minute of arrival, fare), offsets in their order."""
    uid, card, at, arrival, fare = zip(*rows, strict=True)
    return pa.table(
        {
            "uid": pa.array(uid, pa.string()),
            "CARD": card,
            "TS": pa.array([T0 + round(m * MINUTE) for m in at], US),
            "AMOUNT": pa.array(fare, pa.float64()),
            "_arrival": pa.array([T0 + round(m * MINUTE) for m in arrival], US),
            "_offset": pa.array(range(len(rows)), pa.int64()),
        }
    )


TAPS = taps(
    ("a", "x", 0, 0, 1.0),
    ("a", "x", 0, 5, 2.0),
    ("a", "x", 0, 10, 4.0),
    ("a", "x", 0, 10.1, 8.0),
    ("a", "x", 3, 11, 16.0),
    ("a", "y", 0, 11, 32.0),
    (None, "x", 0, 11, 64.0),
    (None, "x", 0, 11, 128.0),
)


def asked(repo: Path, plan, minutes, **options):
    rows = pa.table({"card": ["x"] * len(minutes), "event_timestamp": pa.array([T0 + m * MINUTE for m in minutes], US)})
    table = historical_features(
        plan, [Projection(view="spending", features=("taps_1h", "spent_1h"))], rows, repo=repo, **options
    )
    return list(zip(table["taps_1h"].to_pylist(), table["spent_1h"].to_pylist(), strict=True))


@pytest.fixture(params=["in memory", "on disk"])
def repo(tmp_path, request, monkeypatch):
    """Events are held, or wait on disk by buckets of keys, as if they were too many."""
    if request.param == "on disk":
        monkeypatch.setattr(windowed_stored, "HELD_BYTES", 0)
    write_events(tmp_path / "log" / "taps", TAPS, topic_id="T", partition=0, first=0, last=7)
    return tmp_path


def test_training_rows_leave_duplicates_out(repo):
    """What came after the horizon counts anew; another time, another card or no id is no duplicate."""
    assert asked(repo, plan_of(10 * MINUTE), [12]) == [(5, 1.0 + 8.0 + 16.0 + 64.0 + 128.0)]


def test_without_a_horizon_every_event_counts(repo):
    """The id alone declares nothing."""
    assert asked(repo, plan_of(None), [12]) == [(7, 1.0 + 2 + 4 + 8 + 16 + 64 + 128)]


def test_as_known_a_duplicate_was_never_there(repo):
    """Before, at and after each arrival: the first stands from its own arrival on, and repeats change nothing."""
    known = asked(repo, plan_of(10 * MINUTE), [0, 4, 5, 10, 11], as_known=True)
    assert known == [(1, 1.0), (1, 1.0), (1, 1.0), (1, 1.0), (5, 217.0)]


def test_an_event_stored_twice_is_no_duplicate_of_itself(repo):
    """Ranges of the event log may overlap after a crash: one offset is one event."""
    write_events(repo / "log" / "taps", TAPS.slice(2, 4), topic_id="T", partition=0, first=2, last=5)
    assert asked(repo, plan_of(10 * MINUTE), [12]) == [(5, 217.0)]


def test_events_beyond_the_windows_make_no_difference(repo):
    """Rows that are asked for alone, or among others far away, are answered alike."""
    plan = plan_of(10 * MINUTE)
    minutes = [0, 4, 12, 61, 70, 500]
    together = asked(repo, plan, minutes)
    assert together == [asked(repo, plan, [minute])[0] for minute in minutes]


def test_a_source_that_does_not_say_where_its_events_came_from_is_refused(tmp_path):
    """Duplicates are told by partition and offset: plain files have none."""
    (tmp_path / "log" / "taps" / "day=2023-11-14").mkdir(parents=True)
    pq.write_table(TAPS, tmp_path / "log" / "taps" / "day=2023-11-14" / "T-0-0-7-1of1.parquet")
    with pytest.raises(SourceError, match="_topic_id"):
        asked(tmp_path, plan_of(10 * MINUTE), [12])
