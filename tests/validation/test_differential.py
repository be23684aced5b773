"""Do compiled rules answer as Great Expectations does?

Every supported expectation, with its options, on dirty, clean, empty and all-null batches: success and all counts of
the row function, of the DuckDB statement and of Great Expectations are compared.
"""

import datetime as dt
import math
import random
from itertools import product
from typing import Any

import msgspec
import pyarrow as pa
import pytest
from great_expectations.expectations.registry import list_registered_expectation_implementations

from validation import expectation
from validation.compiled import rows, statement
from validation.compiled.batch import compile_batch
from validation.compiled.rows import BROKEN, FILTERED, MISSING, compile_rows
from validation.contract import Column, Contract, Rule
from validation.suite import judge
from validation.verdict import RuleVerdict, Verdict

NAN, INF = float("nan"), float("inf")
T = [dt.datetime(2024, 3, 10, hour, tzinfo=dt.UTC) for hour in range(24)]

COLUMNS = {
    "x": "number",
    "y": "number",
    "i": "integer",
    "j": "integer",
    "n": "integer",
    "s": "string",
    "r": "string",
    "b": "boolean",
    "t": "timestamp",
    "u": "timestamp",
    "d": "date",
    "_x y;'\"\n": "number",
}
TYPES = {
    "x": pa.float64(),
    "y": pa.float32(),
    "i": pa.int64(),
    "j": pa.int32(),
    "n": pa.int16(),
    "s": pa.string(),
    "r": pa.large_string(),
    "b": pa.bool_(),
    "t": pa.timestamp("us", "UTC"),
    "u": pa.timestamp("ns"),
    "d": pa.date32(),
    "_x y;'\"\n": pa.float64(),
}
DIRTY: dict[str, list[Any]] = {
    "x": [1.0, None, NAN, INF, -INF, -0.0, 0.0, 1e300, 5e-324, 2.5, 2.5, 10.0],
    "y": [1.0, 0.5, None, 3.0, NAN, 0.0, 0.0, 7.5, 8.0, 2.5, 2.5, 9.0],
    "i": [1, None, 3, -4, 5, 0, None, 7, 7, 2**53 + 1, -(2**53) - 1, 9],
    "j": [1, 2, 3, -4, 6, 0, 0, 7, 8, 5, 4, 9],
    "n": [1, 0, None, 6, -4, 2, None, -5, None, 1, 1, -9],
    "s": ["AA", None, "", "Ünïcode", "a\nb", "AA\n", "it's", '"; DROP', "AA", "b1", "%_", "9"],
    "r": ["AA", "x", None, "Ünïcode", "zz", "AA\n", "", "B", "AA", "b1", "AAA2", "9"],
    "b": [True, False, None, True, True, False, None, True, True, False, False, True],
    "t": [*T[:4], None, None, *T[6:12]],
    "u": [T[0], T[5], None, T[3], T[1], None, *T[7:12], T[10]],
    "d": [T[0].date(), None, *[dt.date(2024, 3, day) for day in range(1, 11)]],
    "_x y;'\"\n": [1.0, None, 3.0, 4.0, 5.0, 6.0, 7.0, 8.0, 9.0, 10.0, 11.0, 12.0],
}
CLEAN = {name: [values[0]] * 3 for name, values in DIRTY.items()}


def table(data: dict[str, list[Any]]) -> pa.Table:
    """A table of the test's schema."""
    naive = {**data, "u": [value and value.replace(tzinfo=None) for value in data["u"]]}
    return pa.table({name: pa.array(naive[name], TYPES[name]) for name in COLUMNS})


def many(rows: int) -> dict[str, list[Any]]:
    """So many rows of the same dirt, each column shuffled for itself."""
    draw = random.Random(11)
    return {name: [draw.choice(values) for _ in range(rows)] for name, values in DIRTY.items()}


TABLES = {
    "dirty": table(DIRTY),
    "many": table(many(3_000)),
    "clean": table(CLEAN),
    "empty": table({name: [] for name in COLUMNS}),
    "all null": table({name: [None] * 4 for name in COLUMNS}),
}


def condition(column: str, operator: str, parameter: object) -> dict[str, object]:
    """A row condition as Great Expectations serialises it."""
    return {"type": "comparison", "column": {"name": column}, "operator": operator, "parameter": parameter}


BOUNDS: list[dict[str, Any]] = [
    {"min_value": low, "max_value": high, "strict_min": strict_low, "strict_max": strict_high}
    for low, high in ((0, 5), (0.0, 2.5), (None, 2.5), (1, None), (2.5, 2.5), (-0.5, 7.5))
    for strict_low, strict_high in product((False, True), repeat=2)
]
INSTANT_BOUNDS = [
    {"min_value": "2024-03-10T03:00:00Z", "max_value": "2024-03-10T08:00:00+00:00"},
    {"min_value": "2024-03-10T03:00:00", "strict_min": True},
    {"max_value": "2024-03-05", "strict_max": True},
]
CONDITIONS = [
    condition("j", ">", 2),
    condition("x", "!=", 2.5),
    condition("s", "==", "AA"),
    condition("s", "NOT_IN", ["AA", "it's"]),
    condition("i", "IN", [1, 7]),
    {"type": "nullity", "column": {"name": "s"}, "is_null": False},
    {"type": "and", "conditions": [condition("j", "<", 9), condition("y", ">=", 0.5)]},
    {
        "type": "or",
        "conditions": [condition("j", "<=", 0), {"type": "nullity", "column": {"name": "i"}, "is_null": True}],
    },
]
PATTERNS = [
    "^[A-Z]{2}$",
    "A",
    r"^\w+$",
    "^.b",
    "^a.b$",
    "(?i)aa",
    r"\.",
    "^(?:AA|b1)$",
    "b$|^9",
    "[^A-Z]",
    "%_",
    "é|ï",
    "x?",
]


Cases = list[tuple[str, dict[str, Any]]]
VALUES = "expect_column_values_to_"


def of_values() -> Cases:
    """Nulls, ranges, sets, patterns and lengths of one column."""
    of: Cases = [
        (f"{VALUES}{kind}", {"column": column}) for column, kind in product(COLUMNS, ("not_be_null", "be_null"))
    ]
    of += [(f"{VALUES}be_between", {"column": c, **bounds}) for c, bounds in product("xi", BOUNDS[::3])]
    of += [(f"{VALUES}be_between", {"column": c, **bounds}) for c, bounds in product("yj", BOUNDS[1::5])]
    of += [(f"{VALUES}be_between", {"column": c, **bounds}) for c, bounds in product("tud", INSTANT_BOUNDS)]
    for kind in ("be_in_set", "not_be_in_set"):
        of += [(f"{VALUES}{kind}", {"column": c, "value_set": [0, 1, 2.5, 7, 2**60]}) for c in "xyij"]
        of += [(f"{VALUES}{kind}", {"column": c, "value_set": ["AA", "it's", ""]}) for c in "sr"]
        of += [(f"{VALUES}{kind}", {"column": "b", "value_set": [True]})]
        of += [(f"{VALUES}{kind}", {"column": c, "value_set": ["2024-03-10T03:00:00Z"]}) for c in "tu"]
        of += [(f"{VALUES}{kind}", {"column": "x", "value_set": []})]
    for kind, pattern in product(("match_regex", "not_match_regex"), PATTERNS):
        of.append((f"{VALUES}{kind}", {"column": "s" if len(of) % 2 else "r", "regex": pattern}))
    for match_on in ("any", "all"):
        of.append((f"{VALUES}match_regex_list", {"column": "s", "regex_list": ["^A", "A$"], "match_on": match_on}))
    of.append((f"{VALUES}not_match_regex_list", {"column": "s", "regex_list": ["^A", r"\d"]}))
    for bounds in ({"min_value": 1, "max_value": 2}, {"max_value": 2, "strict_max": True}, {"min_value": 2}):
        of += [("expect_column_value_lengths_to_be_between", {"column": c, **bounds}) for c in "sr"]
    of += [("expect_column_value_lengths_to_equal", {"column": c, "value": 2}) for c in "sr"]
    of += [(f"{VALUES}be_unique", {"column": c}) for c in COLUMNS]
    return of


def of_pairs() -> Cases:
    """Two columns of one row."""
    of: Cases = []
    greater, equal = "expect_column_pair_values_a_to_be_greater_than_b", "expect_column_pair_values_to_be_equal"
    for ignore in ("both_values_are_missing", "either_value_is_missing", "neither"):
        for a, b in (("x", "y"), ("i", "j"), ("t", "u"), ("y", "y")):
            pair = {"column_A": a, "column_B": b, "ignore_row_if": ignore}
            of += [(greater, {**pair, "or_equal": True}), (greater, pair), (equal, pair)]
        of.append((equal, {"column_A": "s", "column_B": "r", "ignore_row_if": ignore}))
        for tolerance in (0, 3600, 7200.5):
            ahead = {"column_A": "t", "column_B": "u", "tolerance_s": tolerance, "ignore_row_if": ignore}
            of.append(("expect_column_pair_values_a_to_not_be_ahead_of_b", ahead))
    return of


def of_several() -> Cases:
    """Several columns of one row, and keys of several columns."""
    of: Cases = []
    for ignore in ("all_values_are_missing", "any_value_is_missing", "never"):
        for columns in (["x", "y"], ["n", "j"]):
            arguments = {"column_list": columns, "sum_total": 2, "ignore_row_if": ignore}
            of.append(("expect_multicolumn_sum_to_equal", arguments))
        for columns, kind in product(
            (["s", "r"], ["x", "y"], ["i", "j"]),
            (
                "expect_multicolumn_values_to_be_equal",
                "expect_select_column_values_to_be_unique_within_record",
                "expect_compound_columns_to_be_unique",
            ),
        ):
            of.append((kind, {"column_list": columns, "ignore_row_if": ignore}))
    return of


def of_tables() -> Cases:
    """Statistics of a column, and the table itself."""
    of: Cases = []
    for name in ("mean", "min", "max", "sum", "median", "stdev"):
        of += [(f"expect_column_{name}_to_be_between", {"column": c, "min_value": 0, "max_value": 5}) for c in "xyij"]
    for name in ("unique_value_count", "proportion_of_unique_values", "proportion_of_non_null_values"):
        of += [(f"expect_column_{name}_to_be_between", {"column": c, "min_value": 1}) for c in "xyijstb"]
    of += [("expect_table_row_count_to_be_between", {"min_value": 1, "max_value": 12})]
    of += [("expect_table_row_count_to_equal", {"value": 12}), ("expect_column_to_exist", {"column": "x"})]
    of += [
        ("expect_table_columns_to_match_set", {"column_set": ["x"], "exact_match": exact}) for exact in (True, False)
    ]
    return of


def with_conditions(of: Cases) -> Cases:
    """Every fifth case again, under one of the row conditions."""
    some = [(type_, arguments) for type_, arguments in of if "table" not in type_ and "to_exist" not in type_][::5]
    return [
        (type_, {**arguments, "row_condition": CONDITIONS[n % len(CONDITIONS)]})
        for n, (type_, arguments) in enumerate(some)
        if "proportion" not in type_
    ]


def of_schema() -> Cases:
    """Types, multiples and bounds of values, as the contract's schema states them."""
    of: Cases = []
    for column, kind in product("xyijnsrb", ("string", "integer", "number", "boolean")):
        of.append((f"{VALUES}conform_to_schema", {"column": column, "shape": {"logicalType": kind}}))
    for c, kind in product("tud", ("timestamp", "date")):
        of.append((f"{VALUES}conform_to_schema", {"column": c, "shape": {"logicalType": kind}}))
    for column, options in (
        *(("i", {"multipleOf": 7}), ("j", {"multipleOf": 2}), ("x", {"multipleOf": 0.5}), ("i", {"format": "i8"})),
        *(("x", {"minimum": 0}), ("n", {"format": "u8"}), ("y", {"exclusiveMaximum": 2.5})),
    ):
        kind = {"x": "number", "y": "number"}.get(column, "integer")
        shape = {"logicalType": kind, "logicalTypeOptions": options}
        of.append((f"{VALUES}conform_to_schema", {"column": column, "shape": shape}))
    for physical in ("INT", "SMALLINT", "DECIMAL(4,1)"):
        of.append((f"{VALUES}conform_to_schema", {"column": "i", "shape": {"physicalType": physical}}))
    sized = {"logicalType": "string", "physicalType": "VARCHAR(2)"}
    return [*of, *((f"{VALUES}conform_to_schema", {"column": c, "shape": sized}) for c in "sr")]


def mostly(of: Cases) -> Cases:
    """Every fifth case again, with a share that suffices."""
    return [
        (type_, {**arguments, "mostly": (0.0, 0.5, 0.75, 0.9)[n % 4]}) for n, (type_, arguments) in enumerate(of[1::5])
    ]


def cases() -> Cases:
    """Every supported expectation with its options."""
    by_row = of_values() + of_schema() + of_pairs() + of_several()
    return by_row + of_tables() + with_conditions(by_row + of_tables()) + mostly(by_row)


CASES = cases()
CONTRACT = Contract(
    name="differential",
    version="1",
    source="s",
    columns=tuple(Column(name=name, logical_type=kind) for name, kind in COLUMNS.items()),
    rules=tuple(Rule(id=f"{n}", expectation=type_, arguments=arguments) for n, (type_, arguments) in enumerate(CASES)),
)


ONE_JUDGE = pytest.mark.xdist_group("judged by great expectations")
"""One process judges all batches, once: it takes half a minute."""


@pytest.fixture(scope="module")
def judged() -> dict[str, Verdict]:
    """What Great Expectations says of each table."""
    return {name: judge(CONTRACT, data, samples=5) for name, data in TABLES.items()}


def differences(ours: Verdict, theirs: Verdict) -> list[str]:
    """Rules on which two verdicts differ."""
    return [
        f"{rule.expectation} {rule.arguments}: {told(a, rule)} != {told(b, rule)}"
        for rule, a, b in zip(CONTRACT.rules, ours.rules, theirs.rules, strict=True)
        if told(a, rule) != told(b, rule)
    ]


def told(verdict: RuleVerdict, rule: Rule) -> tuple[object, ...]:
    """What is compared of a rule's verdict.

    The library does not say how many rows a statistic's row condition left: there, no data and bad data look alike.
    """
    observed = verdict.observed if isinstance(verdict.observed, int | float) else None
    if isinstance(observed, float):
        observed = None if math.isnan(observed) else float(f"{observed:.12g}")
    return (
        ("row_condition" in rule.arguments and verdict.evaluated is None) or verdict.outcome,
        *(verdict.success, verdict.evaluated, verdict.unexpected, verdict.percent, observed),
        verdict.reason,
    )


@ONE_JUDGE
@pytest.mark.parametrize("name", TABLES)
def test_a_batch_is_judged_by_duckdb_as_by_great_expectations(name: str, judged: dict[str, Verdict]) -> None:
    """Success, outcome, counts, percentages and observed values of every case are equal."""
    ours = compile_batch(CONTRACT, python_rows=0).run(TABLES[name], samples=5)
    assert differences(ours, judged[name]) == []
    assert not [rule.reason for rule in ours.rules if rule.outcome == "broken"]
    small = compile_batch(CONTRACT).run(TABLES[name], samples=5)
    assert differences(small, judged[name]) == [], "a small batch is judged by the row function"
    for by_sql, by_row in zip(ours.rules, small.rules, strict=True):
        assert str(by_sql.samples) == str(by_row.samples), by_sql.rule_id  # as text: NaN is NaN there


@ONE_JUDGE
@pytest.mark.parametrize("name", TABLES)
def test_events_are_judged_as_by_great_expectations(name: str, judged: dict[str, Verdict]) -> None:
    """Of every rule about rows, the masks have as many bits as Great Expectations finds unexpected rows."""
    check, events = compile_rows(CONTRACT), TABLES[name].to_pylist()
    tally = check.tally(check.check(events))
    for bit, (rule, theirs) in enumerate(zip(CONTRACT.rules, judged[name].rules, strict=True)):
        if rule.id not in check.unjudged:
            assert tally[bit] == theirs.unexpected, rule
            codes = [check.judge(bit)(event, None) for event in events]  # type: ignore[misc]
            assert codes.count(BROKEN) == theirs.unexpected, rule
            assert len(codes) - codes.count(FILTERED) == theirs.rows, rule
            assert len(codes) - codes.count(FILTERED) - codes.count(MISSING) == theirs.evaluated, rule


@ONE_JUDGE
@pytest.mark.parametrize("name", TABLES)
def test_rows_are_rejected_by_duckdb_as_by_great_expectations(name: str, judged: dict[str, Verdict]) -> None:
    """One statement names the rows that break each rule: as many as the library counts, the same as the row function.

    With hundreds of rules a row's mask takes many words.
    """
    rules = tuple(
        msgspec.structs.replace(rule, mode="quarantine" if meaning.by_row else "warn")
        for rule, meaning in zip(CONTRACT.rules, CONTRACT.expectations(), strict=True)
    )
    check = compile_batch(msgspec.structs.replace(CONTRACT, rules=rules), python_rows=0)
    accepted, rejected = check.split(TABLES[name])
    assert accepted.num_rows + len(rejected) == TABLES[name].num_rows
    for rule, theirs in zip(rules, judged[name].rules, strict=True):
        if rule.mode == "quarantine":
            assert sum(rule.id in ids for ids in rejected.values()) == theirs.unexpected, rule
    slow = compile_rows(msgspec.structs.replace(CONTRACT, rules=rules))
    masks = slow.check(TABLES[name].to_pylist())
    assert rejected == {
        row: slow.ids(mask & slow.quarantine_mask) for row, mask in enumerate(masks) if mask & slow.quarantine_mask
    }


def test_every_compiled_expectation_is_among_the_cases() -> None:
    """No supported expectation escapes the comparison; types and drift are compared elsewhere."""
    elsewhere = {"expect_column_values_to_be_of_type", "expect_table_to_not_drift", "expect_column_to_not_drift"}
    assert set(expectation.COMPILED) - {type_ for type_, _ in CASES} == elsewhere


def test_at_least_thirty_expectations_are_compared() -> None:
    """Types of expectations, not cases: those that are compiled and compared with the library here."""
    assert len({type_ for type_, _ in CASES} & set(expectation.COMPILED)) >= 30


def test_types_are_judged_as_by_great_expectations() -> None:
    """The library judges a typed column by its type alone, without counts: success is compared.

    Booleans are left out as integers: they are, for the library, where nulls stand among them, and are not elsewhere.
    """
    of_type = "expect_column_values_to_be_of_type"
    rules = [
        Rule(id=f"{column} {type_}", expectation=of_type, arguments={"column": column, "type_": type_})
        for column, type_ in product("xijsrb", ("str", "int", "float", "bool"))
        if (column, type_) != ("b", "int")
    ]
    contract = msgspec.structs.replace(CONTRACT, rules=tuple(rules))
    theirs, ours = judge(contract, TABLES["dirty"]), compile_batch(contract, python_rows=0).run(TABLES["dirty"])
    assert [(r.rule_id, r.success) for r in ours.rules] == [(r.rule_id, r.success) for r in theirs.rules]
    check, events = compile_rows(contract), TABLES["dirty"].to_pylist()
    tally = check.tally(check.check(events))
    assert [count == 0 for count in tally] == [rule.success for rule in theirs.rules]


def test_the_listed_expectations_are_those_of_the_library() -> None:
    """What is accepted in a contract is what Great Expectations has, and one of ours."""
    library = set(list_registered_expectation_implementations())
    known = set(expectation.COMPILED) | set(expectation.JUDGED_BY_GE)
    assert known == library - {"unexpected_rows_expectation"}


@pytest.mark.parametrize(
    ("fault", "replacement"),
    [("<=", "<"), ("IS NOT NULL", "IS NULL"), ("TRUE)", "FALSE)"), ("\\z", "")],
)
def test_a_planted_fault_in_the_sql_is_seen(
    fault: str, replacement: str, judged: dict[str, Verdict], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The comparison can fail: statements with one operator changed give other answers."""
    ask = statement.Statement._ask

    def faulty(self: Any, what: str, clauses: str = "") -> Any:
        self._selection.parameters = {
            name: value.replace(fault, replacement) if isinstance(value, str) else value
            for name, value in self._selection.parameters.items()
        }
        return ask(self, what.replace(fault, replacement), clauses)

    monkeypatch.setattr(statement.Statement, "_ask", faulty)
    assert differences(compile_batch(CONTRACT, python_rows=0).run(TABLES["dirty"]), judged["dirty"])


@pytest.mark.parametrize(("fault", "replacement"), [("<=", "<"), ("is not None and", "is None and"), ("not in", "in")])
def test_a_planted_fault_in_the_row_function_is_seen(
    fault: str, replacement: str, judged: dict[str, Verdict], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The comparison can fail: a generated function with one operator changed gives other masks."""
    define = rows._define
    monkeypatch.setattr(
        rows,
        "_define",
        lambda lines, ns, parameters: define([x.replace(fault, replacement) for x in lines], ns, parameters),
    )
    check = compile_rows(CONTRACT)
    tally = check.tally(check.check(TABLES["dirty"].to_pylist()))
    theirs = [0 if rule.rule_id in check.unjudged else rule.unexpected for rule in judged["dirty"].rules]
    assert tally != theirs
