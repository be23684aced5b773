"""What can examples and tests judge? A small contract of orders, and two rows of which one breaks it."""

from typing import Final

import pyarrow as pa

from validation.compiled.batch import compile_batch
from validation.contract import Column, Contract, Rule
from validation.report import ViolationReport, report_of
from validation.verdict import Verdict

ORDERS: Final = Contract(
    name="orders",
    version="1.0.0",
    source="orders",
    columns=(
        Column(name="id", logical_type="string", classification="pii"),
        Column(name="amount", logical_type="number"),
        Column(name="at", logical_type="timestamp"),
    ),
    rules=(
        Rule(
            id="positive",
            expectation="expect_column_values_to_be_between",
            arguments={"column": "amount", "min_value": 0},
            severity="critical",
            mode="quarantine",
        ),
        Rule(
            id="id_form",
            expectation="expect_column_values_to_match_regex",
            arguments={"column": "id", "regex": "^[a-z]$"},
        ),
    ),
)
SMALL: Final = pa.table({"id": ["a", "b"], "amount": [1.0, -1.0], "at": pa.array([0, 1], pa.timestamp("us", "UTC"))})


def small_report(table: pa.Table, contract: Contract = ORDERS) -> tuple[Verdict, ViolationReport]:
    """The verdict on a table and its report."""
    verdict = compile_batch(contract).run(table)
    told = report_of(verdict, contract, report_id="r", now_us=0, boundary="producer", origin="orders.jsonl")
    return verdict, told
