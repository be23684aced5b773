"""What does Great Expectations say of a contract's rules?

It is the language and the judge: a contract is an ExpectationSuite, and `validate` returns genuine results. This is the
one module that imports it (some 8 CPU-seconds); what serves or consumes uses `validation.compiled`, whose answers are
proved equal to these. Every call has a context and an asset of its own: one asset shared by threads mixes their counts.
"""

import datetime as dt
import json
from typing import Any, ClassVar, Final

import great_expectations as gx
import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
from great_expectations.core.expectation_validation_result import (
    ExpectationSuiteValidationResult,
    ExpectationValidationResult,
)
from great_expectations.core.metric_domain_types import MetricDomainTypes
from great_expectations.data_context.types.base import (
    DataContextConfig,
    InMemoryStoreBackendDefaults,
    ProgressBarsConfig,
)
from great_expectations.execution_engine import PandasExecutionEngine
from great_expectations.expectations.expectation import BatchExpectation, ColumnMapExpectation, ColumnPairMapExpectation
from great_expectations.expectations.expectation_configuration import ExpectationConfiguration
from great_expectations.expectations.metrics.map_metric_provider import (
    ColumnMapMetricProvider,
    ColumnPairMapMetricProvider,
    column_condition_partial,
    column_pair_condition_partial,
)
from great_expectations.expectations.metrics.metric_provider import metric_value
from great_expectations.expectations.metrics.table_metric_provider import TableMetricProvider

from validation.check import (
    ARRIVAL,
    INSTANTS,
    Across,
    Aggregate,
    Between,
    Check,
    Columns,
    Drift,
    Expectation,
    InSet,
    Null,
    Pair,
    Unique,
)
from validation.contract import Contract, Rule
from validation.drift.rule import drift_of
from validation.instant import to_us
from validation.instant_columns import as_micros
from validation.mixed import is_mixed, rows_of, values_of
from validation.shape import misfit_of
from validation.verdict import RuleVerdict, Sample, Verdict, broken, counted, stated

SAMPLES: Final = 20
_DRIFT_KEYS: Final = (
    *("column", "columns", "reference", "segments", "entities", "time_column", "block_hours", "family_rate", "seed"),
    *("wasserstein_sd", "cohens_w", "missing", "new"),
)
_EXACT_FLOAT: Final = 2**53
"""Integers up to here are exact as floats."""


class ColumnPairValuesNotAhead(ColumnPairMapMetricProvider):  # type: ignore[misc]  # untyped library
    """The metric behind `expect_column_pair_values_a_to_not_be_ahead_of_b`."""

    condition_metric_name = "column_pair_values.not_ahead"
    condition_domain_keys = (
        *("batch_id", "table", "column_A", "column_B", "row_condition", "condition_parser", "ignore_row_if"),
    )
    condition_value_keys = ("tolerance_s",)

    @column_pair_condition_partial(engine=PandasExecutionEngine)  # type: ignore[untyped-decorator]
    def _pandas(cls, column_A: Any, column_B: Any, **kwargs: Any) -> Any:  # noqa: N803, N805  # the library's names
        return column_A <= column_B + pd.Timedelta(seconds=kwargs.get("tolerance_s") or 0.0)


class ExpectColumnPairValuesAToNotBeAheadOfB(ColumnPairMapExpectation):  # type: ignore[misc]
    """Expect instants of column A to lie at most `tolerance_s` seconds after those of column B."""

    column_B: str = ARRIVAL  # noqa: N815  # the library calls the columns of a pair so
    tolerance_s: float = 0.0
    ignore_row_if: str = "either_value_is_missing"
    map_metric: ClassVar[str] = "column_pair_values.not_ahead"
    success_keys: ClassVar[tuple[str, ...]] = ("column_A", "column_B", "tolerance_s", "ignore_row_if", "mostly")


class ColumnValuesConform(ColumnMapMetricProvider):  # type: ignore[misc]  # untyped library
    """The metric behind `expect_column_values_to_conform_to_schema`."""

    condition_metric_name = "column_values.conform_to_schema"
    condition_value_keys = ("shape",)

    @column_condition_partial(engine=PandasExecutionEngine)  # type: ignore[untyped-decorator]
    def _pandas(cls, column: Any, shape: dict[str, Any], **_: Any) -> Any:  # noqa: N805  # the library's names
        misfit = misfit_of(json.dumps(shape, sort_keys=True))
        return pd.Series([not misfit(value) for value in column], index=column.index, dtype=bool)


class ExpectColumnValuesToConformToSchema(ColumnMapExpectation):  # type: ignore[misc]  # untyped library
    """Expect values to be what the contract's schema says: see docs/contracts.md."""

    shape: dict[str, Any]
    map_metric: ClassVar[str] = "column_values.conform_to_schema"
    success_keys: ClassVar[tuple[str, ...]] = ("shape", "mostly")


class TableDrift(TableMetricProvider):  # type: ignore[misc]  # untyped library
    """The metric behind the two expectations about drift."""

    metric_name = "table.drift"
    value_keys = _DRIFT_KEYS

    @metric_value(engine=PandasExecutionEngine)  # type: ignore[untyped-decorator]
    def _pandas(
        cls,  # noqa: N805  # the library's names
        execution_engine: PandasExecutionEngine,
        metric_domain_kwargs: dict[str, Any],
        metric_value_kwargs: dict[str, Any],
        metrics: dict[str, Any],  # noqa: ARG002
        runtime_configuration: dict[str, Any],  # noqa: ARG002
    ) -> Any:
        rows, _, _ = execution_engine.get_compute_domain(metric_domain_kwargs, domain_type=MetricDomainTypes.TABLE)
        given = {name: value for name, value in metric_value_kwargs.items() if value is not None}
        column = given.pop("column", None)
        columns = [column] if column else [*given.pop("columns")]
        read = [
            *columns,
            *given.get("segments", ()),
            *given.get("entities", ()),
            *filter(None, [given.get("time_column")]),
        ]
        table = pa.Table.from_pandas(rows[list(dict.fromkeys(read))], preserve_index=False)
        return drift_of(table, columns=columns, **given)


class ExpectTableToNotDrift(BatchExpectation):  # type: ignore[misc]  # untyped library
    """Expect no drift of `columns` from a reference: see docs/drift.md."""

    reference: str
    columns: list[str] | None = None
    segments: list[str] | None = None
    entities: list[str] | None = None
    time_column: str | None = None
    block_hours: float | None = None
    family_rate: float = 0.05
    seed: int = 0
    wasserstein_sd: float | None = None
    cohens_w: float | None = None
    missing: float | None = None
    new: float | None = None
    metric_dependencies: ClassVar[tuple[str, ...]] = ("table.drift",)
    success_keys: ClassVar[tuple[str, ...]] = _DRIFT_KEYS

    def _validate(
        self,
        metrics: dict[str, Any],
        runtime_configuration: dict[str, Any] | None = None,  # noqa: ARG002
        execution_engine: Any = None,  # noqa: ARG002
    ) -> dict[str, Any]:
        told = metrics["table.drift"]
        return {"success": not told["drifted"], "result": {"observed_value": told}}


class ExpectColumnToNotDrift(ExpectTableToNotDrift):
    """Expect no drift of `column` from a reference: see docs/drift.md."""

    column: str


def suite_of(contract: Contract) -> gx.ExpectationSuite:
    """The contract's rules as a suite; each expectation's `meta` has rule_id, mode, dimension and contract version."""
    configurations = [
        ExpectationConfiguration(
            type=rule.expectation,
            kwargs=_arguments(rule, meaning, contract),
            meta={"rule_id": rule.id, "mode": rule.mode, "dimension": rule.dimension, "version": contract.version},
            severity=rule.severity,
            description=rule.description or None,
        )
        for rule, meaning in zip(contract.rules, contract.expectations(), strict=True)
    ]
    return gx.ExpectationSuite(name=contract.name, expectations=configurations)


def _arguments(rule: Rule, meaning: Expectation, contract: Contract) -> dict[str, Any]:
    """The rule's arguments as the library takes them: instants aware, so that they compare with UTC columns."""
    arguments = dict(rule.arguments)
    column = str(arguments.get("column"))
    if isinstance(meaning.check, Between | InSet) and {ARRIVAL: "timestamp", **contract.types}[column] in INSTANTS:
        for name in ("min_value", "max_value"):
            if name in arguments:
                # As text: the library's models would cut a datetime to its date.
                arguments[name] = _instant(arguments[name]).isoformat()
        if isinstance(listed := arguments.get("value_set"), list):
            arguments["value_set"] = [_instant(value) for value in listed]
    return arguments


def _instant(value: object) -> dt.datetime:
    ts_us = to_us(value)
    assert ts_us is not None
    return dt.datetime(1970, 1, 1, tzinfo=dt.UTC) + dt.timedelta(microseconds=ts_us)


def validate(contract: Contract, table: pa.Table, *, samples: int = SAMPLES) -> ExpectationSuiteValidationResult:
    """Great Expectations' own result for a table; results are found by `meta["rule_id"]`, their order is its own."""
    # Without these defaults every context leaves a folder for Data Docs in the temporary directory.
    stores = InMemoryStoreBackendDefaults(init_temp_docs_sites=False)
    configuration = DataContextConfig(
        store_backend_defaults=stores, progress_bars=ProgressBarsConfig(globally=False), analytics_enabled=False
    )
    context = gx.get_context(mode="ephemeral", project_config=configuration)
    asset = context.data_sources.add_pandas("batches").add_dataframe_asset("batch")
    batch = asset.add_batch_definition_whole_dataframe("whole").get_batch({"dataframe": frame(table, contract)})
    result_format = {"result_format": "SUMMARY", "partial_unexpected_count": samples}
    with np.errstate(invalid="ignore", over="ignore"):  # infinities are data: their mean is NaN, not a warning
        return batch.validate(suite_of(contract), result_format=result_format)


def judge(contract: Contract, table: pa.Table, *, samples: int = SAMPLES) -> Verdict:
    """The verdict of Great Expectations on a table, in the form that compiled rules give theirs."""
    results = {
        result.expectation_config.meta["rule_id"]: result
        for result in validate(contract, table, samples=samples).results
    }
    return Verdict(
        contract=contract.name,
        version=contract.version,
        source=contract.source,
        rows=table.num_rows,
        rules=tuple(
            _verdict(rule, meaning, results[rule.id], table)
            for rule, meaning in zip(contract.rules, contract.expectations(), strict=True)
        ),
    )


class ResultForm:
    """A contract's verdicts, from whichever engine, as Great Expectations' own result objects; compiled once.

    Its tools read them: statistics, configurations with `meta.rule_id`, counts, percentages, samples in SUMMARY form.
    """

    def __init__(self, contract: Contract) -> None:
        self._suite = contract.name
        self._meta = {"great_expectations_version": gx.__version__, "contract_version": contract.version}
        expectations = {one.meta["rule_id"]: one for one in suite_of(contract).expectations if one.meta}
        self._rules = [
            (rule.id, meaning.check, expectations[rule.id].configuration)
            for rule, meaning in zip(contract.rules, contract.expectations(), strict=True)
        ]

    def of(self, verdict: Verdict) -> ExpectationSuiteValidationResult:
        """The verdict's result: of the rules that could be judged, success as it stands there; a broken one failed."""
        told = {rule.rule_id: rule for rule in verdict.rules}
        results = [
            ExpectationValidationResult(
                success=bool(told[rule_id].success),
                expectation_config=configuration,
                result=_summary(told[rule_id], check),
                exception_info={
                    "raised_exception": told[rule_id].outcome == "broken",
                    # Data Docs shows a traceback of every exception: there is none, so it shows the reason.
                    "exception_traceback": told[rule_id].reason or None,
                    "exception_message": told[rule_id].reason or None,
                },
            )
            for rule_id, check, configuration in self._rules
        ]
        good = sum(bool(result.success) for result in results)
        statistics = {
            "evaluated_expectations": len(results),
            "successful_expectations": good,
            "unsuccessful_expectations": len(results) - good,
            "success_percent": good / len(results) * 100 if results else None,
        }
        return ExpectationSuiteValidationResult(
            success=good == len(results),
            results=results,
            suite_name=self._suite,
            suite_parameters={},
            statistics=statistics,
            meta=dict(self._meta),
        )


def _summary(told: RuleVerdict, check: Check | None) -> dict[str, Any]:
    """The `result` of an expectation, in SUMMARY form."""
    if told.outcome == "broken":
        return {}
    if told.rows is None or told.evaluated is None or told.unexpected is None:
        return {"observed_value": told.observed}
    values = [_unexpected(sample, check) for sample in told.samples]
    found: dict[str, Any] = {
        "element_count": told.rows,
        "unexpected_count": told.unexpected,
        "unexpected_percent": told.percent,
        "partial_unexpected_list": values,
        "partial_unexpected_index_list": [sample.row for sample in told.samples],
    }
    if not isinstance(check, Null):
        missing = told.rows - told.evaluated
        found["missing_count"] = missing
        found["missing_percent"] = missing / told.rows * 100 if told.rows else None
        found["unexpected_percent_total"] = told.unexpected / told.rows * 100 if told.rows else None
        found["unexpected_percent_nonmissing"] = told.percent
    return found


def _unexpected(sample: Sample, check: Check | None) -> Any:
    """A sample as the library lists it: a value, a pair, or a mapping of several columns."""
    values = sample.values
    match check:
        case Pair(a, b):
            return (values[a], values[b])
        case Unique((column,)):
            return values[column]
        case Across(columns) | Unique(columns):
            return {column: values[column] for column in columns}
        case None | Aggregate() | Columns() | Drift():
            return dict(values)
        case _:
            return values[check.column]


def _verdict(rule: Rule, meaning: Expectation, result: ExpectationValidationResult, table: pa.Table) -> RuleVerdict:
    if reason := _exception(result.exception_info):
        return broken(rule, reason)
    found = result.result
    if "element_count" not in found:
        rows = None if isinstance(meaning.check, Columns) else table.num_rows
        observed = found.get("observed_value")
        plain = observed.item() if hasattr(observed, "item") else observed  # NumPy's numbers as Python's
        return stated(rule, success=bool(result.success), observed=plain, rows=rows)
    read = [name for name in meaning.columns if name in table.column_names]
    numbers = found.get("partial_unexpected_index_list") or []
    rows = rows_of(table.select(read).take(pa.array(numbers, pa.int64()))) if read else []
    return counted(
        rule,
        rows=found["element_count"],
        evaluated=found["element_count"] - (found.get("missing_count") or 0),
        unexpected=found["unexpected_count"],
        mostly=meaning.mostly if meaning.check is not None else float(rule.arguments.get("mostly", 1.0)),  # type: ignore[arg-type]
        samples=tuple(Sample(row=number, values=row) for number, row in zip(numbers, rows, strict=False)),
    )


def _exception(info: dict[str, Any]) -> str:
    """What the library raised, if anything: flat, or one entry per metric."""
    entries = [info] if "raised_exception" in info else list(info.values())
    return next((str(entry["exception_message"]) for entry in entries if entry.get("raised_exception")), "")


def frame(table: pa.Table, contract: Contract) -> pd.DataFrame:
    """The table as the library should see it: instants in UTC, integers exact where they stand beside nulls.

    Integers beside nulls are Python integers, since floats would turn "5" into "5.0" and round beyond 2^53; but floats
    where a rule compares columns and 2^53 suffices, since the library cannot compare None.
    """
    compared = {
        name
        for meaning in contract.expectations()
        if isinstance(meaning.check, Pair | Across | Aggregate)
        for name in meaning.columns
    }
    return pd.DataFrame(
        {name: _series(table.column(name), compared=name in compared) for name in table.column_names},
        index=pd.RangeIndex(table.num_rows),
    )


def _series(column: pa.ChunkedArray, *, compared: bool) -> Any:
    if is_mixed(column.type):
        return pd.Series(values_of(column), dtype=object)
    if pa.types.is_timestamp(column.type) or pa.types.is_date(column.type):
        return as_micros(column).cast(pa.timestamp("us", "UTC")).to_pandas().reset_index(drop=True)
    if pa.types.is_integer(column.type) and column.null_count:
        extent = pc.min_max(column).as_py()
        small = all(value is None or abs(value) <= _EXACT_FLOAT for value in extent.values())
        if not (compared and small):
            return pd.Series(column.to_pylist(), dtype=object)
    # Widths are storage: a rule about int or float means every width, and sums are those of doubles.
    if pa.types.is_integer(column.type) and column.type != pa.uint64():
        column = column.cast(pa.int64())
    elif pa.types.is_floating(column.type):
        column = column.cast(pa.float64())
    return column.to_pandas().reset_index(drop=True)
