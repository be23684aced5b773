"""A value that was served and does not hold offline is put down to its cause."""

from collections.abc import Mapping
from pathlib import Path

import msgspec
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from featurestore.errors import DefinitionError
from featurestore.monitor import skew_latest, skew_windowed
from featurestore.monitor.causes import Cause
from featurestore.monitor.served import HOUR_US, Answer, ServeLog, audit_rate, kept_rows, prune, read_served
from featurestore.monitor.skew import Part, Skew, audit
from featurestore.monitor.skew_history import SkewHistory, audit_hours, merged
from featurestore.offline import history
from featurestore.offline.event_log import ARRIVAL, OFFSET, write_events
from featurestore.offline.history import historical_features
from featurestore.offline.sources import Scan
from featurestore.offline.stored import scan_of
from featurestore.online.connection import StoreClient
from featurestore.online.reader import OnlineReader
from featurestore.online.result import Column, Status
from featurestore.online.writer import RowWriter
from featurestore.plan import (
    Aggregation,
    Field,
    Function,
    JoinKey,
    OnDemandView,
    Plan,
    Projection,
    Service,
    Source,
    Topic,
    View,
)

T = 1_700_000_000_000_000 // HOUR_US * HOUR_US + 60_000_000
MINUTE = 60_000_000
STAMP = pa.timestamp("us", "UTC")
KEY = JoinKey(entity="driver", name="driver", dtype="INT64")
RIDES = View(
    name="rides",
    version=1,
    kind="latest",
    join_keys=(KEY,),
    features=(Field(name="speed", dtype="DOUBLE"),),
    ttl_us=60 * MINUTE,
    source=Source(name="rides", path="rides.parquet", timestamp_field="ts", created_field="made"),
)
TRIPS = View(
    name="trips",
    version=1,
    kind="windowed",
    join_keys=(KEY,),
    features=(Field(name="fares", dtype="DOUBLE"),),
    ttl_us=0,
    source=Source(
        name="trips",
        path="log/trips",
        timestamp_field="ts",
        created_field=ARRIVAL,
        topic=Topic(name="trips", bootstrap_servers="nowhere:1", message_format="json"),
    ),
    columns=(Field(name="driver", dtype="INT64"), Field(name="fare", dtype="DOUBLE")),
    aggregations=(
        Aggregation(
            feature="fares",
            column="fare",
            column_dtype="DOUBLE",
            function="sum",
            dtype="DOUBLE",
            window_us=60 * MINUTE,
            hop_us=5 * MINUTE,
        ),
    ),
)
DOUBLED = OnDemandView(
    name="doubled",
    features=(Field(name="twice", dtype="DOUBLE"),),
    request=(Field(name="plus", dtype="DOUBLE"),),
    inputs=(Projection(view="rides", features=("speed",)),),
    mode="python",
    singleton=True,
    function=Function(
        name="twice",
        source="def twice(row):\n    speed = row['speed']\n"
        "    return {'twice': None if speed is None else 2 * speed + row['plus']}\n",
    ),
)
SERVICE = Service(
    name="eta",
    projections=(
        Projection(view="rides", features=("speed",)),
        Projection(view="trips", features=("fares",)),
        Projection(view="doubled", features=("twice",)),
    ),
    tags={"audit_rate": "1"},
)
READS = SERVICE.projections[:2]


def plan(**changes: View) -> Plan:
    views = {"rides": RIDES, "trips": TRIPS} | changes
    return Plan(
        project="p", version=1, digest="", created_us=0, views=views, on_demand={"doubled": DOUBLED},
        services={"eta": SERVICE},
    )  # fmt: skip


def rides(*rows: tuple[int, int, int | None, float | None]) -> pa.Table:
    """driver, event time, created, speed."""
    driver, ts, made, speed = zip(*rows, strict=True)
    return pa.table(
        {
            "driver": pa.array(driver, pa.int64()),
            "ts": pa.array(ts, STAMP),
            "made": pa.array(made, STAMP),
            "speed": pa.array(speed, pa.float64()),
        }
    )


def log_trips(repo: Path, *rows: tuple[int, int, int, float], partition: int = 0) -> None:
    """driver, event time, arrival, fare; in the order of their offsets."""
    driver, ts, arrival, fare = zip(*rows, strict=True)
    events = pa.table(
        {
            "driver": pa.array(driver, pa.int64()),
            "ts": pa.array(ts, STAMP),
            "fare": pa.array(fare, pa.float64()),
            OFFSET: pa.array(range(len(rows)), pa.int64()),
            ARRIVAL: pa.array(arrival, STAMP),
        }
    )
    write_events(repo / "log" / "trips", events, topic_id="t", partition=partition, first=0, last=max(len(rows) - 1, 0))


@pytest.fixture
def repo(tmp_path: Path) -> Path:
    """A repo with one ride of drivers 1 and 2, and two trips of each."""
    pq.write_table(
        rides((1, T - MINUTE, T - MINUTE, 10.0), (2, T - MINUTE, T - MINUTE, 20.0)), tmp_path / "rides.parquet"
    )
    log_trips(
        tmp_path,
        *((driver, T - ago * MINUTE, T - ago * MINUTE, 1.0) for ago in (20, 10) for driver in (1, 2)),
    )
    return tmp_path


class Bench:
    """Serves from a real store what is loaded into it, and audits what was served against the repo."""

    def __init__(self, store: StoreClient, repo: Path) -> None:
        self.store, self.repo = store, repo

    def load(self, table: pa.Table, view: View = RIDES) -> None:
        RowWriter(self.store, "p", view, clock=lambda: T).write(table, event_timestamp="ts", created="made")

    def answer(
        self,
        drivers: list[int],
        *,
        fares: Mapping[int, float] | None = None,
        given: Mapping[str, list[object]] | None = None,
    ) -> Answer:
        """An answer as of T: rides from the store; the windows' values as known then, `fares` in their place."""
        serving = plan()
        read = OnlineReader(self.store, serving, clock=lambda: T).read([READS[0]], {"driver": drivers})
        speed = read.columns[0]
        asked = pa.table({"driver": drivers, "event_timestamp": pa.array([T] * len(drivers), pa.int64()).cast(STAMP)})
        known = historical_features(serving, [READS[1]], asked, repo=self.repo, as_known=True)["fares"].to_pylist()
        told = [(fares or {}).get(driver, value) for driver, value in zip(drivers, known, strict=True)]
        windows = Column(
            view="trips", feature="fares", dtype="DOUBLE", held=pa.array(told, pa.float64()),
            statuses=np.full(len(drivers), Status.PRESENT, np.uint8),
            event_us=np.full(len(drivers), T - 10 * MINUTE), instant_us=np.full(len(drivers), T),
        )  # fmt: skip
        values = speed.to_python()
        twice = [None if value is None else 2 * value + 1.0 for value in values]
        went_out = {("rides", "speed"): values, ("trips", "fares"): told, ("doubled", "twice"): twice}
        for name, replaced in (given or {}).items():
            view, _, feature = name.partition(":")
            went_out[view, feature] = replaced
        return Answer(
            plan=serving, service="eta", requested_us=T, reads=READS, read=(speed, windows),
            keys={"driver": drivers}, request={"plus": [1.0] * len(drivers)}, given=went_out,
        )  # fmt: skip

    def audit(self, answer: Answer, now: Plan | None = None) -> dict[str, Skew]:
        log = ServeLog(self.repo / "served", lambda: T, writer="w")
        log.add(answer)
        log.flush()
        found = {}
        served = read_served(self.repo / "served", T - HOUR_US, T + HOUR_US)
        parts = [Part(shape, T // HOUR_US * HOUR_US, table) for shape, table in served]
        for skew in audit(parts, now or plan(), repo=self.repo).skews:
            found[skew.feature] = skew
        return found


@pytest.fixture
def bench(store: StoreClient, repo: Path) -> Bench:
    """A store that holds what the repo has."""
    made = Bench(store, repo)
    made.load(pq.read_table(repo / "rides.parquet"))
    return made


def causes(found: dict[str, Skew]) -> dict[str, dict[Cause, int]]:
    return {name: skew.differing for name, skew in found.items() if skew.differing}


def append(repo: Path, *rows: tuple[int, int, int | None, float | None]) -> None:
    path = repo / "rides.parquet"
    pq.write_table(pa.concat_tables([pq.read_table(path), rides(*rows)]), path)


def test_what_holds_has_no_cause(bench: Bench) -> None:
    """Stored, windowed and computed values that agree are counted as compared."""
    found = bench.audit(bench.answer([1, 2, 3]))
    assert causes(found) == {}
    assert {name: skew.compared for name, skew in found.items()} == {"speed": 3, "fares": 3, "twice": 3}


def test_a_row_that_arrived_later_is_a_late_event(bench: Bench) -> None:
    """It is older than the answer, and was created after it; what is computed from it has the same cause."""
    append(bench.repo, (1, T - 1, T + MINUTE, 99.0))
    assert causes(bench.audit(bench.answer([1, 2]))) == {"speed": {Cause.LATE_EVENT: 1}, "twice": {Cause.LATE_EVENT: 1}}


def test_a_row_corrected_later_is_a_correction(bench: Bench) -> None:
    """At the event time that was served, created after the answer."""
    append(bench.repo, (1, T - MINUTE, T + MINUTE, 99.0))
    assert causes(bench.audit(bench.answer([1])))["speed"] == {Cause.CORRECTION: 1}


@pytest.mark.parametrize("event_us", [T - 1, T - MINUTE])
def test_a_known_row_that_was_not_loaded_is_a_lag(bench: Bench, event_us: int) -> None:
    """A newer row, or a correction, that existed when the answer was given."""
    append(bench.repo, (1, event_us, T - 1, 99.0))
    assert causes(bench.audit(bench.answer([1])))["speed"] == {Cause.MATERIALIZATION_LAG: 1}


def test_a_row_of_a_key_that_was_never_loaded_is_a_lag(bench: Bench) -> None:
    """The store said NOT_FOUND."""
    append(bench.repo, (7, T - 1, T - 1, 99.0))
    assert causes(bench.audit(bench.answer([7])))["speed"] == {Cause.MATERIALIZATION_LAG: 1}


def test_another_ttl_is_told(bench: Bench) -> None:
    """The store lets a row expire that the definition still trusts."""
    rows = rides((5, T - 50 * MINUTE, T - 50 * MINUTE, 5.0))
    append(bench.repo, (5, T - 50 * MINUTE, T - 50 * MINUTE, 5.0))
    bench.load(rows)
    answer = bench.answer([5])
    speed = answer.read[0]
    expired = Column(
        view="rides", feature="speed", dtype="DOUBLE", held=pa.nulls(1, pa.float64()),
        statuses=np.array([Status.OUTSIDE_MAX_AGE], np.uint8), event_us=speed.event_us, instant_us=speed.instant_us,
    )  # fmt: skip
    given = dict(answer.given) | {("rides", "speed"): [None]}
    answer = msgspec.structs.replace(answer, read=(expired, answer.read[1]), given=given)
    assert causes(bench.audit(answer))["speed"] == {Cause.TTL: 1}


def test_a_view_that_is_defined_otherwise_now_is_told(bench: Bench) -> None:
    """Its values, and those computed from them, are not blamed on the data."""
    append(bench.repo, (1, T - 1, T + MINUTE, 99.0))
    changed = plan(rides=msgspec.structs.replace(RIDES, ttl_us=MINUTE))
    found = causes(bench.audit(bench.answer([1, 2]), changed))
    assert found == {"speed": {Cause.DEFINITION: 2}, "twice": {Cause.DEFINITION: 2}}


def test_a_default_that_went_out_is_told(bench: Bench) -> None:
    """The caller got another value than was read, by the service's policy."""
    found = causes(bench.audit(bench.answer([1, 9], given={"rides:speed": [10.0, -1.0]})))
    assert found["speed"] == {Cause.DEFAULT: 1}


def test_a_late_event_of_a_window_is_told(bench: Bench) -> None:
    """It lies in the window and arrived after the answer."""
    answer = bench.answer([1])
    log_trips(bench.repo, (1, T - 5 * MINUTE, T + MINUTE, 50.0), partition=1)
    assert causes(bench.audit(answer)) == {"fares": {Cause.LATE_EVENT: 1}}


def test_events_in_flight_are_told(bench: Bench) -> None:
    """Two events of one key had arrived in two partitions; the value that was served lacks the last of one."""
    answer = bench.answer([1], fares={1: 2.0 + 4.0})
    log_trips(bench.repo, (1, T - 40_000_000, T - 30_000_000, 4.0), (1, T - 3, T - 2, 8.0), partition=1)
    assert causes(bench.audit(answer)) == {"fares": {Cause.IN_FLIGHT: 1}}


@pytest.mark.parametrize("served", [3.0, 1.0])
def test_a_window_that_nothing_explains_is_unknown(bench: Bench, served: float) -> None:
    """A sum that no state of the log gives, and one that lacks an event of ten minutes ago."""
    assert causes(bench.audit(bench.answer([1], fares={1: served}))) == {"fares": {Cause.UNKNOWN: 1}}


def test_a_value_that_nothing_explains_is_unknown(bench: Bench) -> None:
    """The source never held it: the planted fault that every other cause must not swallow."""
    bench.load(rides((1, T - MINUTE + 1, T - MINUTE + 1, 77.0)))
    assert causes(bench.audit(bench.answer([1])))["speed"] == {Cause.UNKNOWN: 1}


def test_an_incomplete_window_is_not_compared(bench: Bench) -> None:
    """It was told to be incomplete."""
    answer = bench.answer([1], fares={1: 0.5})
    windows = answer.read[1]
    told = Column(
        view="trips", feature="fares", dtype="DOUBLE", held=windows.held, event_us=windows.event_us,
        statuses=np.array([Status.INCOMPLETE], np.uint8), instant_us=windows.instant_us,
    )  # fmt: skip
    found = bench.audit(msgspec.structs.replace(answer, read=(answer.read[0], told)))
    assert causes(found) == {}
    assert (found["fares"].compared, found["fares"].incomplete) == (0, 1)


def test_examples_say_what_was_served_and_what_holds(bench: Bench) -> None:
    """With key, instant and plan version, and no more than a few."""
    append(bench.repo, (1, T - 1, T - 1, 99.0))
    skew = bench.audit(bench.answer([1] * 9))["speed"]
    examples = skew.examples[Cause.MATERIALIZATION_LAG]
    assert (skew.differing[Cause.MATERIALIZATION_LAG], len(examples)) == (9, 5)
    assert (examples[0].key, examples[0].served, examples[0].offline) == ({"driver": 1}, 10.0, 99.0)


def test_whole_keys_are_kept_at_the_rate() -> None:
    """A key is kept always or never, and of many keys about the declared share."""
    keys = {"driver": list(range(20_000))}
    kept = kept_rows(keys, 0.1)
    assert 1_800 < len(kept) < 2_200
    again = kept_rows({"driver": list(reversed(range(20_000)))}, 0.1)
    assert sorted(19_999 - row for row in again) == kept
    assert kept_rows(keys, 0.0) == []


@pytest.mark.parametrize("text", ["1.5", "-0.1", "often", "nan"])
def test_a_rate_that_is_no_share_is_refused(text: str) -> None:
    """The message names the service and the tag."""
    with pytest.raises(DefinitionError, match="audit_rate"):
        audit_rate(msgspec.structs.replace(SERVICE, tags={"audit_rate": text}))


def test_the_log_is_bounded_and_counts_what_it_drops(bench: Bench) -> None:
    """Rows beyond the bound are dropped, never the caller's time."""
    log = ServeLog(bench.repo / "served", lambda: T, writer="w", kept_rows=3)
    assert [log.add(bench.answer([1, 2])) for _ in range(2)] == [2, 0]
    assert log.counters == {"seen": 4, "kept": 2, "dropped": 2}


def test_old_hours_are_pruned(bench: Bench) -> None:
    """Hours that ended before the instant go, the others stay."""
    log = ServeLog(bench.repo / "served", lambda: T, writer="w")
    log.add(bench.answer([1]))
    log.flush()
    assert prune(bench.repo / "served", T) == 0
    assert prune(bench.repo / "served", T + HOUR_US) == 1
    assert list(read_served(bench.repo / "served", 0, T + HOUR_US)) == []


def served_parts(repo: Path) -> list[Part]:
    return [
        Part(shape, table["requested"][0].as_py() // HOUR_US * HOUR_US, table)
        for shape, table in read_served(repo / "served", 0, T + HOUR_US)
    ]


def several_hours(bench: Bench) -> list[Part]:
    """Answers of three hours, of which each has faults of its own kind."""
    log = ServeLog(bench.repo / "served", lambda: T, writer="w")
    append(bench.repo, (1, T - 1, T + MINUTE, 99.0), (2, T - 1, T - 1, 98.0))
    answers = [bench.answer([1, 2, 3]), bench.answer([1, 2], fares={1: 6.0, 2: 0.5}), bench.answer([1])]
    log_trips(bench.repo, (1, T - 40_000_000, T - 30_000_000, 4.0), (1, T - 3, T - 2, 8.0), partition=1)
    for ago, answer in enumerate(answers):
        log.add(msgspec.structs.replace(answer, requested_us=T - ago * HOUR_US))
    log.flush()
    return served_parts(bench.repo)


def test_answers_are_audited_together_as_one_by_one(bench: Bench) -> None:
    """Whatever is read together: counts, causes and examples are those of each answer alone."""
    parts = several_hours(bench)
    assert len(parts) == 3
    rows = [
        Part(shape, hour_us, table.slice(row, 1)) for shape, hour_us, table in parts for row in range(table.num_rows)
    ]
    alone = merged(skew for row in rows for skew in audit([row], plan(), repo=bench.repo).skews)
    together = merged(audit(parts, plan(), repo=bench.repo).skews)
    assert sorted(alone, key=repr) == sorted(together, key=repr)
    assert {cause for skew in together for cause in skew.differing} == {
        Cause.LATE_EVENT, Cause.MATERIALIZATION_LAG, Cause.IN_FLIGHT, Cause.UNKNOWN,
    }  # fmt: skip


def test_an_audit_reads_a_source_once_however_many_answers_there_are(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Values of all hours in one read; of a windowed view's causes one more as known, and one of the keys' events."""
    parts = several_hours(bench)
    reads: list[str] = []

    def scan(view: View, **more: object) -> Scan:
        reads.append(view.name)
        return scan_of(view, **more)  # type: ignore[arg-type]

    for module in (history, skew_latest, skew_windowed):
        monkeypatch.setattr(module, "scan_of", scan)
    audit(parts, plan(), repo=bench.repo)
    assert sorted(reads) == ["rides"] * 2 + ["trips"] * 3


def test_a_view_that_cannot_be_read_starves_no_other(bench: Bench) -> None:
    """Its features are left out, with those computed from it; the others are audited, and its history stays."""
    parts = several_hours(bench)
    known = SkewHistory(bench.repo / "skew")
    hours = {"repo": bench.repo, "start_us": T - 3 * HOUR_US, "end_us": T + 1, "clock": lambda: T}
    first = audit_hours(bench.repo / "served", known, plan(), **hours)  # type: ignore[arg-type]
    assert (len(first.audited), first.failed) == (len(parts), {})
    (bench.repo / "rides.parquet").unlink()
    again = audit_hours(bench.repo / "served", known, plan(), **hours)  # type: ignore[arg-type]
    assert {name: "rides.parquet" in str(error) for name, error in again.failed.items()} == {"rides": True}
    found = audit(parts, plan(), repo=bench.repo)
    assert {skew.feature for skew in found.skews} == {"fares"}
    before, after = ([sorted(each.skews, key=repr) for each in done.audited] for done in (first, again))
    assert before == after


def test_hours_that_are_many_are_audited_in_turns(bench: Bench) -> None:
    """Memory is bounded: as many hours as hold so many answers are read together, with the same verdicts."""
    several_hours(bench)
    hours = {"repo": bench.repo, "start_us": T - 3 * HOUR_US, "end_us": T + 1, "clock": lambda: T}
    lines: list[str] = []
    hours |= {"say": lines.append}
    found = [
        audit_hours(bench.repo / "served", SkewHistory(bench.repo / name), plan(), at_once=size, **hours)  # type: ignore[arg-type]
        for name, size in (("one", 1), ("all", 1_000))
    ]
    assert [line for line in lines if "hours" in line] == [
        "1 answers of 1 hours", "2 answers of 1 hours", "3 answers of 1 hours", "6 answers of 3 hours"
    ]  # fmt: skip
    assert found[0].audited == found[1].audited
