"""The catalog says what exists, who owns it, where its contract is kept and how healthy it is."""

import json
from pathlib import Path

import msgspec
import pytest
from monitored import deployment, plan, rides

from featurestore.catalog.entries import entries
from featurestore.catalog.page import page
from featurestore.cli.main import main
from featurestore.clock import system_clock
from featurestore.plan import Plan
from validation.contract import Column, Contract, Rule

NOW = system_clock()()


@pytest.fixture
def made() -> Plan:
    rule = Rule(
        id="r", expectation="expect_column_values_to_not_be_null", arguments={"column": "speed"}, mode="quarantine"
    )
    contract = Contract(
        name="rides",
        version="1.2.0",
        source="rides",
        columns=(Column(name="speed", logical_type="number"),),
        rules=(rule,),
    )
    return msgspec.structs.replace(plan(rides(pii="true")), contracts={"rides": contract})


def test_an_entry_names_contract_boundaries_and_services(made: Plan) -> None:
    """A batch source crosses no stream: the boundary of events does not apply."""
    [entry] = entries(made)
    assert (entry.contract, entry.services, entry.personal) == ("rides 1.2.0", ("eta",), True)
    kept = {each.boundary: each.modes for each in entry.kept}
    assert "event" not in kept
    assert kept["source"] == {"quarantine": 1}
    assert [(each.name, each.made, each.health) for each in entry.features] == [("speed", "column speed", "unknown")]


def test_the_page_is_whole_and_escapes_what_users_wrote(made: Plan) -> None:
    """A description that is markup stays text; nothing is loaded from anywhere."""
    view = msgspec.structs.replace(made.views["rides"], description="<script>alert(1)</script>")
    shown = page("p", entries(msgspec.structs.replace(made, views={"rides": view})))
    assert "<script" not in shown
    assert "&lt;script&gt;" in shown
    assert "http" not in shown


def test_the_command_prints_and_writes(made: Plan, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """As JSON, as a page; a view that does not exist is told with those that do."""
    repo = str(deployment(tmp_path, made, NOW).repo)
    assert main(["catalog", "--repo", repo, "--json", "--html", str(tmp_path / "catalog.html")]) == 0
    assert json.loads(capsys.readouterr().out)[0]["view"] == "rides"
    assert (tmp_path / "catalog.html").read_text().startswith("<!doctype html>")
    assert main(["catalog", "ridez", "--repo", repo]) == 2
    assert "did you mean 'rides'?" in capsys.readouterr().err
