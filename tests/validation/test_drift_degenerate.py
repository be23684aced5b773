"""Constant, empty, missing, infinite and huge columns: each has a defined answer, and none decides for another."""

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import special

import validation.drift.compare
import validation.drift.judge
from validation.drift import significance
from validation.drift.compare import DriftReport, Finding, compare_tables
from validation.drift.measures import Array
from validation.drift.multivariate import judge_rows
from validation.drift.rows import rows_of
from validation.profile.baseline import baseline_of

REFERENCE, CURRENT = 500, 200
GREATEST = np.finfo(np.float64).max


def numbers(values: Any) -> Callable[[int], pa.Array]:
    return lambda rows: pa.array(np.resize(np.asarray(values, np.float64), rows))


def one_reading(value: float) -> Callable[[int], pa.Array]:
    return lambda rows: pa.array(np.r_[value, np.sin(np.arange(rows - 1.0))])


def words(*texts: str | None, type_: pa.DataType | None = None) -> Callable[[int], pa.Array]:
    return lambda rows: pa.array([texts[row % len(texts)] for row in range(rows)], type_ or pa.string())


def integers(rows: int) -> pa.Array:
    return pa.array([2**64 - 1] * rows, pa.uint64())


def decimals(rows: int) -> pa.Array:
    return pa.array([10**70] * rows, pa.decimal256(76))


def nothing(type_: pa.DataType) -> Callable[[int], pa.Array]:
    return lambda rows: pa.nulls(rows, type_)


NUMBERS = {
    "constant": numbers([0.1]),
    "constant zero": numbers([0.0]),
    "two values": numbers([0.0, 1.0]),
    "one in a hundred": numbers([0.0] * 99 + [1.0]),
    "null": nothing(pa.float64()),
    "nan": numbers([math.nan]),
    "infinite": numbers([math.inf]),
    "infinite both ways": numbers([math.inf, -math.inf, math.nan]),
    "one infinite": one_reading(-math.inf),
    "one huge": one_reading(1e300),
    "the greatest": one_reading(GREATEST),
    "huge both ways": numbers([GREATEST, -GREATEST]),
    "huge": numbers([1e300]),
    "tiny": numbers([5e-324, 1e-310]),
    "integers": integers,
    "decimals": decimals,
}
WORDS = {
    "one word": words("a"),
    "empty word": words(""),
    "no word": nothing(pa.string()),
    "two words": words("a", "b"),
    "word or null": words("a", None),
    "dictionary": lambda rows: words("a", "b")(rows).dictionary_encode(),
    "view": words("a", type_=pa.string_view()),
    "true": lambda rows: pa.array([True] * rows),
    "no truth": nothing(pa.bool_()),
}
PAIRS = st.one_of(
    *(st.tuples(*[st.sampled_from([kind[name] for name in sorted(kind)])] * 2) for kind in (NUMBERS, WORDS)),
    st.tuples(st.sampled_from([*NUMBERS.values(), *WORDS.values()]), st.just(nothing(pa.null()))),
)


def found(report: DriftReport, feature: str) -> Finding:
    return next(one for one in report.findings if one.feature == feature)


def beside(reference: Callable[[int], pa.Array], current: Callable[[int], pa.Array]) -> tuple[pa.Table, pa.Table]:
    """A column beside one that moves by a standard deviation and one that does not move."""
    rng = np.random.default_rng(1)
    sides = [
        pa.table({"x": rng.standard_normal(rows) + shift, "still": rng.standard_normal(rows), "column": make(rows)})
        for rows, shift, make in ((REFERENCE, 0.0, reference), (CURRENT, 1.0, current))
    ]
    return sides[0], sides[1]


@given(PAIRS)
@settings(max_examples=60, deadline=None)
def test_a_degenerate_column_has_an_answer_and_decides_for_no_other(
    pair: tuple[Callable[[int], pa.Array], Callable[[int], pa.Array]],
) -> None:
    """Every number of the report is finite, the drift beside the column is told, and what is still is none."""
    report = compare_tables(*beside(*pair), seed=0, families=100)
    assert found(report, "x").verdict == "drift"
    assert found(report, "still").verdict == "none"
    assert report.calibration is not None
    assert report.calibration.threshold > 0.01
    for one in report.findings:
        told = [one.p, one.q, one.strength, *(size for each in one.measures for size in (each.effect, each.p))]
        assert all(math.isfinite(number) for number in told), one
    report.encode()


@pytest.mark.parametrize("name", sorted({*NUMBERS, *WORDS}))
def test_a_degenerate_column_that_stays_as_it_is_does_not_drift(name: str) -> None:
    """The same column on both sides is no drift, whatever is in it."""
    make = (NUMBERS | WORDS)[name]
    assert found(compare_tables(*beside(make, make), seed=0, families=100), "column").verdict == "none"


@pytest.mark.parametrize(
    ("before", "after", "effect"),
    [
        (numbers([5.0]), numbers([6.0]), "wasserstein_sd"),
        (numbers([5.0]), nothing(pa.float64()), "missing"),
        (numbers([5.0]), nothing(pa.null()), "missing"),
        (nothing(pa.float64()), numbers([5.0]), "missing"),
        (numbers([5.0]), numbers([math.inf]), "not_finite"),
        (numbers([math.nan]), numbers([5.0]), "not_finite"),
        (words("a"), words("b"), "new"),
        (words("a"), nothing(pa.null()), "missing"),
        (numbers([GREATEST, -GREATEST]), numbers([GREATEST]), "wasserstein_sd"),
        (numbers([0.0] * 99 + [1.0]), numbers([0.0] * 4 + [1.0]), "wasserstein_sd"),
    ],
)
def test_a_degenerate_column_that_changes_is_told(
    before: Callable[[int], pa.Array], after: Callable[[int], pa.Array], effect: str
) -> None:
    """A constant that moves, a column that becomes empty, one that comes to life: each by the effect that says so."""
    finding = found(compare_tables(*beside(before, after), seed=0, families=100), "column")
    assert (finding.verdict, finding.effect) == ("drift", effect)


def test_one_huge_value_in_the_reference_hides_no_shift_of_the_others() -> None:
    """A wrong reading of 1e300 makes the deviation no larger than the other values do."""
    rng = np.random.default_rng(2)
    before, after = np.r_[1e300, rng.standard_normal(999)], rng.standard_normal(400) + 0.5
    finding = found(compare_tables(pa.table({"x": before}), pa.table({"x": after}), seed=0), "x")
    assert finding.verdict == "drift"
    assert next(one.effect for one in finding.measures if one.name == "wasserstein_sd") == pytest.approx(0.5, abs=0.2)


def test_a_rank_test_of_one_value_says_nothing_at_any_window_size() -> None:
    """The variance of a constant is 0 whatever rounding leaves of it: p is 1."""
    sides = np.repeat(np.arange(100.0, 140.0), 200)[:, None], np.tile(np.arange(1.0, 201.0), 40)[:, None]
    scores = significance.low_scores(significance.mid_ranks(sides[0] + sides[1]))
    assert (significance.rank_test(*sides, scores) == 1.0).all()


def _rounded(reference: Array, current: Array, scores: Array) -> Array:
    """The former rank test: what rounding leaves of a mean is divided by what it leaves of a variance."""
    n, m = current.sum(-1), reference.sum(-1)
    pooled, size = reference + current, n + m
    mean = (pooled * scores).sum(-1) / size
    squares = (pooled * (scores - mean[..., None]) ** 2).sum(-1)
    variance = n * m / (size * (size - 1)) * squares
    moved = (current * scores).sum(-1) - n * mean
    p = 2 * special.ndtr(-np.abs(moved) / np.sqrt(np.maximum(variance, 1e-300)))
    return np.where(variance > 0, p, 1.0)


def test_a_rank_test_of_rounding_would_be_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    """Planted fault: without its guards a column of one value has a p-value of nearly 0 at some window sizes."""
    monkeypatch.setattr(significance, "rank_test", _rounded)
    with pytest.raises(AssertionError):
        test_a_rank_test_of_one_value_says_nothing_at_any_window_size()


def test_a_column_with_wrong_p_values_lowers_no_threshold_but_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where a test is wrong for one column, that one is ranked among its own null windows, and others alarm as ever."""
    rng = np.random.default_rng(3)
    sides = [
        pa.table({"bad": rng.standard_normal(rows), "x": rng.standard_normal(rows) + shift})
        for rows, shift in ((1_000, 0.0), (300, 0.5))
    ]
    right = validation.drift.judge.one_p

    def wrong(contrast: Any, *counts: Array) -> Array:
        p = right(contrast, *counts)
        return p**40 if contrast.feature == "bad" else p

    monkeypatch.setattr(validation.drift.compare, "one_p", wrong)
    report = compare_tables(*sides, seed=0)
    assert {one.feature: one.verdict for one in report.findings} == {"x": "drift", "bad": "none"}


@pytest.mark.parametrize("tests", [("mmd", "pca"), ("domain_classifier",)])
@pytest.mark.parametrize("name", ["constant", "null", "nan", "one huge", "no word", "word or null", "two words"])
def test_whole_rows_with_a_degenerate_column_have_an_answer(name: str, tests: tuple[str, ...]) -> None:
    """A column that is missing on one side only, or says nothing, is no error, and the shift beside it is told."""
    if "domain_classifier" in tests:
        pytest.importorskip("sklearn")
    make = (NUMBERS | WORDS)[name]
    whole = numbers([1.0]) if name in NUMBERS else words("a")
    for reference, current in ((make, whole), (whole, make)):
        sides = beside(reference, current)
        found = judge_rows(*sides, baseline_of(sides[0]), seed=0, rate=0.05, tests=tests)
        assert [one.name for one in found] == list(tests)
        assert all(math.isfinite(one.effect) for one in found)
        assert any(one.drifted for one in found)


def test_rows_without_columns_are_not_tested() -> None:
    """No feature, no test."""
    table = pa.table({"at": pa.array(range(50), pa.timestamp("us"))})
    assert judge_rows(table, table, baseline_of(table), seed=0, rate=0.05) == ()


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig"])
def test_rows_of_csv_json_lines_and_parquet_are_the_same_rows(tmp_path: Path, encoding: str) -> None:
    """A column of words such as NA is not one without values, zeros in front stay, and a mark is no data."""
    columns = {"word": ["NA", "null", "NaN"], "code": ["007", "010", "100"], "n": [1, None, 3], "x": [0.5, 1.5, None]}
    table = pa.table(columns)
    pq.write_table(table, tmp_path / "rows.parquet")
    csv = "word,code,n,x\nNA,007,1,0.5\nnull,010,,1.5\nNaN,100,3,\n"
    (tmp_path / "rows.csv").write_bytes(csv.encode(encoding))
    (tmp_path / "rows.jsonl").write_bytes("\n".join(map(json.dumps, table.to_pylist())).encode(encoding))
    for kind in ("csv", "jsonl", "parquet"):
        assert rows_of(tmp_path / f"rows.{kind}").table.equals(table), kind
