"""Measure what the checks of stored rows cost a read: the same reader with them and without them, in turns.

    python -m benchmarks.row_checks --rounds 5

Five views of ten doubles each, read in-process from the embedded store.
"""

import argparse
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any
from unittest import mock

import numpy as np
import pyarrow as pa

from featurestore.config import OnlineSettings
from featurestore.online.connection import connect
from featurestore.online.reader import OnlineReader
from featurestore.online.server import EmbeddedServer
from featurestore.online.writer import RowWriter
from featurestore.plan import Field, JoinKey, Plan, Projection, Source, View

NOW_US = 1_717_243_200_000_000
VIEWS, FEATURES, KEYS = 5, 10, 1_000
SIZES = (1, 10, 100)


def plan() -> Plan:
    """A plan of views that share one join key."""
    views = {
        f"v{number}": View(
            name=f"v{number}",
            version=1,
            kind="latest",
            join_keys=(JoinKey(entity="k", name="k", dtype="INT64"),),
            features=tuple(Field(name=f"f{each}", dtype="DOUBLE") for each in range(FEATURES)),
            ttl_us=0,
            source=Source(name="s", path="s", timestamp_field="ts"),
        )
        for number in range(VIEWS)
    }
    return Plan(project="p", version=1, digest="d", created_us=NOW_US, views=views, on_demand={}, services={})


def p10_us(call: Callable[[], Any], seconds: float) -> float:
    """The tenth percentile of the call's time, in microseconds."""
    taken = []
    end = time.perf_counter() + seconds
    while (begin := time.perf_counter()) < end:
        call()
        taken.append(time.perf_counter() - begin)
    return sorted(taken)[len(taken) // 10] * 1e6


def main() -> int:
    """Print the cost of a read with checks and without them, and the ratio."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=0.5)
    given = parser.parse_args()
    held = plan()
    with tempfile.TemporaryDirectory() as folder, EmbeddedServer(Path(folder)) as server:
        client = connect(OnlineSettings(url=f"unix://{server.address}"), Path(folder))
        rng = np.random.default_rng(0)
        rows = {"k": range(KEYS), "ts": pa.array([NOW_US - 10] * KEYS, pa.timestamp("us", "UTC"))}
        for view in held.views.values():
            values = {f"f{each}": rng.random(KEYS) for each in range(FEATURES)}
            RowWriter(client, "p", view, clock=lambda: NOW_US).write(pa.table(rows | values), event_timestamp="ts")
        reader = OnlineReader(client, held, lambda: NOW_US)
        asked = [Projection(view=name, features=tuple(f"f{each}" for each in range(FEATURES))) for name in held.views]
        unchecked = [
            mock.patch("featurestore.online.together.all_sound", return_value=True),
            mock.patch("featurestore.online.together.sound", return_value=True),
            mock.patch("featurestore.online.scalar.sound", return_value=True),
        ]
        for size in SIZES:
            keys = {"k": list(range(size))}
            taken: dict[bool, list[float]] = {True: [], False: []}
            for _ in range(given.rounds):
                for checked in (True, False):
                    for each in unchecked if not checked else ():
                        each.start()
                    taken[checked].append(p10_us(lambda keys=keys: reader.read(asked, keys), given.seconds))
                    for each in unchecked if not checked else ():
                        each.stop()
            with_checks, without = median(taken[True]), median(taken[False])
            cost = with_checks / without - 1
            print(f"{size:>4} entities: {with_checks:7.1f} us with checks, {without:7.1f} without: {cost:+.1%}")
        client.close()
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
