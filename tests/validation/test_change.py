"""Is every change of a contract told, to those whom it breaks?"""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import msgspec
import pytest
import yaml
from typer.testing import CliRunner

from validation import change as change_module
from validation.change import announced, changes, level_of, next_version
from validation.commands import app
from validation.contract import BOUNDARIES, Column, Contract, Rule, load_contract
from validation.errors import ContractError
from validation.promise import Promise
from validation.reach import Reach
from validation.status import KEPT_BY, status
from validation.testing import ORDERS
from validation.waiver import load_waivers

RUN = CliRunner()
CONSUMERS, PRODUCERS, BOTH, NOBODY = ("consumers",), ("producers",), ("consumers", "producers"), ()
FLIGHTS = Path(__file__).parents[2] / "feature_repo" / "contracts"


def column(**changed: Any) -> Contract:
    """The orders with another `amount`."""
    return msgspec.structs.replace(
        ORDERS,
        columns=tuple(msgspec.structs.replace(c, **changed) if c.name == "amount" else c for c in ORDERS.columns),
    )


def ruled(
    type_: str, mode: str = "observe", severity: str = "warning", rule_id: str = "r", **arguments: Any
) -> Contract:
    """The orders with this one rule."""
    rule = Rule(id=rule_id, expectation=type_, arguments=arguments, mode=mode, severity=severity)  # type: ignore[arg-type]
    return msgspec.structs.replace(ORDERS, rules=(rule,))


def told(old: Contract, new: Contract) -> list[tuple[str, Sequence[str]]]:
    """Ids and broken parties."""
    return [(change.id, change.breaks) for change in changes(old, new)]


@pytest.mark.parametrize(
    ("old", "new", "what", "forth", "back"),
    [
        ({}, {"required": True}, "required", PRODUCERS, CONSUMERS),
        ({}, {"unique": True}, "unique", PRODUCERS, CONSUMERS),
        ({}, {"logical_type": "integer"}, "type", PRODUCERS, CONSUMERS),
        ({"unit": "USD"}, {"unit": "EUR"}, "unit", BOTH, BOTH),
        ({}, {"unit": "EUR"}, "unit", BOTH, BOTH),
        ({"zone": "UTC"}, {"zone": "America/New_York"}, "zone", BOTH, BOTH),
        ({"classification": "pii"}, {}, "classification", CONSUMERS, NOBODY),
        ({"classification": "personal"}, {"classification": "secret"}, "classification", CONSUMERS, NOBODY),
        ({"classification": "pii"}, {"classification": "personal"}, "classification", NOBODY, NOBODY),
        ({"classification": "public"}, {}, "classification", NOBODY, NOBODY),
        ({}, {"description": "x"}, "description", NOBODY, NOBODY),
        ({}, {"examples": (1.5,)}, "examples", NOBODY, NOBODY),
    ],
)
def test_a_changed_column_breaks_whom_it_must(
    old: dict[str, Any], new: dict[str, Any], what: str, forth: Sequence[str], back: Sequence[str]
) -> None:
    """In each direction, and exactly one change is told."""
    assert told(column(**old), column(**new)) == [(f"column.amount.{what}", forth)]
    assert told(column(**new), column(**old)) == [(f"column.amount.{what}", back)]


SET, BETWEEN = "expect_column_values_to_be_in_set", "expect_column_values_to_be_between"
MEAN = "expect_column_mean_to_be_between"
AMOUNT = {"column": "amount"}


@pytest.mark.parametrize(
    ("type_", "loose", "tight"),
    [
        (SET, {"value_set": [1, 2, 3]}, {"value_set": [1, 3]}),
        ("expect_column_values_to_not_be_in_set", {"value_set": [1]}, {"value_set": [1, 3]}),
        (BETWEEN, {"min_value": 0}, {"min_value": 1}),
        (BETWEEN, {"min_value": 0}, {"min_value": 0, "strict_min": True}),
        (BETWEEN, {"max_value": 5}, {"min_value": 0, "max_value": 5}),
        (BETWEEN, {"max_value": 5}, {"max_value": 5, "strict_max": True}),
        (BETWEEN, {"max_value": 5, "mostly": 0.9}, {"max_value": 5, "mostly": 0.95}),
        (MEAN, {"min_value": 0, "max_value": 9}, {"min_value": 0, "max_value": 8}),
    ],
)
def test_looser_breaks_consumers_and_tighter_producers(
    type_: str, loose: dict[str, Any], tight: dict[str, Any]
) -> None:
    """A wider enumeration too, which others call harmless."""
    a, b = ruled(type_, **AMOUNT, **loose), ruled(type_, **AMOUNT, **tight)
    assert told(a, b) == [("rule.r.tightened", PRODUCERS)]
    assert told(b, a) == [("rule.r.loosened", CONSUMERS)]


@pytest.mark.parametrize(
    ("a", "b"),
    [
        ((SET, {"value_set": [1, 2]}), (SET, {"value_set": [2, 3]})),
        ((BETWEEN, {"min_value": 0, "max_value": 5}), (BETWEEN, {"min_value": 1, "max_value": 6})),
        ((SET, {"value_set": [1, 2]}), (BETWEEN, {"min_value": 1, "max_value": 2})),
    ],
)
def test_what_is_both_or_cannot_be_compared_breaks_both(a: Any, b: Any) -> None:
    """Shifted bounds and sets, and another kind of rule."""
    assert told(ruled(a[0], **AMOUNT, **a[1]), ruled(b[0], **AMOUNT, **b[1])) == [("rule.r.changed", BOTH)]


def test_the_same_set_in_another_order_breaks_nobody() -> None:
    """What a rule means counts, not how it is written; a constant written as another number is the same."""
    before = ruled("expect_column_values_to_match_regex", column="id", regex="a")
    after = ruled("expect_column_values_to_match_regex", column="id", regex="a", mostly=1.0)
    assert told(before, after) == [("rule.r.changed", NOBODY)]
    assert told(ruled(SET, **AMOUNT, value_set=[1, 2]), ruled(SET, **AMOUNT, value_set=[2, 1])) == [
        ("rule.r.changed", NOBODY)
    ]


def test_rules_come_and_go_and_change_their_mode() -> None:
    """A new rule breaks producers where it rejects or is critical; one that is gone, or rejects no more, consumers."""
    bare = msgspec.structs.replace(ORDERS, rules=())
    observed, rejecting = (ruled(BETWEEN, mode, **AMOUNT, min_value=0) for mode in ("observe", "quarantine"))
    assert told(bare, observed) == [("rule.r.added", NOBODY)]
    assert told(bare, rejecting) == [("rule.r.added", PRODUCERS)]
    assert told(rejecting, bare) == [("rule.r.removed", CONSUMERS)]
    assert told(observed, rejecting) == [("rule.r.mode", PRODUCERS)]
    assert told(rejecting, observed) == [("rule.r.mode", CONSUMERS)]
    assert told(observed, ruled(BETWEEN, "warn", **AMOUNT, min_value=0)) == [("rule.r.mode", NOBODY)]
    critical = ruled(BETWEEN, severity="critical", **AMOUNT, min_value=0)
    assert told(critical, observed) == [("rule.r.severity", CONSUMERS)]


def test_a_rule_at_one_boundary_is_compared_there() -> None:
    """A mode that becomes stricter at one boundary only is told."""
    before = ruled(BETWEEN, "warn", **AMOUNT, min_value=0)
    rule = msgspec.structs.replace(before.rules[0], modes={"event": "quarantine"})
    assert told(before, msgspec.structs.replace(before, rules=(rule,))) == [("rule.r.mode", PRODUCERS)]


def test_a_renamed_rule_is_the_same_rule() -> None:
    """A new id hides no change of what it says."""
    found = told(ruled(SET, **AMOUNT, value_set=[1]), ruled(SET, rule_id="q", **AMOUNT, value_set=[1, 2]))
    assert found == [("rule.r.loosened", CONSUMERS), ("rule.r.renamed", NOBODY)]


def test_columns_come_and_go() -> None:
    """Removed breaks consumers, added only where it is required; its rules are not told twice."""
    more = (*ORDERS.columns, Column(name="tip", logical_type="number"))
    rule = Rule(id="tip", expectation=BETWEEN, arguments={"column": "tip", "min_value": 0}, severity="critical")
    wide = msgspec.structs.replace(ORDERS, columns=more, rules=(*ORDERS.rules, rule))
    assert told(ORDERS, wide) == [("column.tip.added", NOBODY)]
    assert told(wide, ORDERS) == [("column.tip.removed", CONSUMERS)]
    required = (*ORDERS.columns, Column(name="tip", logical_type="number", required=True))
    assert told(ORDERS, msgspec.structs.replace(ORDERS, columns=required)) == [("column.tip.added", PRODUCERS)]


def test_keys_and_source_break_both() -> None:
    """Who joins on the old key joins wrongly."""
    found = told(column(), column(primary_key=True))
    assert ("contract.primary_key", BOTH) in found
    assert ("contract.source", BOTH) in told(ORDERS, msgspec.structs.replace(ORDERS, source="sales"))


def test_a_key_of_several_columns_is_a_set_of_them() -> None:
    """One column more or less is another key, by which others count as the same; their order in the file is none."""
    one, two, none = (
        msgspec.structs.replace(
            ORDERS, columns=tuple(msgspec.structs.replace(c, primary_key=c.name in key) for c in ORDERS.columns)
        )
        for key in ({"id"}, {"id", "at"}, set[str]())
    )
    for old, new in ((one, two), (two, one), (one, none)):
        assert [found for found in told(old, new) if found[0] == "contract.primary_key"] == [
            ("contract.primary_key", BOTH)
        ]
    assert told(two, msgspec.structs.replace(two, columns=two.columns[::-1])) == []


def test_a_parameter_that_changes_changes_its_rules(tmp_path: Path) -> None:
    """Not the rule's text but its bound is looser: consumers are told all the same."""
    contracts = []
    for bound in (100, 200):
        most = {"type": "expect_column_values_to_be_between", "kwargs": {"max_value": {"$PARAMETER": "most"}}}
        rule = {"id": "r", "type": "custom", "engine": "great-expectations", "implementation": most}
        document = {
            "apiVersion": "v3.1.0",
            "kind": "DataContract",
            "id": "o",
            "version": "1.0.0",
            "status": "active",
            "customProperties": [{"property": "parameter.most", "value": bound}],
            "schema": [{"name": "o", "properties": [{"name": "x", "logicalType": "number", "quality": [rule]}]}],
        }
        path = tmp_path / f"{bound}.odcs.yaml"
        path.write_text(yaml.safe_dump(document))
        contracts.append(load_contract(path))
    assert told(*contracts) == [("rule.r.loosened", CONSUMERS)]


@pytest.mark.parametrize(
    ("loose", "tight"),
    [({"limit_us": 9}, {"limit_us": 8}), ({"least": 1}, {"least": 2}), ({}, {"most": 5}), ({"mostly": 0.5}, {})],
)
def test_service_levels_are_compared(loose: dict[str, Any], tight: dict[str, Any]) -> None:
    """Looser breaks consumers, tighter producers; so do one that is gone and one that is new."""
    head = {"id": "p", "kind": "latency", "column": "at"}
    a, b = (
        msgspec.structs.replace(ORDERS, sla=(msgspec.convert({**head, **some}, Promise),)) for some in (loose, tight)
    )
    assert told(a, b) == [("sla.p.tightened", PRODUCERS)]
    assert told(b, a) == [("sla.p.loosened", CONSUMERS)]
    assert told(ORDERS, a) == [("sla.p.added", PRODUCERS)]
    assert told(a, ORDERS) == [("sla.p.removed", CONSUMERS)]


def test_equal_contracts_differ_in_nothing() -> None:
    """Those of the flights repo with themselves; a changed word in one is told."""
    for path in sorted(FLIGHTS.glob("*.odcs.yaml")):
        contract = load_contract(path)
        assert changes(contract, contract) == ()
    assert told(contract, msgspec.structs.replace(contract, owner="else")) == [("contract.owner", NOBODY)]


def test_the_version_must_announce_the_changes() -> None:
    """Major for what breaks, minor for what adds, patch for words."""
    assert level_of(changes(column(), column(required=True))) == "major"
    assert level_of(changes(column(), column(description="x"))) == "patch"
    assert level_of([]) is None
    assert next_version("1.2.3", None) == "1.2.3"
    assert announced("1.2.3", "1.2.3", None)
    assert not announced("1.2.3", "1.3.0", "major")
    assert announced("0.9.0", "1.0.0", "major")
    assert not announced("1.2.3", "draft", "patch")


def test_a_planted_fault_in_the_comparison_is_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    """With looser and tighter confused, the table above would not hold."""
    compare = change_module._compare
    monkeypatch.setattr(change_module, "_compare", lambda a, b: compare(b, a))
    a, b = ruled(SET, **AMOUNT, value_set=[1, 2]), ruled(SET, **AMOUNT, value_set=[1])
    assert told(a, b) != [("rule.r.tightened", PRODUCERS)]


@pytest.fixture
def versions(tmp_path: Path) -> tuple[Path, Path, Path]:
    """The departures' contract, one with a wider enumeration, and a plan whose view reads the column."""
    text = (FLIGHTS / "departures.odcs.yaml").read_text()
    old, new, plan = tmp_path / "old.odcs.yaml", tmp_path / "new.odcs.yaml", tmp_path / "plan.json"
    old.write_text(text)
    new.write_text(text.replace("                - LGA\n", "                - LGA\n                - SWF\n", 1))
    view = {"name": "delays", "source": {"name": "departures"}, "join_keys": [{"name": "origin"}]}
    service = {"name": "model", "projections": [{"view": "delays"}]}
    plan.write_text(json.dumps({"views": {"delays": view}, "services": {"model": service}}))
    return old, new, plan


def diff(*arguments: object) -> tuple[int, str]:
    """Exit code and output of `contract diff`."""
    result = RUN.invoke(app, ["contract", "diff", *map(str, arguments)])
    return result.exit_code, result.output


def test_diff_names_who_is_hurt_and_the_version_it_asks_for(versions: tuple[Path, Path, Path]) -> None:
    """A wider enumeration reaches the view and the service; exit code 1."""
    old, new, plan = versions
    code, output = diff(old, new, "--plan", plan)
    assert code == 1
    assert "breaks consumers: rule 'origin_known' is looser" in output
    assert "affects view delays, service model" in output
    assert "1.0.0 -> 1.0.0, but the changes ask for 2.0.0" in output
    assert diff(old, old)[0] == 0
    told = json.loads(diff(old, new, "--plan", plan, "--json")[1])
    assert (told["level"], told["next_version"], told["announced"]) == ("major", "2.0.0", False)
    assert told["changes"][0]["affected"] == ["view delays", "service model"]


def test_a_waiver_excuses_until_it_expires(versions: tuple[Path, Path, Path], tmp_path: Path) -> None:
    """A change that is waived and announced passes; an expired waiver, or one of nothing, is told."""
    old, new, _ = versions
    new.write_text(new.read_text().replace("version: 1.0.0", "version: 2.0.0", 1))
    assert diff(old, new)[0] == 1, "a major version announces, it does not excuse"
    waivers = tmp_path / "waivers.yaml"

    def agreed(expires: str, name: str = "rule.origin_known.loosened") -> tuple[int, str]:
        one = {"change": name, "owner": "models", "reason": "retrained", "expires": expires}
        waivers.write_text(yaml.safe_dump({"waivers": [one]}))
        return diff(old, new, "--waivers", waivers)

    assert agreed("2999-01-01")[0] == 0
    assert "waived by models until 2999-01-01: retrained" in agreed("2999-01-01")[1]
    assert agreed("2020-01-01") == (1, agreed("2020-01-01")[1])
    assert "expired on 2020-01-01" in agreed("2020-01-01")[1]
    assert "meets no breaking change; did you mean" in agreed("2999-01-01", "rule.origin_known.tightened")[1]


@pytest.mark.parametrize(
    ("waiver", "message"),
    [
        ({"change": "c", "owner": "", "reason": "r", "expires": "2026-01-01"}, r"owner: found nothing"),
        ({"change": "c", "reason": "r", "expires": "2026-01-01"}, r"owner: found None; expected text"),
        ({"change": "c", "owner": "o", "reason": "r", "expires": "soon"}, r"expires: found 'soon'; expected a day"),
        (
            {"change": "c", "owner": "o", "reason": "r", "expired": "x"},
            r"unknown key 'expired'; did you mean 'expires'",
        ),
    ],
)
def test_a_waiver_has_an_owner_and_an_end(tmp_path: Path, waiver: dict[str, str], message: str) -> None:
    """Else it is refused, with its place."""
    path = tmp_path / "waivers.yaml"
    path.write_text(yaml.safe_dump({"waivers": [waiver]}))
    with pytest.raises(ContractError, match=message):
        load_waivers(path)


def test_status_shows_boundary_by_mode(tmp_path: Path) -> None:
    """Where rows of the source cross the boundary, what happens to them there; and what keeps contracts there."""
    plan = tmp_path / "plan.json"
    view = {"name": "v", "source": {"name": "orders"}}
    plan.write_text(json.dumps({"views": {"v": view}}))
    kept = {one.boundary: one for one in status({"orders": ORDERS})}
    assert tuple(kept) == BOUNDARIES == tuple(KEPT_BY)
    assert all(one.applies for one in kept.values())
    result = RUN.invoke(app, ["contract", "status", "--contracts", str(FLIGHTS)])
    assert result.exit_code == 0
    assert "departures 1.0.0" in result.output
    assert "producer: kept by" in result.output
    other = RUN.invoke(app, ["contract", "status", "--contracts", str(FLIGHTS), "--plan", str(plan)])
    assert "weather" in other.output
    assert "-" in other.output


@pytest.mark.parametrize(
    ("source", "crossed"),
    [
        ("orders", {"source", "training", "online_write", "online_serve"}),
        ("taps", {"event"}),
        ("taps_log", {"event"}),
        ("places", {"event", "training", "online_serve"}),
        ("view:v", {"training", "online_serve"}),
        ("service:s", {"training", "online_serve"}),
        ("view:nobody", set()),
        ("nobody", set()),
    ],
)
def test_boundaries_depend_on_what_is_made_of_the_rows(source: str, crossed: set[str]) -> None:
    """A contract may name the topic or its log; events that are aggregated are no features."""
    views = {
        "v": {"name": "v", "source": {"name": "orders"}},
        "w": {
            "name": "w",
            "source": {"name": "taps_log", "topic": {"name": "taps"}},
            "aggregations": [{"feature": "n", "column": "x"}],
        },
        "l": {"name": "l", "source": {"name": "places_log", "topic": {"name": "places"}}},
    }
    reach = msgspec.convert({"views": views, "services": {"s": {"name": "s"}}}, Reach)
    assert reach.boundaries(source) == crossed
    assert bool(reach.of(source)) == bool(crossed)
