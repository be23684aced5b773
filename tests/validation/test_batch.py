"""Is a batch judged rightly where SQL cannot, and are bad data, broken checks and no data told apart?"""

import datetime as dt
import threading
from typing import Any

import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from validation.compiled.batch import compile_batch
from validation.compiled.sql import re2
from validation.contract import Column, Contract, Rule
from validation.verdict import Verdict

BETWEEN = "expect_column_values_to_be_between"
NOT_NULL = "expect_column_values_to_not_be_null"


def contract(*rules: Rule, **columns: str) -> Contract:
    """A contract of rules over columns."""
    return Contract(
        name="c",
        version="1",
        source="s",
        columns=tuple(Column(name=name, logical_type=kind) for name, kind in columns.items()),
        rules=rules,
    )


def rule(id_: str, type_: str, mode: Any = "warn", **arguments: object) -> Rule:
    """A rule."""
    return Rule(id=id_, expectation=type_, arguments=arguments, mode=mode)


def test_the_outcomes_are_told_apart() -> None:
    """Broken goes before failed, failed before no data, no data before passed."""
    c = contract(rule("range", BETWEEN, column="x", min_value=0), x="number")
    check = compile_batch(c)
    assert check.run(pa.table({"x": [1.0]})).outcome == "passed"
    assert check.run(pa.table({"x": [-1.0]})).outcome == "failed"
    assert check.run(pa.table({"x": pa.array([], pa.float64())})).outcome == "no data"
    verdict = check.run(pa.table({"xx": [1.0]}))
    assert verdict.outcome == "broken"
    assert verdict.rule("range").reason == "no column 'x' in the batch; did you mean 'xx'?"
    assert verdict.rule("range").success is None


def test_only_failing_and_broken_rules_that_block_block() -> None:
    """A batch is blocked by rules whose mode says so."""
    c = contract(
        rule("a", BETWEEN, "block", column="x", min_value=0),
        rule("b", BETWEEN, "block", column="y", min_value=0),
        rule("c", BETWEEN, "warn", column="x", min_value=9),
        x="number",
        y="number",
    )
    assert compile_batch(c).run(pa.table({"x": [1.0], "y": [1.0]})).blocked == ()
    assert compile_batch(c).run(pa.table({"x": [-1.0]})).blocked == ("a", "b")


def test_samples_are_the_first_rows_and_few() -> None:
    """Of a million bad rows a report holds the first twenty, whole in the columns that the rule reads."""
    x = pa.array(range(100_000), pa.int64())
    c = contract(
        rule("r", BETWEEN, column="x", max_value=9),
        rule("u", "expect_column_values_to_be_unique", column="x"),
        x="integer",
    )
    told = compile_batch(c).run(pa.table({"y": x, "x": x})).rule("r")
    assert (told.unexpected, len(told.samples)) == (99_990, 20)
    assert [(sample.row, sample.values) for sample in told.samples[:2]] == [(10, {"x": 10}), (11, {"x": 11})]


CASES = [
    ("number", ["1.5", None, "x"], pa.string(), BETWEEN, {"min_value": 0}, 2),
    (
        "timestamp",
        ["2024-01-01T00:00:00Z", "2019-01-01T00:00:00Z", "soon"],
        pa.string(),
        BETWEEN,
        {"min_value": "2020-01-01"},
        2,
    ),
    ("timestamp", [0, 2_000_000_000_000_000, None], pa.int64(), BETWEEN, {"min_value": "2020-01-01"}, 1),
    ("string", ["a1", "a²", "b"], pa.string(), "expect_column_values_to_match_regex", {"regex": r"a\d"}, 2),
    ("string", [12, 5, None], pa.int64(), "expect_column_values_to_match_regex", {"regex": "^1"}, 1),
    ("number", [2**53 + 1, 2**53, None], pa.int64(), "expect_column_values_to_be_in_set", {"value_set": [2**53]}, 1),
    ("number", [1.0, float("nan"), None], pa.float64(), BETWEEN, {"max_value": 2**60 + 1}, 0),
    ("integer", [None, None], pa.null(), BETWEEN, {"max_value": 1}, 0),
]


@pytest.mark.parametrize(("logical", "values", "physical", "type_", "arguments", "unexpected"), CASES)
def test_rows_that_sql_would_judge_otherwise_are_judged_in_python(
    logical: str, values: list[Any], physical: pa.DataType, type_: str, arguments: dict[str, Any], unexpected: int
) -> None:
    """Other physical types, patterns that RE2 reads otherwise, constants that no float holds: as for events."""
    check = compile_batch(contract(rule("r", type_, column="x", **arguments), x=logical))
    table = pa.table({"x": pa.array(values, physical)})
    told = check.run(table).rule("r")
    assert told.unexpected == unexpected == sum(mask & 1 for mask in check.masks(table))
    assert told.outcome == ("failed" if unexpected else "passed")


def test_a_rule_that_cannot_be_computed_breaks_alone() -> None:
    """The mean of text is no number: that check broke, the others were made."""
    c = contract(
        rule("mean", "expect_column_mean_to_be_between", column="x", max_value=1),
        rule("nulls", NOT_NULL, column="x"),
        rule("trend", "expect_column_values_to_be_increasing", column="x"),
        x="number",
    )
    verdict = compile_batch(c).run(pa.table({"x": ["a", None]}))
    assert [told.outcome for told in verdict.rules] == ["broken", "failed", "broken"]
    assert "cannot be computed over x string" in verdict.rule("mean").reason
    assert "only Great Expectations can judge" in verdict.rule("trend").reason


def test_rules_without_a_compiled_form_go_to_the_fallback() -> None:
    """Only those, and their verdicts come back in their places."""
    c = contract(
        rule("trend", "expect_column_values_to_be_increasing", column="x"),
        rule("nulls", NOT_NULL, column="x"),
        x="number",
    )
    asked: list[str] = []

    def fallback(part: Contract, table: pa.Table) -> Verdict:
        asked.extend(r.id for r in part.rules)
        return compile_batch(contract(rule("trend", NOT_NULL, column="x"), x="number")).run(table)

    verdict = compile_batch(c).run(pa.table({"x": [1.0]}), fallback=fallback)
    assert asked == ["trend"]
    assert [told.rule_id for told in verdict.rules] == ["trend", "nulls"]


@settings(deadline=None, max_examples=50)
@given(st.lists(st.one_of(st.none(), st.floats(), st.sampled_from([0.0, 1.0, -1.0])), max_size=30))
def test_every_row_is_accepted_or_quarantined(values: list[float | None]) -> None:
    """In = accepted + quarantined: no row is lost, none is doubled, and exactly the breaking ones are aside."""
    c = contract(
        rule("range", BETWEEN, "quarantine", column="x", min_value=0, max_value=1),
        rule("nulls", NOT_NULL, "warn", column="x"),
        x="number",
    )
    table = pa.table({"x": pa.array(values, pa.float64()), "n": pa.array(range(len(values)), pa.int64())})
    accepted, rejected = compile_batch(c).split(table)
    assert accepted.num_rows + len(rejected) == table.num_rows
    assert set(accepted.column("n").to_pylist()) | set(rejected) == set(range(len(values)))
    expected = [n for n, x in enumerate(values) if x is not None and x == x and not 0 <= x <= 1]
    assert sorted(rejected) == expected
    assert all(ids == ("range",) for ids in rejected.values())


def test_column_names_and_values_are_no_sql() -> None:
    """A name with quotes and a value with a statement in it stay a name and a value."""
    name, value = 'x"; DROP TABLE batch; --', "'); ATTACH '/tmp/evil' AS e; --"
    c = contract(
        rule("set", "expect_column_values_to_be_in_set", column=name, value_set=[value]),
        rule("regex", "expect_column_values_to_not_match_regex", column=name, regex="zz"),
        **{name: "string"},
    )
    verdict = compile_batch(c).run(pa.table({name: [value, "other", "$p0"]}))
    assert (verdict.rule("set").unexpected, verdict.rule("regex").unexpected) == (2, 0)


def test_order_of_rows_and_columns_and_chunks_do_not_matter() -> None:
    """The same rows give the same counts, however they are laid out."""
    c = contract(
        rule("pair", "expect_column_pair_values_a_to_be_greater_than_b", column_A="x", column_B="y"),
        rule("key", "expect_compound_columns_to_be_unique", column_list=["x", "y"]),
        x="number",
        y="number",
    )
    table = pa.table({"x": [1.0, 2.0, None, 1.0], "y": [2.0, 1.0, 3.0, 2.0]})
    chunked = pa.concat_tables([table.slice(2).select(["y", "x"]).select(["x", "y"]), table.slice(0, 2)])
    one, two = (compile_batch(c).run(t.select(names)) for t, names in ((table, ["x", "y"]), (chunked, ["y", "x"])))
    assert [(r.unexpected, r.evaluated) for r in one.rules] == [(r.unexpected, r.evaluated) for r in two.rules]


def test_threads_do_not_mix_their_counts() -> None:
    """Eight threads on one compiled contract, each with tables of its own size: every count is right."""
    check = compile_batch(contract(rule("r", BETWEEN, column="x", min_value=0), x="integer"))
    wrong: list[tuple[int, object]] = []

    def judge(size: int) -> None:
        table = pa.table({"x": pa.array([-1] * size, pa.int64())})
        for _ in range(8):
            told = check.run(table).rule("r")
            if told.unexpected != size:
                wrong.append((size, told.unexpected))

    threads = [threading.Thread(target=judge, args=(size,)) for size in range(1, 9)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []


@pytest.mark.parametrize(
    "pattern", [r"\d", r"\bx", "(?=a)", "(?i)a", r"(a)\1", "a++", "é", "[[:alpha:]]", "a{1001}", "^a\\Z", "(?P<n>a)"]
)
def test_patterns_that_differ_between_the_dialects_are_not_translated(pattern: str) -> None:
    """Classes of Unicode, lookaround, flags, back references, possessive repeats: Python's answer is the answer."""
    assert re2(pattern) is None


def test_nanoseconds_and_naive_instants_are_floored_utc_microseconds() -> None:
    """A naive timestamp is UTC; what lies below a microsecond does not count."""
    at = dt.datetime(2024, 1, 1)
    table = pa.table({"t": pa.array([at], pa.timestamp("us")).cast(pa.timestamp("ns"))})
    c = contract(
        rule("r", BETWEEN, column="t", min_value="2024-01-01T00:00:00Z", max_value="2024-01-01"), t="timestamp"
    )
    assert compile_batch(c).run(table).outcome == "passed"
