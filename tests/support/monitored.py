"""A small deployment that monitors look at: a repo with rides, its plan file, and answers that were kept."""

import secrets
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from featurestore.config import Settings, load_settings
from featurestore.monitor.served import Answer, ServeLog
from featurestore.monitor.workspace import workspace
from featurestore.online.result import Column, Status
from featurestore.plan import Field, JoinKey, Plan, Projection, Service, Source, View
from featurestore.plan_store import write_plan_file

STAMP = pa.timestamp("us", "UTC")
READS = (Projection(view="rides", features=("speed",)),)


def rides(**tags: str) -> View:
    return View(
        name="rides", version=1, kind="latest", ttl_us=0, owner="team@example.org", description="How fast", tags=tags,
        join_keys=(JoinKey(entity="driver", name="driver", dtype="INT64"),),
        features=(Field(name="speed", dtype="DOUBLE"),),
        source=Source(name="rides", path="rides.parquet", timestamp_field="ts", created_field="made"),
    )  # fmt: skip


def plan(view: View, **tags: str) -> Plan:
    service = Service(name="eta", projections=READS, owner="model@example.org", tags={"audit_rate": "1"} | tags)
    return Plan(project="p", version=2, digest="", created_us=0, views={"rides": view}, services={"eta": service})


def deployment(folder: Path, made: Plan, now_us: int) -> Settings:
    """A repo whose source has one ride of driver 1, a minute ago, at speed 10."""
    (folder / "feature_store.yaml").write_text("project: p\nprovider: local\nregistry: data/registry.db\n")
    at = pa.array([now_us - 60_000_000], STAMP)
    pq.write_table(pa.table({"driver": [1], "ts": at, "made": at, "speed": [10.0]}), folder / "rides.parquet")
    settings = load_settings(folder, {})
    write_plan_file(settings.plan_path, made)
    return settings


def keep(
    settings: Settings,
    made: Plan,
    now_us: int,
    speed: float | list[float],
    event_us: int,
    drivers: Sequence[int] | None = None,
) -> None:
    """Keeps answers with these speeds, each of a row of that event time; about driver 1 where none are named."""
    log = ServeLog(workspace(settings).served, lambda: now_us, writer=secrets.token_hex(4))
    speeds = speed if isinstance(speed, list) else [speed]
    for value, driver in zip(speeds, drivers or [1] * len(speeds), strict=True):
        column = Column(
            view="rides", feature="speed", dtype="DOUBLE", held=pa.array([value]),
            statuses=np.array([Status.PRESENT], np.uint8), event_us=np.array([event_us]), instant_us=np.array([now_us]),
        )  # fmt: skip
        log.add(
            Answer(
                plan=made,
                service="eta",
                requested_us=now_us,
                reads=READS,
                read=(column,),
                keys={"driver": [driver]},
                request={},
                given={("rides", "speed"): [value]},
            )
        )
    log.flush()
