"""Do build servers, code hosts and readers get the verdict whole, and nobody personal values?"""

import json
import re
from pathlib import Path
from xml.etree import ElementTree as ET

import msgspec
import numpy as np
import pyarrow as pa
import pytest

from validation.contract import Contract, Rule
from validation.errors import ContractError
from validation.junit import junit
from validation.page import page
from validation.reach import Reach, load_reach
from validation.sarif import lines_of, sarif
from validation.testing import ORDERS, SMALL, small_report

SECRET = "Böse<&>\x00\x1b]]>"
DIRTY = pa.table({"id": [SECRET, None, "a"], "amount": [1.0, -1.0, -2.0], "at": [None] * 3})


def with_rules(*rules: Rule) -> Contract:
    """The orders with further rules."""
    return msgspec.structs.replace(ORDERS, rules=(*ORDERS.rules, *rules))


def test_junit_has_a_case_per_rule_with_its_outcome() -> None:
    """Failures, errors and skipped are told apart; what is below the severity asked for passes with a word."""
    mean = Rule(
        id="mean", expectation="expect_column_mean_to_be_between", arguments={"column": "at_all", "max_value": 1}
    )
    contract = msgspec.structs.replace(
        with_rules(mean),
        columns=(*ORDERS.columns, msgspec.structs.replace(ORDERS.columns[1], name="at_all")),
    )
    suite = ET.fromstring(junit(*small_report(DIRTY, contract))).find("testsuite")
    assert suite is not None
    assert [suite.get(name) for name in ("tests", "failures", "errors", "skipped")] == ["3", "2", "1", "0"]
    assert [[child.tag for child in case] for case in suite] == [["failure"], ["failure"], ["error"]]
    lenient = ET.fromstring(junit(*small_report(DIRTY), fail_on="critical"))
    assert [[child.tag for child in case] for case in lenient[0]] == [["failure"], ["system-out"]]
    empty = ET.fromstring(junit(*small_report(SMALL.slice(0, 0))))
    assert [[child.tag for child in case] for case in empty[0]] == [["skipped"], ["skipped"]]


@pytest.mark.parametrize("form", ["junit", "sarif", "page"])
def test_no_form_tells_personal_values(form: str) -> None:
    """Neither whole nor in part; without the classification the value is there: the test can fail."""
    for classification, seen in (("pii", False), ("", True)):
        columns = (msgspec.structs.replace(ORDERS.columns[0], classification=classification), *ORDERS.columns[1:])
        contract = msgspec.structs.replace(ORDERS, columns=columns)
        verdict, report = small_report(DIRTY, contract)
        forms = {
            "junit": junit(verdict, report),
            "sarif": sarif(report, uri="orders.jsonl") + report.encode(),
            "page": page(report),
        }
        assert ("Böse".encode() in forms[form]) is seen


def test_sarif_names_the_line_and_level(tmp_path: Path) -> None:
    """Blank lines are no rows; a critical rule is an error; a file without lines is named alone."""
    file = tmp_path / "orders.jsonl"
    file.write_text('{"amount": 1}\n\n  \n{"amount": -1}\n')
    lines = lines_of(file, {1})
    assert lines == {1: 4}
    (run,) = json.loads(sarif(small_report(SMALL)[1], uri="a b.jsonl", lines=lines))["runs"]
    (result,) = run["results"]
    assert (result["level"], result["ruleId"], result["ruleIndex"]) == ("error", "positive", 0)
    place = result["locations"][0]["physicalLocation"]
    assert place == {"artifactLocation": {"uri": "a%20b.jsonl"}, "region": {"startLine": 4}}
    whole = json.loads(sarif(small_report(SMALL)[1], uri="x.parquet"))
    assert "region" not in whole["runs"][0]["results"][0]["locations"][0]["physicalLocation"]


def test_csv_lines_count_quoted_newlines_and_blank_lines(tmp_path: Path) -> None:
    """The line on which a row begins."""
    file = tmp_path / "orders.csv"
    file.write_text('id,amount\n"a\nb",1\n\nc,-1\n')
    assert lines_of(file, {0, 1}) == {0: 2, 1: 5}


def test_the_page_needs_nothing_and_says_what_to_do() -> None:
    """No address, no script, values escaped, the replay command there."""
    contract = msgspec.structs.replace(
        ORDERS, columns=tuple(msgspec.structs.replace(column, classification="") for column in ORDERS.columns)
    )
    _, report = small_report(DIRTY, contract)
    text = page(msgspec.structs.replace(report, replay="featurestore quarantine replay orders", affected=("view v",)))
    shown = text.decode()
    assert not re.search(r"https?:|src=|<script|@import|url\(", shown)
    assert "Böse&lt;&amp;&gt;" in shown
    assert "featurestore quarantine replay orders" in shown
    assert "view v" in shown
    assert "Every rule holds" in page(small_report(SMALL.slice(0, 1))[1]).decode()


def test_a_million_violations_stay_small() -> None:
    """Every form is a few kilobytes, however much is bad."""
    count = 1_000_000
    table = pa.table({"id": pa.nulls(count, pa.string()), "amount": np.full(count, -1.0), "at": pa.nulls(count)})
    verdict, report = small_report(table)
    assert report.violations[0].failed == count
    for form in (junit(verdict, report), sarif(report, uri="x.jsonl"), page(report), report.encode()):
        assert len(form) < 8_000


PLAN = {
    "views": {
        "fares": {
            "name": "fares",
            "source": {"name": "orders", "timestamp_field": "at", "field_mapping": {"amount": "fare"}},
            "join_keys": [{"name": "id"}],
            "features": [{"name": "fare"}, {"name": "tip"}],
        },
        "sums": {
            "name": "sums",
            "source": {"name": "orders", "timestamp_field": "at", "topic": {"name": "orders"}},
            "features": [{"name": "amount_1h"}],
            "aggregations": [{"feature": "amount_1h", "column": "amount"}],
        },
    },
    "on_demand": {"ratio": {"name": "ratio", "inputs": [{"view": "fares", "features": ["fare"]}]}},
    "services": {
        "tips": {"name": "tips", "projections": [{"view": "fares", "features": ["tip"]}]},
        "ratios": {"name": "ratios", "projections": [{"view": "ratio"}]},
    },
}


@pytest.mark.parametrize(
    ("columns", "reached"),
    [
        ({"amount"}, ("view fares", "view ratio", "view sums", "service ratios")),
        ({"tip"}, ("view fares", "service tips")),
        ({"id"}, ("view fares", "view ratio", "service ratios", "service tips")),
        ({"note"}, ()),
        (None, ("view fares", "view ratio", "view sums", "service ratios", "service tips")),
    ],
)
def test_a_column_reaches_views_and_services(columns: set[str] | None, reached: tuple[str, ...]) -> None:
    """By its name in the source, through mappings, keys, aggregations and on-demand views."""
    assert msgspec.convert(PLAN, Reach).of("orders", columns) == reached


@pytest.mark.parametrize(
    ("about", "columns", "reached"),
    [
        ("view:fares", {"tip"}, ("view fares", "service tips")),
        ("view:fares", {"id"}, ("view fares", "view ratio", "service ratios", "service tips")),
        ("view:fares", None, ("view fares", "view ratio", "service ratios", "service tips")),
        ("view:ratio", {"ratio"}, ("view ratio", "service ratios")),
        ("service:tips", {"tip"}, ("service tips",)),
        ("view:nobody", None, ()),
        ("service:nobody", None, ()),
    ],
)
def test_a_contract_about_features_reaches_who_is_given_them(
    about: str, columns: set[str] | None, reached: tuple[str, ...]
) -> None:
    """The view itself, the views computed from it, and the services that hold the features."""
    assert msgspec.convert(PLAN, Reach).of(about, columns) == reached


def test_a_plan_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    """With the path and what writes it."""
    with pytest.raises(ContractError, match=r"none\.json: the plan cannot be read.*featurestore apply"):
        load_reach(tmp_path / "none.json")
    (tmp_path / "torn.json").write_text('{"views": 1')
    with pytest.raises(ContractError, match="no plan"):
        load_reach(tmp_path / "torn.json")
