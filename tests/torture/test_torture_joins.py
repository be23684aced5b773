"""Generated source files and entity rows against the join, the loader and the reader, with the right values known."""

import random
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from command_outcome import FIRST, check, report, run, seeds

START = datetime(2024, 3, 10, tzinfo=UTC)
KEYS = (1, 2, 2**31 + 5, 2**53 + 1, 2**53 + 2, 2**60 + 1, 2**60 + 2)
INTEGERS = (pa.int64(), pa.uint64(), pa.decimal128(30, 0), pa.string(), pa.float64(), pa.int32())
TIMES = (
    pa.timestamp("us", "UTC"),
    pa.timestamp("ns"),
    pa.timestamp("ms", "Asia/Tokyo"),
    pa.timestamp("s"),
    pa.string(),
)
VALUES: dict[str, tuple[pa.DataType, ...]] = {
    "whole": (pa.int64(), pa.int32(), pa.float64(), pa.null()),
    "real": (pa.float64(), pa.float32(), pa.int32(), pa.int64(), pa.null()),
    "text": (pa.string(), pa.large_string(), pa.dictionary(pa.int8(), pa.string()), pa.null()),
}


def stored(values: list[Any], dtype: pa.DataType) -> pa.Array:
    """The values in that type; raises where one does not fit."""
    if pa.types.is_string(dtype):
        return pa.array([None if value is None else str(value) for value in values], dtype)
    if pa.types.is_decimal(dtype):
        return pa.array([None if value is None else Decimal(value) for value in values], dtype)
    if pa.types.is_floating(dtype) and any(isinstance(value, int) and abs(value) > 2**53 for value in values):
        raise pa.ArrowInvalid("a double would round it")
    return pa.array(values, dtype)


def instants(values: list[datetime], dtype: pa.DataType) -> pa.Array:
    """The instants in that type; naive is UTC."""
    if pa.types.is_string(dtype):
        return pa.array([value.isoformat() for value in values], dtype)
    return pa.array(values, pa.timestamp("us", "UTC")).cast(dtype, safe=False)


def draw(rng: random.Random, kind: str) -> list[Any]:
    """Values of one kind, some missing."""
    pool: dict[str, list[Any]] = {
        "whole": [None, 0, -1, 7, 2**53 + 1, 2**60 + 1],
        "real": [None, 0.5, -2.0, 3.0],
        "text": [None, "", "NA", "007", "null", "ü"],
    }
    return [rng.choice(pool[kind]) for _ in range(rng.randrange(1, 6))]


def write_source(
    rng: random.Random, folder: Path, kind: str, start: datetime = START
) -> list[tuple[int, datetime, Any]]:
    """Files of one view, each with types of its own; the rows that they hold."""
    for old in folder.glob("*.parquet"):
        old.unlink()
    held: list[tuple[int, datetime, Any]] = []
    for number in range(rng.randrange(1, 4)):
        values = draw(rng, kind)
        keys = [rng.choice(KEYS) for _ in values]
        times = [start + timedelta(seconds=len(held) + at) for at in range(len(values))]
        columns: dict[str, pa.Array] = {}
        for name, make, data, types in (
            ("user_id", stored, keys, INTEGERS),
            ("ts", instants, times, TIMES),
            ("x", stored, values, VALUES[kind]),
        ):
            for dtype in rng.sample(types, len(types)):
                try:
                    columns[name] = make(data, dtype)  # type: ignore[operator]
                except (pa.ArrowInvalid, pa.ArrowTypeError, OverflowError, ValueError):
                    continue
                break
        if rng.random() < 0.5:
            columns["unread"] = pa.array(
                [None] * len(values), rng.choice((pa.int64(), pa.string(), pa.list_(pa.int8())))
            )
        if rng.random() < 0.2:
            columns["__index_level_0__"] = pa.array(range(len(values)))
        pq.write_table(pa.table(columns), folder / f"{number}.parquet")
        held += list(zip(keys, times, values, strict=True))
    return held


def newest(held: list[tuple[int, datetime, Any]], key: int, t: datetime) -> Any:
    """The value of the newest row of a key at an instant."""
    seen = [(ts, value) for each, ts, value in held if each == key and ts <= t]
    return max(seen, key=lambda row: row[0])[1] if seen else None


def test_training_set_holds_the_right_values_or_is_refused(deployment, tmp_path: Path) -> None:
    """Whatever types its files give a column, a training set holds the exact values, or one line refuses it."""
    faults: list[str] = []
    built = 0
    for seed in seeds(12):
        rng = random.Random(seed)
        kind = rng.choice(list(VALUES))
        held = write_source(rng, deployment.repo / "data" / kind, kind)
        asked = [(rng.choice((*KEYS, 77)), START + timedelta(seconds=rng.randrange(-1, 15))) for _ in range(8)]
        keys = stored([key for key, _ in asked], rng.choice(INTEGERS[:4]))
        rows = pa.table({"user_id": keys, "event_timestamp": instants([t for _, t in asked], rng.choice(TIMES))})
        pq.write_table(rows, tmp_path / f"{seed}.parquet")
        words = [
            "dataset",
            "build",
            f"set{seed}",
            "--entity-rows",
            str(tmp_path / f"{seed}.parquet"),
            "--feature",
            f"{kind}:x",
            "--repo",
            str(deployment.repo),
        ]
        check(outcome := run(words), seed, words, faults)
        if outcome.code:
            continue
        built += 1
        found = pq.read_table(next((deployment.repo / "data/datasets" / f"set{seed}").glob("*.parquet")))
        wanted = [newest(held, key, t) for key, t in asked]
        if found["x"].to_pylist() != wanted:
            faults.append(f"seed {seed}: {kind}: found {found['x'].to_pylist()}, right is {wanted}")
        if found.column_names != ["user_id", "event_timestamp", "x"]:
            faults.append(f"seed {seed}: columns {found.column_names}")
    assert built > 2, "no training set was built"
    report(faults)


def test_loaded_rows_are_the_right_values_or_are_refused(deployment) -> None:
    """Whatever types its files give a column, the online store serves exact values, or one line refuses the load."""
    from feast import FeatureStore

    store = FeatureStore(repo_path=str(deployment.repo))
    faults: list[str] = []
    for seed in seeds(4):
        rng = random.Random(seed)
        kind = rng.choice(list(VALUES))
        # What an earlier seed has loaded is older: it never wins.
        start = START + timedelta(minutes=seed - FIRST + 1)
        held = write_source(rng, deployment.repo / "data" / kind, kind, start)
        words = ["materialize", kind, "--repo", str(deployment.repo)]
        check(outcome := run(words), seed, words, faults)
        if outcome.code:
            continue
        present = sorted({key for key, _, _ in held})
        read = store.get_online_features([f"{kind}:x"], [{"user_id": key} for key in present]).to_dict()["x"]
        wanted = [newest(held, key, start + timedelta(minutes=1)) for key in present]
        if read != wanted:
            faults.append(f"seed {seed}: {kind}: served {read}, right is {wanted}")
    report(faults)
