"""What becomes of batches that are torn, renamed, of other types, huge, nested, or of no encoding at all?"""

import gc
import math
import resource
import threading
from decimal import Decimal
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from validation.compiled.batch import compile_batch
from validation.compiled.relation import TableRows
from validation.compiled.rows import compile_rows
from validation.contract import Column, Contract, Rule
from validation.judging import judge_file
from validation.lines import UnreadableData
from validation.suite import judge

BETWEEN = "expect_column_values_to_be_between"
NOT_NULL = "expect_column_values_to_not_be_null"
IN_SET = "expect_column_values_to_be_in_set"


def contract(*rules: Rule, **columns: str) -> Contract:
    made = tuple(Column(name=name, logical_type=kind) for name, kind in columns.items())
    return Contract(name="c", version="1", source="s", columns=made, rules=rules)


def rule(rule_id: str, type_: str, mode: Any = "quarantine", **arguments: object) -> Rule:
    return Rule(id=rule_id, expectation=type_, arguments=arguments, mode=mode)


PROMISED = contract(
    rule("small", BETWEEN, column="n", max_value=9),
    rule("named", NOT_NULL, column="s"),
    rule("rows", "expect_table_row_count_to_be_between", "warn", min_value=1),
    n="integer",
    s="string",
)
GOOD = pa.table({"n": [1, 2, 3], "s": ["a", "b", "c"]})


def test_a_torn_file_is_unreadable_and_no_bad_data(tmp_path: Path) -> None:
    """Cut anywhere, it is told as what it is, with its name: never judged as a shorter file."""
    path = tmp_path / "s.parquet"
    pq.write_table(GOOD, path)
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) - 3])
    with pytest.raises(UnreadableData, match=r"s\.parquet"):
        judge_file(path, PROMISED, now_us=0)


@pytest.mark.parametrize("ending", [".parquet", ".csv", ".jsonl"])
def test_a_file_without_rows_is_no_data(ending: str, tmp_path: Path) -> None:
    """Not good, not bad; an empty file of any form."""
    path = tmp_path / f"s{ending}"
    if ending == ".parquet":
        pq.write_table(GOOD.slice(0, 0), path)
    else:
        path.write_text("n,s\n" if ending == ".csv" else "")
    outcome = judge_file(path, PROMISED, now_us=0)
    assert (outcome.verdict.outcome, outcome.accepted, outcome.quarantined) == ("no data", 0, 0)


def test_a_renamed_column_breaks_its_rules_alone() -> None:
    """The check broke, by name; the others are judged, and the order of columns does not matter."""
    renamed = GOOD.rename_columns(["nn", "s"]).select(["s", "nn"])
    verdict = compile_batch(PROMISED).run(renamed)
    assert {told.rule_id: told.outcome for told in verdict.rules} == {
        "small": "broken",
        "named": "passed",
        "rows": "passed",
    }
    assert compile_batch(PROMISED).run(GOOD.select(["s", "n"])).outcome == "passed"


@pytest.mark.parametrize("python_rows", [0, 100])
@pytest.mark.parametrize(
    ("values", "type_", "aside"),
    [
        ([1, 99, None], pa.int8(), [1]),
        ([1.0, 99.5, None], pa.float64(), [1]),
        (["1", "99", None], pa.string(), [0, 1]),
        ([Decimal("1.00"), Decimal("99.00"), None], pa.decimal128(6, 2), [1]),
        ([1, 2**64 - 1, None], pa.uint64(), [1]),
        ([1, 2**62, None], pa.int64(), [1]),
        ([True, False, None], pa.bool_(), []),
        ([[1], [99], None], pa.list_(pa.int64()), [0, 1]),
        ([{"x": 1}, {"x": None}, None], pa.struct([("x", pa.int64())]), [0, 1]),
        ([b"\xff\xfe", b"1", None], pa.binary(), [0, 1]),
        ([None, None, None], pa.null(), []),
    ],
    ids=str,
)
def test_a_column_of_another_type_is_judged_row_by_row(
    values: list[Any], type_: pa.DataType, aside: list[int], python_rows: int
) -> None:
    """What the rule cannot be applied to breaks it, nothing else does; statement, row function and split agree."""
    table = pa.table({"n": pa.array(values, type_), "s": ["a", "b", "c"]})
    check = compile_batch(PROMISED, python_rows=python_rows)
    assert sorted(check.split(table)[1]) == aside
    assert check.run(table).rule("small").unexpected == len(aside)
    masks = compile_rows(PROMISED).check(table.to_pylist())
    assert [row for row, mask in enumerate(masks) if mask & 1] == aside


@pytest.mark.parametrize("python_rows", [0, 100])
def test_nan_is_missing_and_infinities_are_numbers(python_rows: int) -> None:
    """As in Great Expectations: NaN breaks the null rule alone."""
    c = contract(rule("there", NOT_NULL, column="x"), rule("small", BETWEEN, column="x", max_value=1e308), x="number")
    table = pa.table({"x": [math.nan, math.inf, -math.inf, 0.0]})
    check = compile_batch(c, python_rows=python_rows)
    assert check.split(table)[1] == {0: ("there",), 1: ("small",)}
    ours, theirs = check.run(table), judge(c, table)
    assert [told.unexpected for told in ours.rules] == [told.unexpected for told in theirs.rules]


def test_events_hold_integers_of_any_size() -> None:
    """JSON knows no bound: an integer beyond 64 bits is compared exactly."""
    c = contract(
        rule("set", IN_SET, column="n", value_set=[2**80]),
        rule("small", BETWEEN, column="n", max_value=2**70),
        n="integer",
    )
    assert compile_rows(c).check([{"n": 2**80}, {"n": 2**80 + 1}, {"n": 2**70}, {"n": -(2**90)}]) == [2, 3, 1, 1]


def test_text_of_no_encoding_within_parquet_does_not_stop_the_batch(tmp_path: Path) -> None:
    """A column that lies about its encoding: the file is unreadable or judged, never a crash of the process."""
    raw = pa.Array.from_buffers(pa.string(), 1, [None, pa.py_buffer(b"\0\0\0\0\2\0\0\0"), pa.py_buffer(b"\xff\xfe")])
    path = tmp_path / "s.parquet"
    pq.write_table(pa.table({"n": [1], "s": raw}), path)
    with pytest.raises(UnreadableData, match=r"s\.parquet"):
        judge_file(path, PROMISED, now_us=0)


def test_nested_nulls_are_told_apart() -> None:
    """A null list is missing; a list that holds nulls is not. A struct of nulls is a value."""
    nested = pa.table(
        {
            "l": pa.array([None, [None], [], [1]], pa.list_(pa.int64())),
            "t": pa.array([None, {"x": None}, {"x": 1}, {"x": 2}], pa.struct([("x", pa.int64())])),
        }
    )
    c = contract(rule("l", NOT_NULL, column="l"), rule("t", NOT_NULL, column="t"), l="array", t="object")
    for python_rows in (0, 100):
        assert compile_batch(c, python_rows=python_rows).split(nested)[1] == {0: ("l", "t")}


def test_eight_threads_of_64_validations_are_all_right() -> None:
    """One compiled contract, tables of every size, the statement and the row function: every count is right."""
    checks = [compile_batch(PROMISED, python_rows=rows) for rows in (0, 100)]
    wrong: list[Any] = []

    def work(size: int) -> None:
        table = pa.table({"n": [99] * size + [1], "s": ["a"] * (size + 1)})
        for turn in range(64):
            check = checks[turn % 8 == 0]
            if turn % 16 == 0:
                check = checks[0]
            told = check.run(table)
            split = check.split(table)
            if told.rule("small").unexpected != size or len(split[1]) != size or split[0].num_rows != 1:
                wrong.append((size, told))

    threads = [threading.Thread(target=work, args=(size,)) for size in range(1, 9)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []


def grown_mb(validations: int) -> float:
    """How much the process grows while so many batches are judged, after a start that fills what is filled once."""
    check = compile_batch(PROMISED)
    table = pa.table({"n": [1, 99, 3], "s": ["a", None, "c"]})

    def run(times: int) -> None:
        for _ in range(times):
            check.run(table)
            check.split(table)

    run(200)
    gc.collect()
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    run(validations)
    return (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024


def test_memory_does_not_grow_with_validations() -> None:
    """Hundreds of batches take the room of one; the nightly run has a hundred thousand."""
    assert grown_mb(800) < 8


@pytest.mark.nightly
def test_memory_does_not_grow_over_a_hundred_thousand_validations() -> None:
    """The same, for as long as a service runs."""
    assert grown_mb(100_000) < 16


def test_a_million_violations_are_told_in_little() -> None:
    """Rows and reasons of a million rejected rows take a few bytes each, and are told in one statement."""
    count = 1_000_000
    table = pa.table({"n": pa.array([99], pa.int64()).take(pa.nulls(count, pa.int8()).fill_null(0))})
    c = contract(rule("small", BETWEEN, column="n", max_value=9), n="integer")
    check = compile_batch(c)
    with TableRows(table) as rows:
        rejected = check.rejections(rows)
    assert (len(rejected), rejected.reasons) == (count, (("small",),))
    assert rejected.numbers.nbytes + rejected.codes.nbytes == 16 * count
    assert len(check.run(table).rule("small").samples) == 20
