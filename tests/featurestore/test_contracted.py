"""Which rows of a source does its contract let through, before they are loaded?"""

import json
import os
import tracemalloc
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from featurestore.offline.connection import Limits, connection
from featurestore.offline.contracted import judge_source
from featurestore.offline.event_log import write_events
from featurestore.offline.pull import newest_rows
from featurestore.offline.sources import scan_parquet, scan_table
from validation.compiled.batch import compile_batch
from validation.contract import Column, Contract, Rule
from validation.quarantine import read_quarantine

STAMP = pa.timestamp("us", "UTC")
BETWEEN = "expect_column_values_to_be_between"
NOT_NULL = "expect_column_values_to_not_be_null"


def rule(rule_id: str, type_: str, mode: Any, **arguments: object) -> Rule:
    return Rule(id=rule_id, expectation=type_, arguments=arguments, mode=mode)


def contract(*rules: Rule) -> Contract:
    columns = {"k": "string", "x": "number", "ts": "timestamp", "made": "timestamp"}
    made = tuple(Column(name=name, logical_type=kind) for name, kind in columns.items())
    return Contract(name="c", version="1.0.0", source="s", columns=made, rules=rules)


POSITIVE = contract(rule("positive", BETWEEN, "quarantine", column="x", min_value=0))


def rows(x: list[Any], first: int = 0, keys: str = "") -> pa.Table:
    """One row a second from `first` on; all of key "a" where no keys are given."""
    ts = pa.array([None if value == "undated" else second * 1_000_000 for second, value in enumerate(x, first)], STAMP)
    values = [1.0 if value == "undated" else value for value in x]
    return pa.table({"k": list(keys) or ["a"] * len(x), "x": pa.array(values, pa.float64()), "ts": ts})


@pytest.fixture
def source(tmp_path: Path) -> Any:
    """A folder source: `judge` a range of seconds, `newest` of what was accepted, `aside` as (file, row, rules)."""

    class Source:
        folder = tmp_path / "source"
        quarantine = tmp_path / "quarantine"

        def write(self, name: str, table: pa.Table) -> Path:
            path = self.folder / name
            path.parent.mkdir(parents=True, exist_ok=True)
            pq.write_table(table, path, row_group_size=1_000)
            return path

        def judge(self, of: Contract, start: int = 0, end: int = 10**6, scan: Any = None, **rest: Any) -> Any:
            scan = scan or scan_parquet(self.folder, repo=tmp_path, name="source 's'")
            bounds = (start * 1_000_000, end * 1_000_000)
            return judge_source(scan, of, "ts", *bounds, limits=Limits(), quarantine=self.quarantine, **rest)

        def newest(self, judged: Any) -> dict[str, Any]:
            table, _ = newest_rows(judged.accepted, ["k"], ["x"], "ts", None, 0, 10**12, fields={}, limits=Limits())
            return dict(zip(table["k"].to_pylist(), table["x"].to_pylist(), strict=True))

        def aside(self) -> list[tuple[str, int, list[str]]]:
            found = read_quarantine(self.quarantine)
            return [(Path(r["origin"]).name, r["offset"], r["rule_ids"]) for r in found.to_pylist()]

    return Source()


def test_a_row_that_is_set_aside_leaves_the_good_one_before_it(source: Any) -> None:
    """Judged before the newest is chosen: a key keeps its last good value. The row is kept whole, with file and row."""
    source.write("1.parquet", rows([1.0, -2.0], keys="ab"))
    source.write("2.parquet", rows([3.0, -4.0], first=2))
    judged = source.judge(POSITIVE)
    assert source.newest(judged) == {"a": 3.0}
    assert sorted(source.aside()) == [("1.parquet", 1, ["positive"]), ("2.parquet", 1, ["positive"])]
    kept = read_quarantine(source.quarantine).to_pylist()[0]
    assert {"k", "x", "ts"} == set(json.loads(kept["row"]))
    assert (judged.verdict.rows, len(judged.rejections)) == (4, 2)


def test_only_the_range_is_judged_and_ranges_of_one_file_keep_each_other(source: Any) -> None:
    """Rows elsewhere in time are another run's; what an earlier run set aside stays, and a repetition adds nothing."""
    mixed = pa.concat_tables([rows([-1.0], 0), rows([-2.0], 5), rows([1.0], 1), rows([-3.0], 6)])
    source.write("1.parquet", mixed)
    assert source.judge(POSITIVE, 0, 4).verdict.rows == 2
    assert [row for _, row, _ in source.aside()] == [0]
    for _ in range(2):
        source.judge(POSITIVE, 5, 9)
        assert [row for _, row, _ in source.aside()] == [0, 1, 3]


def test_rows_without_an_event_time_are_judged_by_every_run(source: Any) -> None:
    """They belong to no range; a rule that wants the time sees them."""
    source.write("1.parquet", rows([1.0, "undated"]))
    dated = contract(rule("dated", NOT_NULL, "block", column="ts"))
    verdict = source.judge(dated, 0, 100).verdict
    assert verdict.blocked == ("dated",)
    assert verdict.rule("dated").unexpected == 1


def test_what_blocks_sets_nothing_aside(source: Any) -> None:
    """A blocked batch is refused whole: nothing of it is in quarantine."""
    source.write("1.parquet", rows([-1.0, 2.0]))
    both = contract(*POSITIVE.rules, rule("small", BETWEEN, "block", column="x", max_value=1))
    assert source.judge(both).verdict.stops == ("small",)
    assert source.aside() == []


def test_bad_data_a_broken_check_and_no_data_are_three_outcomes(source: Any) -> None:
    """A quarantining rule whose column is gone stops the load: what it guards against cannot be told any more."""
    source.write("1.parquet", rows([-1.0]))
    assert source.judge(POSITIVE).verdict.outcome == "failed"
    assert source.judge(POSITIVE, 500, 600).verdict.outcome == "no data"
    gone = contract(rule("made", NOT_NULL, "quarantine", column="made"))
    verdict = source.judge(gone).verdict
    assert (verdict.outcome, verdict.stops) == ("broken", ("made",))
    assert "no column 'made'" in verdict.rule("made").reason


def test_arrival_is_when_the_file_landed(source: Any) -> None:
    """Rules about arrival hold for files too, each by its own time."""
    ahead = contract(
        rule("ahead", "expect_column_pair_values_a_to_not_be_ahead_of_b", "quarantine", column_A="ts", tolerance_s=5)
    )
    for name, landed in (("1.parquet", 10), ("2.parquet", 20)):
        os.utime(source.write(name, rows([1.0], first=18)), (landed, landed))
    source.judge(ahead)
    assert source.aside() == [("1.parquet", 0, ["ahead"])]


def test_rules_that_sql_cannot_judge_set_rows_aside_all_the_same(source: Any) -> None:
    """A pattern of Python's alone is judged by the row function, piece by piece, and its rows join the others'."""
    source.write("1.parquet", rows([1.0, -1.0, 1.0, -1.0], keys="aábñ"))
    word = contract(
        *POSITIVE.rules,
        rule("plain", "expect_column_values_to_match_regex", "quarantine", column="k", regex="(?a)^\\w$"),
    )
    judged = source.judge(word)
    assert [ids for _, _, ids in source.aside()] == [["positive", "plain"], ["positive", "plain"]]
    assert source.newest(judged) == {"a": 1.0, "b": 1.0}


@pytest.mark.parametrize("layout", ["folders", "table", "log"])
def test_every_kind_of_source_is_split_alike(layout: str, source: Any, tmp_path: Path) -> None:
    """Hive folders, rows in memory, and an event log whose files overlap: each row once, in = accepted + set aside."""
    data, scan = rows([1.0, -2.0, 3.0, -4.0], keys="abab"), None
    if layout == "folders":
        source.write("day=1/1.parquet", data.slice(0, 2))
        source.write("day=2/1.parquet", data.slice(2))
    elif layout == "table":
        scan = scan_table(data, name="rows")
    else:
        log = data.append_column("_offset", pa.array(range(4), pa.int64())).append_column("_arrival", data["ts"])
        write_events(source.folder, log, topic_id="t", partition=0, first=0, last=3)
        write_events(source.folder, log.slice(1, 2), topic_id="t", partition=0, first=1, last=2)
    judged = source.judge(POSITIVE, scan=scan)
    assert (judged.verdict.rows, len(judged.rejections)) == (4, 2)
    assert source.newest(judged) == {"a": 3.0}
    assert len(source.aside()) == 2


def test_verdicts_are_those_of_the_same_rows_in_memory(source: Any) -> None:
    """Every count and sample but the row numbers agrees with the batch's; dirt and several files included."""
    rng = np.random.default_rng(3)
    x = np.where(rng.random(5_000) < 0.1, np.nan, rng.normal(0, 1, 5_000))
    data = rows(x.tolist()).set_column(0, "k", pa.array(rng.integers(0, 50, 5_000).astype(str)))
    for part in range(3):
        source.write(f"{part}.parquet", data.slice(part * 2_000, 2_000))
    c = contract(
        *POSITIVE.rules,
        rule("there", NOT_NULL, "warn", column="x", mostly=0.95),
        rule("unique", "expect_compound_columns_to_be_unique", "warn", column_list=["k", "ts"]),
        rule("mean", "expect_column_mean_to_be_between", "warn", column="x", min_value=-1, max_value=1),
        rule("word", "expect_column_values_to_match_regex", "warn", column="k", regex="\\d"),
        rule("many", "expect_table_row_count_to_be_between", "warn", min_value=5_000, max_value=5_000),
    )
    told = source.judge(c).verdict
    theirs = compile_batch(c, python_rows=0).run(data)
    for ours, other in zip(told.rules, theirs.rules, strict=True):
        assert (ours.success, ours.rows, ours.evaluated, ours.unexpected, ours.percent) == (
            *(other.success, other.rows, other.evaluated, other.unexpected, other.percent),
        )
        assert [str(sample.values) for sample in ours.samples] == [str(sample.values) for sample in other.samples]
    assert told.rule("mean").observed == pytest.approx(theirs.rule("mean").observed)


def test_a_million_bad_rows_are_set_aside_piece_by_piece(source: Any) -> None:
    """Python holds a piece at a time, and the ranges of the pieces follow one another without a gap."""
    count = 60_000
    source.write("1.parquet", rows(np.full(count, -1.0).tolist()))
    tracemalloc.start()
    judged = source.judge(POSITIVE)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert len(judged.rejections) == count
    assert read_quarantine(source.quarantine).num_rows == count
    ranges = sorted(tuple(map(int, path.stem.split("-")[2:])) for path in (source.quarantine / "s").glob("*.parquet"))
    assert [first for first, _ in ranges[1:]] == [last + 1 for _, last in ranges[:-1]]
    assert peak < 100_000_000


def test_a_planted_loss_is_noticed(source: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Conservation is asserted: a row that is told twice as rejected fails the load."""
    source.write("1.parquet", rows([-1.0, 2.0]))
    honest = type(compile_batch(POSITIVE)).rejections

    def doubled(self: Any, given: Any) -> Any:
        found = honest(self, given)
        return self.rejections_of([1, 1], np.repeat(found.numbers, 2))

    monkeypatch.setattr(type(compile_batch(POSITIVE)), "rejections", doubled)
    with pytest.raises(AssertionError, match="set aside"):
        source.judge(POSITIVE)


def test_numbers_point_into_their_files(source: Any, tmp_path: Path) -> None:
    """Every numbered row is the row of that number of that file."""
    for part in range(3):
        source.write(f"{part}.parquet", rows([float(part * 10 + n) for n in range(4)]))
    scan = scan_parquet(source.folder, repo=tmp_path, name="s")
    with connection(Limits()) as session:
        found = session.sql(f"SELECT _row >> 40, _row & {2**40 - 1}, x FROM {scan.register_numbered(session, 's')}")
        assert sorted(found.fetchall()) == [(part, n, part * 10.0 + n) for part in range(3) for n in range(4)]
