"""Does verify find what differs, and nothing where all is equal?"""

import datetime as dt
import random
from decimal import Decimal

import msgspec
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import typer
from typer.testing import CliRunner

from featurestore.aggregation import definition, read
from featurestore.cli.settings import settings_of
from featurestore.errors import UsageError
from featurestore.offline import windowed_chunk
from featurestore.offline.event_log import PROVENANCE, write_events
from featurestore.plan import Aggregation, Field, Function, JoinKey, Plan, Source, Topic, Transform, View
from featurestore.plan_store import write_plan_file
from streaming.commit import ShardStore
from streaming.rehearsal import START_US
from streaming.shard_state import ShardState
from streaming.verify import _Feed, verify, verify_online
from streaming.verify_command import verify as command
from streaming.verify_history import read_history

HOUR_US, MINUTE_US = 3_600_000_000, 60_000_000
STAMP = pa.timestamp("us", "UTC")
COLUMNS = {
    "x": ("DOUBLE", "DOUBLE", pa.float64()),
    "f": ("FLOAT", "FLOAT", pa.float32()),
    "i": ("INT64", "INT64", pa.int64()),
    "s": ("STRING", "STRING", pa.string()),
    "y": ("BYTES", "BYTES", pa.binary()),
    "d": ("DECIMAL(12,3)", "DECIMAL", pa.decimal128(12, 3)),
    "w": ("DECIMAL(30,3)", "DECIMAL", pa.decimal128(30, 3)),
    "b": ("BOOL", "BOOL", pa.bool_()),
    "at": ("UNIX_TIMESTAMP", "UNIX_TIMESTAMP", STAMP),
    "day": ("DATE", "UNIX_TIMESTAMP", pa.date32()),
}
WINDOWS = ((HOUR_US, 5 * MINUTE_US), (24 * HOUR_US, HOUR_US), (10 * MINUTE_US, 10 * MINUTE_US), (None, None))
PARAMS = {"k": 2.0, "cap": 100.0, "p": 0.5, "max_bytes": 9.0}
ANY = ("count", "count_distinct", "approx_count_distinct", "min", "max", "first", "last", "last_k")
OF_NUMBERS = ("sum", "mean", "var", "std", "approx_percentile")


def aggregations():
    for column, (column_dtype, dtype, _) in COLUMNS.items():
        for function in ANY + (OF_NUMBERS if column in "xfidw" else ()):
            told = "INT64" if "count" in function else "DOUBLE" if function in OF_NUMBERS[1:] else dtype
            for window_us, hop_us in WINDOWS[:2] if column in "xf" else WINDOWS[:1] + WINDOWS[3:]:
                yield Aggregation(
                    feature=f"{column}_{function}_{window_us}",
                    column=column,
                    column_dtype=column_dtype,
                    function=function,
                    dtype=told + "_LIST" * (function == "last_k"),
                    window_us=window_us,
                    hop_us=hop_us,
                    params=PARAMS,
                )


def plan_of(some, topic=None):
    view = View(
        name="taps",
        version=1,
        kind="windowed",
        join_keys=(JoinKey(entity="card", name="card", dtype="STRING"),),
        features=tuple(Field(name=each.feature, dtype=each.dtype) for each in some),
        ttl_us=0,
        source=Source(
            name="taps",
            path="taps",
            timestamp_field="ts",
            created_field="_arrival",
            field_mapping={"stored_x": "x"},
            topic=topic,
        ),
        columns=(
            Field(name="card", dtype="STRING"),
            *(Field(name=name, dtype=COLUMNS[name][0]) for name in dict.fromkeys(each.column for each in some)),
        ),
        aggregations=tuple(some),
    )
    return Plan(project="shop", version=1, digest="", created_us=0, views={"taps": view})


def value(rng, name):
    if rng.random() < 0.1:
        return None
    match name:
        case "x" | "f":
            return rng.choice([0.1, -0.0, 1e9, 1e-300, float("nan"), float("inf"), -2.5])
        case "i":
            return rng.choice([0, -1, 2**58, 7])
        case "s":
            return rng.choice(["", "a", "é", "zzzzzzzzz", "\0"])
        case "y":
            return rng.choice([b"", b"\0", b"\xff" * 9])
        case "d" | "w":
            return Decimal(rng.choice([0, -1, 999_999_999])).scaleb(-3)
        case "b":
            return rng.choice([True, False])
        case "at":
            return dt.datetime.fromtimestamp(rng.randrange(10**9), dt.UTC)
        case _:
            return dt.date(2024, 2, rng.randrange(1, 29))


def write_history(folder, *, topic_id="t", count=160, ids=False):
    """Events of four keys, on edges, some late, some sent twice; as an event log of one partition."""
    rng = random.Random(3)
    ts, arrival, now = [], [], START_US
    for _ in range(count):
        now += rng.choice([0, 1, MINUTE_US, 7 * MINUTE_US])
        late = rng.choice([0, 0, 0, 1, 3 * MINUTE_US, 2 * HOUR_US, 30 * HOUR_US])
        edge = rng.choice([now, now // HOUR_US * HOUR_US, now // (5 * MINUTE_US) * 5 * MINUTE_US - 1])
        ts.append(edge - late)
        arrival.append(now)
    names = {"x": "stored_x"}
    columns = {
        names.get(name, name): pa.array([value(rng, name) for _ in ts], kind) for name, (_, _, kind) in COLUMNS.items()
    }
    events = pa.table(
        {
            "card": pa.array([rng.choice(["a", "b", "c", None, "d"]) for _ in ts]),
            "ts": pa.array(ts, pa.int64()).cast(STAMP),
            **({"id": pa.array([f"e{rng.randrange(count // 3)}" for _ in ts])} if ids else {}),
            **columns,
            "_offset": pa.array(range(count), pa.int64()),
            "_arrival": pa.array(arrival, pa.int64()).cast(STAMP),
        }
    )
    write_events(folder / "taps", events, topic_id=topic_id, partition=0, first=0, last=count - 1)
    return max(arrival)


def test_every_function_and_type_agrees(store, tmp_path):
    """Definition, offline join and reader give the same bits, over all functions and types, late events included."""
    write_history(tmp_path)
    plan = plan_of(list(aggregations()))
    found = verify(plan, plan.view("taps"), store, repo=tmp_path, per_key=8)
    assert found.differences == ()
    assert found.keys == 4
    assert found.compared == 4 * 8 * len(plan.view("taps").features)


def few():
    return [each for each in aggregations() if each.column == "x" and each.function in ("count", "sum", "last")]


def test_events_that_were_sent_again_count_once(store, tmp_path):
    """Duplicates within the declared horizon are left out on every path."""
    write_history(tmp_path, ids=True)
    topic = Topic(
        name="taps",
        bootstrap_servers="",
        message_format="json",
        event_id="id",
        event_id_horizon_us=HOUR_US,
    )
    plan = plan_of(few(), topic)
    assert verify(plan, plan.view("taps"), store, repo=tmp_path, per_key=8).differences == ()


def test_what_a_views_function_makes_is_verified_too(store, tmp_path):
    """Its columns are aggregated on every path; an event on which it fails counts on none."""
    write_history(tmp_path)
    source = "def f(c):\n    return {'half': [None if i is None else 100 // i for i in c['i']]}"
    transform = Transform(
        function=Function(name="f", source=source),
        mode="python",
        inputs=(Field(name="i", dtype="INT64"),),
        outputs=(Field(name="half", dtype="INT64"),),
    )
    some = [
        msgspec.structs.replace(each, column="half", feature=f"half_{each.function}_{each.window_us}")
        for each in aggregations()
        if each.column == "i" and each.function in ("count", "sum", "max")
    ]
    plan = plan_of([msgspec.structs.replace(each, column="i") for each in some])
    view = msgspec.structs.replace(plan.view("taps"), transform=transform, aggregations=tuple(some))
    plan = msgspec.structs.replace(plan, views={"taps": view})
    found = verify(plan, view, store, repo=tmp_path, per_key=6)
    assert (found.differences, found.keys) == ((), 4)


def test_an_event_log_whose_arrivals_nobody_named_is_a_history_too(store, tmp_path):
    """Late events are no differences: each path has those that had arrived."""
    write_history(tmp_path)
    plan = plan_of(few())
    source = msgspec.structs.replace(plan.view("taps").source, created_field=None)
    plan = msgspec.structs.replace(plan, views={"taps": msgspec.structs.replace(plan.view("taps"), source=source)})
    found = verify(plan, plan.view("taps"), store, repo=tmp_path, per_key=8)
    assert (found.differences, found.keys) == ((), 4)


def test_a_plain_file_without_arrivals_is_a_history_too(store, tmp_path):
    """Where nothing tells when an event arrived, it arrived when it happened."""
    write_history(tmp_path)
    log = pq.read_table(tmp_path / "taps", partitioning=None).drop_columns(PROVENANCE.names)
    plan = plan_of(few())
    source = msgspec.structs.replace(plan.view("taps").source, created_field=None, path="plain.parquet")
    view = msgspec.structs.replace(plan.view("taps"), source=source)
    pq.write_table(log, tmp_path / "plain.parquet")
    plan = msgspec.structs.replace(plan, views={"taps": view})
    found = verify(plan, view, store, repo=tmp_path, per_key=8)
    assert (found.differences, found.keys) == ((), 4)


FAULTS = {
    "a wrong hop offline": (windowed_chunk, "window_start", lambda t, w, h: t // (2 * h) * 2 * h - w),
    "an exclusive start offline": (windowed_chunk, "window_start", lambda t, w, h: t // h * h - w + 1),
    "a wrong hop in the reader": (read, "tiles_of", lambda t, w, h: ((t - w) // h + 1, t // h)),
    "a definition of its own": (definition, "_plain", lambda value: value),
}


@pytest.mark.parametrize("fault", list(FAULTS))
def test_planted_faults_of_one_path_are_caught(monkeypatch, store, tmp_path, fault):
    """Whichever path is wrong, the others tell."""
    write_history(tmp_path)
    plan = plan_of(few())
    monkeypatch.setattr(*FAULTS[fault])
    assert verify(plan, plan.view("taps"), store, repo=tmp_path).differences


def test_planted_lost_roll_up_is_caught(monkeypatch, store, tmp_path):
    """A stream that forgets passed heads serves other values than the history has."""
    write_history(tmp_path)
    true = ShardState._heads_after

    def faulty(self, layout, part, own, read):
        heads, rolled = true(self, layout, part, own, read)
        return heads, type(rolled)(rolled.entity[:0], rolled.tile[:0], rolled.slots[:0])

    plan = plan_of(few())
    monkeypatch.setattr(ShardState, "_heads_after", faulty)
    assert verify(plan, plan.view("taps"), store, repo=tmp_path).differences


def test_views_without_windows_are_refused(store, tmp_path):
    """There is nothing to prove about a newest row here."""
    plan = plan_of(few())
    view = msgspec.structs.replace(plan.view("taps"), kind="latest")
    with pytest.raises(UsageError, match="windowed"):
        verify(plan, view, store, repo=tmp_path)


def test_the_live_store_is_compared_where_asked(store, tmp_path):
    """A store that holds the history agrees; one that lacks an event does not."""
    now_us = write_history(tmp_path) + 1
    plan = plan_of(few())
    view = plan.view("taps")

    history = read_history(view, tmp_path)
    feed = _Feed(plan, view, history, 0, ShardStore(store, lambda: now_us), [now_us])
    feed.up_to(now_us - 10 * HOUR_US)
    assert verify_online(plan, view, store, repo=tmp_path, clock=lambda: now_us).differences
    feed.up_to(now_us)
    found = verify_online(plan, view, store, repo=tmp_path, clock=lambda: now_us)
    assert (found.differences, found.compared) == ((), 4 * len(view.features))


@pytest.fixture
def repo(tmp_path):
    folder = tmp_path / "feature_repo"
    folder.mkdir()
    (folder / "feature_store.yaml").write_text("project: shop\nregistry: ../data/registry.db\n")
    return folder


def invoke(*words):
    app = typer.Typer()
    app.command()(command)
    return CliRunner().invoke(app, list(words))


def test_the_command_exits_1_where_a_value_differs(monkeypatch, repo):
    """It prints how much was compared, and what differs; it needs no online store."""

    write_history(repo)
    write_plan_file(settings_of(repo).plan_path, plan_of(few()))
    sound = invoke("taps", "--repo", str(repo))
    assert sound.exit_code == 0, sound.output
    assert "compared by bits, 0 differ" in sound.output
    monkeypatch.setattr(*FAULTS["a wrong hop offline"])
    faulty = invoke("taps", "--repo", str(repo))
    assert faulty.exit_code == 1
    assert "definition" in faulty.output
    assert "offline" in faulty.output


def withheld_plan():
    """Numbers dropped, text masked: beyond the view's clearance."""
    some = [
        msgspec.structs.replace(each, params=PARAMS | {"max_bytes": 64.0})
        for each in aggregations()
        if (each.column, each.function) in {("x", "count"), ("x", "sum"), ("s", "count_distinct"), ("s", "last")}
    ]
    plan = plan_of(some)
    view = msgspec.structs.replace(plan.view("taps"), withheld={"stored_x": "dropped", "s": "masked"})
    return msgspec.structs.replace(plan, views={"taps": view})


def test_what_is_beyond_a_clearance_is_withheld_on_every_path(store, tmp_path):
    """Definition, offline join and reader agree on what is left: no number, and digests of texts."""
    write_history(tmp_path)
    plan = withheld_plan()
    found = verify(plan, plan.view("taps"), store, repo=tmp_path, per_key=8)
    assert (found.differences, found.keys) == ((), 4)


def test_a_path_that_shows_what_is_withheld_is_found(store, tmp_path, monkeypatch):
    """The planted fault: the stream folds what it was to withhold."""
    write_history(tmp_path)
    monkeypatch.setattr("streaming.fitting.withhold", lambda events, _: events)
    plan = withheld_plan()
    assert verify(plan, plan.view("taps"), store, repo=tmp_path, per_key=8).differences
