"""The expected status of every value follows from the sources."""

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from featurestore.demo.statuses import expected_statuses
from featurestore.plan import Aggregation, Field, JoinKey, Plan, Projection, Service, Source, View

HOUR_US = 3_600_000_000


def view(name: str, kind: str, feature: str) -> View:
    key = JoinKey(entity="origin", name="origin", dtype="STRING")
    source = Source(name=name, path="readings.parquet", timestamp_field="at")
    window = Aggregation(
        feature=feature, column="x", column_dtype="DOUBLE", function="mean", dtype="DOUBLE", window_us=HOUR_US,
        hop_us=HOUR_US,
    )  # fmt: skip
    return View(
        name=name, version=1, kind=kind, join_keys=(key,), features=(Field(name=feature, dtype="DOUBLE"),),
        ttl_us=3 * HOUR_US, source=source, aggregations=(window,) if kind == "windowed" else (),
    )  # fmt: skip


def test_every_kind_of_absence_has_its_name(tmp_path: Path) -> None:
    """There, null in the row, past its ttl, never read, no key; a window without events is null, not missing."""
    at = [10 * HOUR_US, 9 * HOUR_US, 6 * HOUR_US, 2 * HOUR_US]
    readings = {"origin": ["EWR", "JFK", "LGA", "JFK"], "at": pa.array(at, pa.int64()).cast(pa.timestamp("us", "UTC"))}
    pq.write_table(pa.table(readings), tmp_path / "readings.parquet")
    views = {"weather": view("weather", "latest", "wind"), "trips": view("trips", "windowed", "delay")}
    service = Service(
        name="model",
        projections=(Projection(view="weather", features=("wind",)), Projection(view="trips", features=("delay",))),
    )
    plan = Plan(project="p", version=1, digest="", created_us=0, views=views, services={"model": service})
    rows = pa.table({"origin": ["EWR", "JFK", "LGA", "BOS", None]})
    values = pa.array([1.0, None, None, None, None])
    now = np.full(5, 10 * HOUR_US)
    told = expected_statuses(
        plan, "model", rows, pa.table({"weather__wind": values, "trips__delay": values}),
        {"weather__wind": now, "trips__delay": now}, tmp_path,
    )  # fmt: skip
    assert told["weather__wind"].to_pylist() == ["PRESENT", "NULL_VALUE", "OUTSIDE_MAX_AGE", "NOT_FOUND", "NOT_FOUND"]
    assert told["trips__delay"].to_pylist() == ["PRESENT", "NULL_VALUE", "NULL_VALUE", "NULL_VALUE", "NOT_FOUND"]


def test_the_ttl_is_inclusive(tmp_path: Path) -> None:
    """A row exactly as old as its ttl still counts; a microsecond later it does not."""
    at = pa.array([0], pa.int64()).cast(pa.timestamp("us", "UTC"))
    pq.write_table(pa.table({"origin": ["EWR"], "at": at}), tmp_path / "readings.parquet")
    service = Service(name="model", projections=(Projection(view="weather", features=("wind",)),))
    weather = view("weather", "latest", "wind")
    plan = Plan(
        project="p", version=1, digest="", created_us=0, views={"weather": weather}, services={"model": service}
    )
    offline = pa.table({"weather__wind": pa.array([None], pa.float64())})
    for age, status in ((3 * HOUR_US, "NULL_VALUE"), (3 * HOUR_US + 1, "OUTSIDE_MAX_AGE")):
        now = {"weather__wind": np.array([age])}
        told = expected_statuses(plan, "model", pa.table({"origin": ["EWR"]}), offline, now, tmp_path)
        assert told["weather__wind"].to_pylist() == [status]
