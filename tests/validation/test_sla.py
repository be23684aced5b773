"""Are stale, late, few and absent rows told apart?"""

from pathlib import Path
from typing import Any

import msgspec
import pyarrow as pa
import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st
from typer.testing import CliRunner

from validation.commands import app
from validation.contract import Column, Contract, lint, load_contract
from validation.errors import ContractError
from validation.promise import Promise
from validation.sla import Facts, facts_of, judge_sla

US = pa.timestamp("us", "UTC")
PROMISES = (
    Promise(id="new", kind="freshness", column="at", limit_us=10),
    Promise(id="coming", kind="freshness", column="_arrival", limit_us=10),
    Promise(id="prompt", kind="latency", column="at", limit_us=5, mostly=0.5),
    Promise(id="enough", kind="volume", least=2, most=4),
)
CONTRACT = Contract(
    name="c", version="1", source="s", columns=(Column(name="at", logical_type="timestamp"),), rules=(), sla=PROMISES
)


def rows(at: list[int | None], arrival: list[int | None]) -> pa.Table:
    """Rows with event time and arrival."""
    return pa.table({"at": pa.array(at, US), "_arrival": pa.array(arrival, US)})


def outcomes(table: pa.Table, now_us: int) -> dict[str, str]:
    """Promise -> outcome."""
    return {
        told.rule_id: told.outcome
        for told in judge_sla(CONTRACT, facts_of(table, CONTRACT, now_us=now_us), now_us=now_us)
    }


def test_a_volume_of_a_time_counts_what_arrived_in_it() -> None:
    """Of the last ten microseconds, the older bound excluded; without arrivals the check breaks."""
    contract = msgspec.structs.replace(
        CONTRACT,
        sla=(
            Promise(id="some", kind="volume", least=2, per_us=10),
            Promise(id="prompt", kind="latency", column="at", limit_us=5, per_us=10),
        ),
    )

    def told(table: pa.Table) -> list[tuple[str, Any]]:
        facts = facts_of(table, contract, now_us=100)
        return [(one.outcome, one.observed) for one in judge_sla(contract, facts, now_us=100)]

    assert told(rows([95, 95, 0], [91, 100, 90])) == [("passed", 2), ("passed", None)]
    assert told(rows([95, 95, 0], [90, 100, 101])) == [("failed", 1), ("passed", None)]
    assert told(rows([0], [1])) == [("no data", 0), ("no data", None)]
    assert [outcome for outcome, _ in told(pa.table({"at": pa.array([1], US)}))] == ["broken", "broken"]


@pytest.mark.parametrize("per", ["1 fortnight", "0 h", "h"])
def test_a_time_that_is_none_is_refused(tmp_path: Path, per: str) -> None:
    """With what would be right."""
    promise = {"property": "volume", "value": 1, "customProperties": [{"property": "per", "value": per}]}
    head = {"apiVersion": "v3.1.0", "kind": "DataContract", "id": "c", "version": "1.0.0", "status": "active"}
    schema = [{"name": "s", "properties": [{"name": "at", "logicalType": "timestamp"}]}]
    path = tmp_path / "c.odcs.yaml"
    path.write_text(yaml.safe_dump({**head, "schema": schema, "slaProperties": [promise]}))
    with pytest.raises(ContractError, match="expected a duration, as in 1 h"):
        load_contract(path)
    promise["customProperties"] = [{"property": "per", "value": "1.5 h"}]
    path.write_text(yaml.safe_dump({**head, "schema": schema, "slaProperties": [promise]}))
    assert load_contract(path).sla[0].per_us == 5_400_000_000


@pytest.mark.parametrize(
    ("at", "arrival", "now_us", "told"),
    [
        ([90, 95], [95, 100], 100, ("passed", "passed", "passed", "passed")),
        ([1, 2], [95, 100], 100, ("failed", "passed", "failed", "passed")),  # old rows, sent again
        ([90, 95], [95, 100], 111, ("failed", "failed", "passed", "passed")),
        ([90, 90], [96, 95], 100, ("passed", "passed", "passed", "passed")),  # half are prompt
        ([90], [95], 100, ("passed", "passed", "passed", "failed")),
        ([90] * 5, [95] * 5, 100, ("passed", "passed", "passed", "failed")),
        ([], [], 100, ("no data", "no data", "no data", "no data")),
        ([None, None], [95, 95], 100, ("no data", "passed", "no data", "passed")),
    ],
)
def test_event_time_and_arrival_are_apart(
    at: list[int | None], arrival: list[int | None], now_us: int, told: tuple[str, ...]
) -> None:
    """Rows that come but are old, rows that come late, none at all; bounds are included."""
    assert tuple(outcomes(rows(at, arrival), now_us).values()) == told


def test_an_absent_column_is_a_check_that_broke() -> None:
    """Not bad data, and not no data; the promises that do not need it are judged."""
    assert outcomes(pa.table({"at": pa.array([1, 1], US)}), 5) == {
        "new": "passed",
        "coming": "broken",
        "prompt": "broken",
        "enough": "passed",
    }
    assert outcomes(pa.table({"at": ["x", "y"]}), 5)["new"] == "broken"


INSTANT = st.one_of(st.none(), st.integers(0, 50))


@given(st.lists(st.tuples(INSTANT, INSTANT), max_size=12), st.integers(0, 12))
def test_facts_merge(pairs: list[tuple[int | None, int | None]], cut: int) -> None:
    """Facts of parts, merged either way round, are the facts of the whole."""
    table = rows([a for a, _ in pairs], [b for _, b in pairs])
    parts = [facts_of(part, CONTRACT, now_us=100) for part in (table.slice(0, cut), table.slice(cut))]
    whole = facts_of(table, CONTRACT, now_us=100)
    assert parts[0].merge(parts[1]) == parts[1].merge(parts[0]) == Facts().merge(whole) == whole


def contract_file(tmp_path: Path, *sla: dict[str, Any]) -> Path:
    """A contract with these service levels."""
    properties = [{"name": "id", "logicalType": "string"}, {"name": "at", "logicalType": "timestamp"}]
    head = {"apiVersion": "v3.1.0", "kind": "DataContract", "id": "orders", "version": "1.0.0", "status": "active"}
    path = tmp_path / "orders.odcs.yaml"
    schema = [{"name": "orders", "properties": properties}]
    path.write_text(yaml.safe_dump({**head, "schema": schema, "slaProperties": list(sla)}))
    return path


FRESH = {"property": "freshness", "value": 1, "unit": "h", "element": "orders.at"}


def test_service_levels_are_read_from_the_contract(tmp_path: Path) -> None:
    """Units become microseconds; what nothing here judges is named by lint."""
    other = {"property": "retention", "value": 3, "unit": "y"}
    contract = load_contract(contract_file(tmp_path, FRESH, other, {"property": "volume", "value": 3}))
    assert [(p.id, p.limit_us, p.least) for p in contract.sla] == [
        ("orders_freshness_at", 3_600_000_000, None),
        ("orders_volume", 0, 3),
    ]
    assert "rule 'sla retention' is text or another engine's: nothing here judges it" in lint(contract)
    assert msgspec.json.decode(msgspec.json.encode(contract), type=Contract) == contract


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"unit": "fortnight"}, "found 'fortnight'; allowed: s, second"),
        ({"element": "orders.ad"}, "found 'ad'; expected a column of instants: at, _arrival"),
        ({"property": "volume", "value": -1}, "found -1; expected a number of rows"),
        ({"property": "volume", "value": None}, "neither value"),
        ({"customProperties": [{"property": "mostly", "value": "most"}]}, "found mostly 'most'"),
    ],
)
def test_a_service_level_that_cannot_be_read_is_refused(tmp_path: Path, changed: dict[str, Any], message: str) -> None:
    """With its place."""
    with pytest.raises(ContractError, match=rf"slaProperties\[0\].*{message}"):
        load_contract(contract_file(tmp_path, {**FRESH, **changed}))
    with pytest.raises(ContractError, match="given twice"):
        load_contract(contract_file(tmp_path, FRESH, FRESH))


def test_the_command_judges_service_levels_where_asked(tmp_path: Path) -> None:
    """A file of last year keeps its rules, and is stale."""
    contract, file = contract_file(tmp_path, FRESH), tmp_path / "orders.jsonl"
    file.write_text('{"id": "a", "at": "2020-01-01T00:00:00Z"}\n')
    base = ["contract", "test", str(file), "--contract", str(contract)]
    assert RUN.invoke(app, base).exit_code == 0
    stale = RUN.invoke(app, [*base, "--sla"])
    assert stale.exit_code == 1
    assert "orders_freshness_at (observe): observed '2020-01-01T00:00:00+00:00'" in stale.output
    file.write_text('{"id": "a"}\n')
    assert RUN.invoke(app, [*base, "--sla"]).exit_code == 3
    file.write_text("")
    assert RUN.invoke(app, [*base, "--sla"]).exit_code in {3, 4}


RUN = CliRunner()
