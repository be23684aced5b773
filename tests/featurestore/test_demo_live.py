"""Events that lie ahead are replayed when they come due, each once."""

import pyarrow as pa
from hypothesis import given, settings
from hypothesis import strategies as st

from featurestore.demo.live import PAUSE_US, Replay

SECOND_US = 1_000_000


def events(seconds: list[int]) -> pa.Table:
    times = pa.array([second * SECOND_US for second in seconds], pa.int64()).cast(pa.timestamp("us", "UTC"))
    return pa.table({"event_timestamp": times})


def instants(table: pa.Table) -> list[int]:
    return [instant // SECOND_US for instant in table["event_timestamp"].cast(pa.int64()).to_pylist()]


@settings(deadline=None)  # the first example pays for Arrow's start
@given(
    st.lists(st.integers(1, 300), max_size=30).map(sorted),
    st.lists(st.integers(0, 60), max_size=20),
)
def test_every_due_event_is_handed_over_once(ahead: list[int], waits: list[int]) -> None:
    """However the looks fall: what is due by the last effective look has come once, in order; nothing comes early."""
    handed: list[int] = []
    now = 0

    def produce(topic: str, rows: pa.Table) -> None:
        assert topic == "departures"
        assert max(instants(rows)) <= now
        handed.extend(instants(rows))

    replay = Replay({"departures": events(ahead)}, 0, produce)
    looked = 0
    for wait in waits:
        now += wait
        replay.produce_due(now * SECOND_US)
    now += PAUSE_US // SECOND_US
    looked = now
    replay.produce_due(now * SECOND_US)
    assert handed == [second for second in ahead if second <= looked]


def test_looks_are_apart() -> None:
    """Between two looks lies a pause, whoever asks in between."""
    calls: list[str] = []
    replay = Replay({"arrivals": events([1, 2])}, 0, lambda topic, _: calls.append(topic))
    assert replay.produce_due(1 * SECOND_US) == 1
    assert replay.produce_due(2 * SECOND_US) == 0
    assert replay.produce_due(1 * SECOND_US + PAUSE_US) == 1
    assert calls == ["arrivals", "arrivals"]
