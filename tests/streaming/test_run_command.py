"""Do `stream run` and `stream status` say what is so?"""

import random
import threading

import msgspec
import pytest
from typer.testing import CliRunner

from featurestore.errors import StaleStore
from featurestore.event_profiles import read_event_profiles
from featurestore.offline.event_log import read_events
from featurestore.plan_store import PlanStore
from streaming.commands import stream
from streaming.embedded.server import EmbeddedBroker
from streaming.rehearsal import START_US, TOPIC, shop_event, shop_events, shop_plan
from streaming.run_command import summary
from streaming.source.kafka import KafkaSettings
from streaming.source.publisher import Publisher
from streaming.source.records import SourceUnavailable
from validation.profile.store import ProfileStore


@pytest.fixture(scope="module")
def broker():
    with EmbeddedBroker() as running:
        yield str(running.address)


@pytest.fixture
def repo(tmp_path, online_url, store, broker, monkeypatch):
    folder = tmp_path / "feature_repo"
    folder.mkdir()
    (folder / "feature_store.yaml").write_text(
        f"project: shop\nregistry: ../data/registry.db\nonline_store:\n  connection: {online_url}\n"
    )
    monkeypatch.setenv("KAFKA_BOOTSTRAP_SERVERS", broker)
    return folder


def invoke(*words):
    return CliRunner().invoke(stream, list(words))


def test_run_until_caught_up_then_status(repo, store, broker):
    """A table with every partition, its offset, no lag, and since when it is complete; how much was sent again."""
    view = shop_plan().view("user_orders")
    topic = msgspec.structs.replace(view.source.topic, event_id_horizon_us=1)
    view = msgspec.structs.replace(view, source=msgspec.structs.replace(view.source, topic=topic))
    PlanStore(store, "shop").publish(msgspec.structs.replace(shop_plan(), views={view.name: view}))
    publisher = Publisher(KafkaSettings(broker), TOPIC, partitions=2)
    for event in shop_events(random.Random(0), 200, start_us=START_US):
        publisher.send(event.key, event.value, timestamp_us=event.arrival_us)
    for ts_us in (START_US, START_US, START_US - 1):
        publisher.send(b"1", shop_event(random.Random(0), 10**6, ts_us, 20), timestamp_us=START_US)
    publisher.flush()
    publisher.close()
    before = invoke("status", "--repo", str(repo))
    assert before.exit_code == 1
    ran = invoke("run", "--repo", str(repo), "--until-caught-up")
    assert ran.exit_code == 0, ran.output
    assert "203 events: " in ran.output
    shown = invoke("status", "--repo", str(repo))
    assert shown.exit_code == 0, shown.output
    assert "user_orders, version 1: topic orders, spread" in shown.output
    cells = [[cell.strip() for cell in line.split("│")[1:-1]] for line in shown.output.splitlines() if "│" in line]
    assert [(row[0], row[2], row[3], row[5]) for row in cells] == [("0", "0", "0 s", "ever"), ("1", "0", "0 s", "ever")]
    assert sum(int(row[1]) for row in cells) == 203
    assert "1 duplicates left out; 1 events under the id of another" in shown.output
    told = msgspec.json.decode(invoke("status", "--json", "--repo", str(repo)).stdout)
    [view] = told["views"]
    assert (view["view"], view["version"], view["role"], view["reads"]) == ("user_orders", 1, "read", "spread")
    assert [(each["lag_records"], each["complete"]) for each in view["partitions"]] == [(0, True), (0, True)]
    assert sum(each["end"] for each in view["partitions"]) == 203
    assert (told["plan_version"], told["runs"]) == (1, [])


def test_run_profiles_what_it_accepted_and_the_command_the_rest(repo, store, broker, tmp_path):
    """As many rows as the event log has, over two runs of a worker, one of them without profiles."""
    PlanStore(store, "shop").publish(shop_plan(topic="visits"))
    view = shop_plan(topic="visits").view("user_orders")
    publisher = Publisher(KafkaSettings(broker), "visits", partitions=2)

    def rows():
        found = read_event_profiles(ProfileStore(tmp_path / "data" / "profiles"), view, 0, 2**62)
        return sum(each.rows for each in found if (each.feature, each.segment) == ("amount", ""))

    for more in ((), ("--profile-s", "0")):
        for number in range(100):
            value = shop_event(random.Random(number), number, START_US + number, 20)
            publisher.send(b"%d" % number, value, timestamp_us=START_US + number)
        publisher.flush()
        ran = invoke("run", "--repo", str(repo), "--until-caught-up", "--no-dead-letters", *more)
        assert ran.exit_code == 0, ran.output
        assert rows() == 100
    publisher.close()
    told = invoke("profile", "--repo", str(repo))
    assert told.exit_code == 0, told.output
    assert rows() == len(read_events(tmp_path / "data" / "event_log" / "visits")) == 200
    assert "visits: " in told.output


def test_a_worker_that_starts_before_its_broker_waits_for_it(repo, store, monkeypatch):
    """A deployment starts in any order; how long is the user's to say."""
    with EmbeddedBroker() as away:
        servers = str(away.address)
    monkeypatch.setenv("KAFKA_BOOTSTRAP_SERVERS", servers)
    PlanStore(store, "shop").publish(shop_plan())
    words = ("run", "--repo", str(repo), "--until-caught-up", "--no-dead-letters")
    assert isinstance(invoke(*words, "--wait-s", "0").exception, SourceUnavailable)
    late = EmbeddedBroker(port=int(servers.rpartition(":")[2]))

    def come():
        late.start()
        publisher = Publisher(KafkaSettings(servers), TOPIC, partitions=2)
        publisher.send(b"1", shop_event(random.Random(0), 1, START_US, 20), timestamp_us=START_US)
        publisher.flush()
        publisher.close()

    timer = threading.Timer(1.0, come)
    timer.start()
    try:
        ran = invoke(*words)
        assert ran.exit_code == 0, ran.output
        assert "1 events: 1 accepted" in ran.output
    finally:
        timer.join()
        late.stop()


def test_without_a_plan_there_is_nothing_to_run(repo, store):
    """The error says what to do."""
    result = invoke("run", "--repo", str(repo))
    assert isinstance(result.exception, StaleStore)
    assert "featurestore apply" in str(result.exception)


def test_the_summary_adds_up():
    """What was read is what was accepted and what was set aside."""
    counters = {"events": 10, "accepted": 7, "rejected:empty": 1, "rejected:contract": 2}
    assert summary(counters) == "10 events: 7 accepted, 3 set aside (2 contract, 1 empty)"
