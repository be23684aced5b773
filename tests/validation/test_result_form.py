"""Are compiled verdicts, as Great Expectations' result objects, what it would have said itself?"""

import time
from typing import Any

import msgspec
import pyarrow as pa
import pytest
from great_expectations.core.expectation_validation_result import ExpectationSuiteValidationResult

from validation.compiled.batch import compile_batch
from validation.contract import Rule
from validation.suite import ResultForm, validate
from validation.testing import ORDERS

US = pa.timestamp("us", "UTC")
MORE: dict[str, tuple[str, dict[str, Any]]] = {
    "present": ("column_values_to_not_be_null", {"column": "amount"}),
    "some": ("column_values_to_not_be_null", {"column": "amount", "mostly": 0.5}),
    "set": ("column_values_to_be_in_set", {"column": "id", "value_set": ["a", "c"]}),
    "mean": ("column_mean_to_be_between", {"column": "amount", "max_value": 0}),
    "rows": ("table_row_count_to_be_between", {"min_value": 1}),
    "unique": ("column_values_to_be_unique", {"column": "id"}),
    "key": ("compound_columns_to_be_unique", {"column_list": ["id", "amount"]}),
    "pair": ("column_pair_values_to_be_equal", {"column_A": "id", "column_B": "other"}),
    "columns": ("table_columns_to_match_set", {"column_set": ["id"]}),
}
CONTRACT = msgspec.structs.replace(
    ORDERS,
    columns=(*ORDERS.columns, msgspec.structs.replace(ORDERS.columns[0], name="other")),
    rules=(
        *ORDERS.rules,
        *(Rule(id=name, expectation=f"expect_{type_}", arguments=given) for name, (type_, given) in MORE.items()),
    ),
)
DIRTY: dict[str, list[Any]] = {
    "id": ["a", "b", None, "c", "c", "D"],
    "amount": [1.0, -1.0, None, -2.0, -2.0, float("nan")],
    "other": ["a", "x", None, None, "c", "D"],
}


def table(rows: int) -> pa.Table:
    """The first rows of the dirty table."""
    return pa.table(
        {
            **{
                name: pa.array(values[:rows], pa.float64() if name == "amount" else pa.string())
                for name, values in DIRTY.items()
            },
            "at": pa.array([0] * rows, US),
        }
    )


def essence(result: ExpectationSuiteValidationResult) -> dict[str, Any]:
    """What is compared of each rule, by its id."""
    found = {}
    for one in result.to_json_dict()["results"]:
        told = {
            key: value for key, value in one["result"].items() if key not in {"partial_unexpected_counts", "details"}
        }
        configuration = {key: one["expectation_config"][key] for key in ("type", "meta", "severity")}
        found[one["expectation_config"]["meta"]["rule_id"]] = (one["success"], told, configuration)
    return found


@pytest.mark.parametrize("python_rows", [0, 100])
@pytest.mark.parametrize("rows", [6, 1, 0])
def test_the_compiled_result_is_the_librarys(rows: int, python_rows: int) -> None:
    """Success, statistics, counts, percentages, samples, index and configuration of every rule."""
    theirs = validate(CONTRACT, table(rows))
    ours = ResultForm(CONTRACT).of(compile_batch(CONTRACT, python_rows=python_rows).run(table(rows)))
    assert isinstance(ours, ExpectationSuiteValidationResult)
    assert (ours.success, ours.statistics, ours.suite_name) == (theirs.success, theirs.statistics, theirs.suite_name)
    mine, others = essence(ours), essence(theirs)
    assert mine.keys() == others.keys()
    for rule_id, told in others.items():
        assert mine[rule_id] == told, rule_id


def test_a_rule_that_broke_says_so() -> None:
    """As the library does: not a success, with the exception's message."""
    ours = ResultForm(CONTRACT).of(compile_batch(CONTRACT).run(table(6).drop_columns(["other"])))
    (broken,) = [r for r in ours.results if r.expectation_config.meta["rule_id"] == "pair"]
    assert (broken.success, broken.exception_info["raised_exception"]) == (False, True)
    assert "no column 'other'" in broken.exception_info["exception_message"]


@pytest.mark.slow
def test_a_thousand_events_take_milliseconds() -> None:
    """The result object of 1,000 events: the best of ten within 20 ms."""
    check, form, events = compile_batch(CONTRACT), ResultForm(CONTRACT), pa.concat_tables([table(6)] * 167)
    best = float("inf")
    for _ in range(10):
        started = time.perf_counter()
        form.of(check.run(events))
        best = min(best, time.perf_counter() - started)
    assert best < 0.02
