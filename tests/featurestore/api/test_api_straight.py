"""Does the shortest way from rows to JSON give the bytes of the general one, and leave to it what it must?"""

import asyncio
import math

import orjson
import pyarrow as pa
import pytest
from prometheus_client import CollectorRegistry

from featurestore.api.answer import JSON
from featurestore.api.limits import Limits
from featurestore.api.metrics import Metrics
from featurestore.api.request import decode_request
from featurestore.api.serving import Serving
from featurestore.api.straight import Straight
from featurestore.online.fetch import fetcher
from featurestore.online.reader import OnlineReader
from featurestore.online.together import Together
from featurestore.online.writer import RowWriter
from featurestore.plan import Field, JoinKey, Plan, Source, View

NOW_US = 1_717_243_200_000_000
HOUR_US = 3_600_000_000
WHOLE, NULL, STALE, NAN, AHEAD, LACKING, OLD, LONG_AGO = [0, 1, 2], 3, 4, 5, 6, 7, 8, 9
KEYS = [*WHOLE, NULL, STALE, NAN, AHEAD, LACKING, OLD, LONG_AGO, 999]
VALUES = {
    "DOUBLE": [0.1, -0.0, 1e308, None, 2.5, math.nan, 1.0, 7.0, 5e-324, 12345678.9],
    "FLOAT": [0.1, -0.0, 3e38, None, 2.5, math.inf, 1.0, 7.0, 1e-45, 12345678.9],
    "INT64": [(1 << 62) + 1, -1, 0, None, 5, 6, 7, 8, 9, 10],
    "INT32": [(1 << 31) - 1, -1, 0, None, 5, 6, 7, 8, 9, 10],
    "BOOL": [True, False, True, None, True, True, False, True, False, True],
}
TIMES = [NOW_US, NOW_US - 1, NOW_US - 5 * HOUR_US, NOW_US - 7, NOW_US - 9 * HOUR_US, NOW_US - 8, NOW_US + 2_000_000]
TIMES += [NOW_US - 9, -HOUR_US, -62_000_000_000_000_000]
ROWS = "application/vnd.featurestore.rows+json"


def view(name: str, dtype: str, *features: str, ttl_us: int = 0, key: str = "driver", key_dtype: str = "INT64") -> View:
    return View(
        name=name,
        version=1,
        kind="latest",
        join_keys=(JoinKey(entity=key, name=key, dtype=key_dtype),),
        features=tuple(Field(name=feature, dtype=dtype) for feature in features),
        ttl_us=ttl_us,
        source=Source(name=name, path=f"{name}.parquet", timestamp_field="ts"),
    )


VIEWS = [
    view("a", "DOUBLE", "x", "y"),
    view("b", "DOUBLE", "v", "w", ttl_us=6 * HOUR_US),
    view("c", "INT64", "m", "n"),
    view("d", "INT32", "o", "p"),
    view("e", "FLOAT", "q"),
    view("f", "BOOL", "r"),
    view("s", "DOUBLE", "t", key="city", key_dtype="STRING"),
]
PLAN = Plan(project="straight", version=1, digest="d", created_us=0, views={each.name: each for each in VIEWS})
ASKED = [
    ["a:x", "a:y"],
    ["a:x", "a:y", "b:v", "b:w"],
    ["a:y", "b:w"],
    ["a:y", "a:x", "b:w", "b:v"],
    ["b:v"],
    ["c:m", "c:n"],
    ["d:p"],
    ["e:q"],
    ["f:r"],
    ["a:x", "c:m"],
    ["a:x", "b:v", "b:w"],
]
DRIVERS = [[key] for key in KEYS] + [
    [0, NULL],
    [0, STALE],
    [0, NAN],
    [0, AHEAD],
    [0, 1],
    [0, 0],
    WHOLE,
    [2, 1, 0, LACKING],
    KEYS,
    [*WHOLE, OLD],
    [LONG_AGO, 0],
    ["1"],
]


class General(OnlineReader):
    """Knows no shorter way."""

    def together(self, projections: object) -> None:
        return None


def land(client) -> None:
    for each in VIEWS:
        [key] = each.join_keys
        keys = pa.array([str(n) for n in range(10)] if key.dtype == "STRING" else range(10))
        columns = {field.name: pa.array(VALUES[field.dtype]).take(pa.array(range(10))) for field in each.features}
        table = pa.table({key.name: keys} | columns | {"ts": pa.array(TIMES, pa.timestamp("us", tz="UTC"))})
        if each.name in ("b", "d"):
            table = table.filter(pa.array([n != LACKING for n in range(10)]))
        RowWriter(client, PLAN.project, each, clock=lambda: NOW_US).write(table, event_timestamp="ts")


def differences(client) -> tuple[list[object], int]:
    """What is answered differently, and how many requests took the shortest way."""
    fetching = fetcher(client)
    taken = 0
    seen = Straight.json

    def counted(self, *given):
        nonlocal taken
        body = seen(self, *given)
        taken += body is not None
        return body

    async def compare() -> list[object]:
        found = []
        short, general = (
            Serving(PLAN, kind(client, PLAN, lambda: NOW_US), fetching, lambda: NOW_US, Limits(), metrics)
            for kind, metrics in ((OnlineReader, mine), (General, its))
        )
        requests = [(features, {"driver": drivers}) for features in ASKED for drivers in DRIVERS]
        requests += [(["s:t"], {"city": cities}) for cities in (["0"], ["1", "2"], ["3"], ["x"])]
        for features, entities in requests:
            body = orjson.dumps({"features": features, "entities": entities})
            answers = []
            for serving in (short, general):
                asked = decode_request(body)
                kind = serving.kind(asked, serving.names_of(asked, body))
                answers.append(await serving.answer(kind, asked, JSON))
            if answers[0] != answers[1]:
                found.append((features, entities, *answers))
        fetching.close()
        return found

    mine, its = (Metrics(CollectorRegistry()) for _ in range(2))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Straight, "json", counted)
        found = asyncio.run(compare())
    shown = [[line for line in each.exposition().splitlines() if b"_created" not in line] for each in (mine, its)]
    if shown[0] != shown[1]:
        found.append(("metrics", *shown))
    return found, taken


def test_both_ways_give_the_same_bytes(store) -> None:
    """Whatever is missing, null, stale, ahead of the clock or no number, and what is counted of it too."""
    land(store)
    found, taken = differences(store)
    assert not found
    assert 40 < taken < len(ASKED) * len(DRIVERS)


@pytest.mark.parametrize("part", ["ttls_us", "frames"])
def test_planted_oversights_are_caught(store, monkeypatch, part) -> None:
    """A way that forgets the ttl, or to look at null bits, differs."""
    land(store)
    true = Together.of.__func__

    def faulty(cls, *given):
        made = true(cls, *given)
        if made is None:
            return None
        if part == "ttls_us":
            object.__setattr__(made, "ttls_us", (0,) * len(made.ttls_us))
        else:
            frames = tuple(
                frame._replace(
                    told=slice(frame.told.start, frame.told.start + 8), without_nulls=frame.without_nulls[:8]
                )
                for frame in made.frames
            )
            object.__setattr__(made, "frames", frames)
        return made

    monkeypatch.setattr(Together, "of", classmethod(faulty))
    found, _ = differences(store)
    assert found
