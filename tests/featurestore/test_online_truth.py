"""What is served is the offline truth, also while the store dies and comes back."""

import os
import random
import signal
import threading
import time
from pathlib import Path

import pyarrow as pa
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from featurestore.errors import StoreUnavailable
from featurestore.online.connection import StoreClient, connect
from featurestore.online.reader import OnlineReader
from featurestore.online.result import Status
from featurestore.online.server import EmbeddedServer
from featurestore.online.writer import RowWriter
from featurestore.plan import Field, JoinKey, Plan, Projection, Source, View

T = 1_700_000_000_000_000
TTL = 10


def view(ttl_us: int = 0) -> View:
    return View(
        name="rides",
        version=1,
        kind="latest",
        join_keys=(JoinKey(entity="driver", name="driver_id", dtype="INT64"),),
        features=(Field(name="x", dtype="INT64"), Field(name="s", dtype="STRING")),
        ttl_us=ttl_us,
        source=Source(name="rides", path="x.parquet", timestamp_field="ts", created_field="made"),
    )


Row = tuple[int, int, int | None, int | None]
"""driver, event us, created us, x."""


def table(rows: list[Row]) -> pa.Table:
    stamp = pa.timestamp("us", tz="UTC")
    return pa.table(
        {
            "driver_id": pa.array([d for d, *_ in rows], pa.int64()),
            "ts": pa.array([e for _, e, _, _ in rows], stamp),
            "made": pa.array([c for _, _, c, _ in rows], stamp),
            "x": pa.array([x for *_, x in rows], pa.int64()),
            "s": pa.array([None if x is None else f"text {x}" for *_, x in rows], pa.string()),
        }
    )


def as_of(rows: list[Row], driver: int, t: int, ttl: int) -> tuple[object, str, int]:
    """Brute force over all rows: what Feast promises, made exact. Equal times are left out of the draw."""
    seen = [row for row in rows if row[0] == driver and row[1] <= t]
    if not seen:
        return None, "NOT_FOUND", 0
    _, event, _, x = max(seen, key=lambda row: (row[1], -(1 << 63) if row[2] is None else row[2]))
    if ttl and event + ttl < t:
        return None, "OUTSIDE_MAX_AGE", event
    return x, "NULL_VALUE" if x is None else "PRESENT", event


ROWS = st.lists(
    st.tuples(
        st.integers(0, 3),
        st.integers(T - 15, T),
        st.none() | st.integers(T - 5, T + 5),
        st.none() | st.integers(-3, 300),
    ),
    max_size=30,
    unique_by=lambda row: row[:3],
)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(ROWS, st.sampled_from([0, TTL]), st.integers(1, 5), st.randoms(use_true_random=False))
def test_online_is_the_as_of_read(
    store: StoreClient, rows: list[Row], ttl: int, writes: int, shuffle: random.Random
) -> None:
    """Written in any order and number of writes, each key reads as brute force over all rows does; ages included."""
    store.flushall()
    of = view(ttl)
    order = list(rows)
    shuffle.shuffle(order)
    for part in range(writes):
        RowWriter(store, "ml", of, clock=lambda: T).write(
            table(order[part::writes]), event_timestamp="ts", created="made"
        )
    plan = Plan(project="ml", version=1, digest="", created_us=0, views={"rides": of})
    for t in (T, T + TTL, T + TTL + 1):
        [x] = (
            OnlineReader(store, plan, lambda t=t: t)
            .read(  # type: ignore[misc]
                [Projection(view="rides", features=("x",))], {"driver_id": list(range(4))}
            )
            .columns
        )
        got = zip(x.to_python(), (Status(s).name for s in x.statuses), x.event_us.tolist(), strict=True)
        assert list(got) == [as_of(rows, driver, t, ttl) for driver in range(4)]


def test_a_store_that_dies_and_returns_never_serves_a_wrong_value(tmp_path: Path) -> None:
    """While it is away reads and writes say StoreUnavailable; all else is right, and it recovers without a restart."""
    of, drivers = view(), list(range(50))
    plan = Plan(project="ml", version=1, digest="", created_us=0, views={"rides": of})
    projection = Projection(view="rides", features=("x", "s"))
    rows: list[Row] = [(driver, T, T, driver * 7) for driver in drivers]
    wrong: list[object] = []
    served, refused = [0], [0]
    over = threading.Event()

    def load(client: StoreClient) -> None:
        reader = OnlineReader(client, plan, lambda: T)
        writer = RowWriter(client, "ml", of, clock=lambda: T)
        while not over.is_set():
            try:
                writer.write(table(rows), event_timestamp="ts", created="made")
                x, s = reader.read([projection], {"driver_id": drivers}).columns
            except StoreUnavailable:
                refused[0] += 1
                continue
            served[0] += 1
            if x.to_python() != [7 * d for d in drivers] or s.to_python() != [f"text {7 * d}" for d in drivers]:
                wrong.append((x.to_python(), s.to_python()))

    with EmbeddedServer(tmp_path) as server:
        address = type("Address", (), {"url": f"unix://{server.address}"})
        threads = [threading.Thread(target=load, args=(connect(address, tmp_path),)) for _ in range(2)]
        for thread in threads:
            thread.start()
        for _ in range(3):
            time.sleep(0.3)
            os.kill(server.pid, signal.SIGKILL)
            time.sleep(0.1)
            server.start()
        before = served[0]
        deadline = time.monotonic() + 20
        while served[0] < before + 5 and time.monotonic() < deadline:
            time.sleep(0.02)
        over.set()
        for thread in threads:
            thread.join()
        after = served[0]
    assert wrong == []
    assert refused[0] > 0
    assert after >= before + 5
