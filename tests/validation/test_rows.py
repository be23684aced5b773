"""Does the generated row function judge each event alone, and can nothing in a contract become code?"""

import datetime as dt
import re
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from validation.compiled.rows import BROKEN, compile_rows
from validation.contract import Column, Contract, Rule
from validation.errors import ContractError

US = 1_000_000


def contract(*rules: tuple[str, dict[str, Any]], modes: str = "quarantine", **columns: str) -> Contract:
    """A contract of quarantining rules r0, r1, …"""
    return Contract(
        name="c",
        version="1",
        source="s",
        columns=tuple(Column(name=name, logical_type=kind) for name, kind in columns.items()),
        rules=tuple(
            Rule(id=f"r{n}", expectation=type_, arguments=arguments, mode=modes)  # type: ignore[arg-type]
            for n, (type_, arguments) in enumerate(rules)
        ),
    )


BETWEEN = "expect_column_values_to_be_between"
AHEAD = "expect_column_pair_values_a_to_not_be_ahead_of_b"


def test_bits_follow_the_order_of_the_rules() -> None:
    """Bit i is rule i, in masks, ids and tally."""
    check = compile_rows(
        contract(
            (BETWEEN, {"column": "x", "min_value": 0}),
            ("expect_column_values_to_not_be_null", {"column": "y"}),
            (BETWEEN, {"column": "y", "max_value": 9}),
            x="number",
            y="number",
        )
    )
    masks = check.check([{"x": -1.0, "y": None}, {"x": 1.0, "y": 10}, {"x": None, "y": 1}])
    assert masks == [0b011, 0b100, 0]
    assert [check.ids(mask) for mask in masks] == [("r0", "r1"), ("r2",), ()]
    assert check.tally(masks) == [1, 1, 1]
    assert check.quarantine_mask == 0b111


def test_structs_and_mappings_are_judged_alike() -> None:
    """Decoded events may be Structs; an absent column is missing in both."""
    check = compile_rows(
        contract(
            (BETWEEN, {"column": "x", "min_value": 0}),
            ("expect_column_values_to_not_be_null", {"column": "absent"}),
            x="number",
            absent="string",
        )
    )
    event = msgspec.defstruct("Event", [("x", float)])
    assert check.check([event(1.0), event(-1.0)]) == check.check([{"x": 1.0}, {"x": -1.0}]) == [0b10, 0b11]


@pytest.mark.parametrize("ahead_us", [-1, 0, 5 * US, 5 * US + 1])
@pytest.mark.parametrize("form", ["microseconds", "datetime", "text"])
def test_an_event_ahead_of_its_arrival_is_seen(ahead_us: int, form: str) -> None:
    """Beyond the tolerance, to the microsecond, in every form an instant may come in."""
    check = compile_rows(contract((AHEAD, {"column_A": "t", "tolerance_s": 5}), t="timestamp"))
    arrival = 1_700_000_000 * US
    at = dt.datetime(1970, 1, 1, tzinfo=dt.UTC) + dt.timedelta(microseconds=arrival + ahead_us)
    value = {"microseconds": arrival + ahead_us, "datetime": at, "text": at.isoformat().replace("+00:00", "Z")}[form]
    assert check.check([{"t": value}], [arrival]) == [int(ahead_us > 5 * US)]
    assert check.check([{"t": value}]) == [0], "nobody knows the arrival"


@pytest.mark.parametrize("wrong", ["soon", [1], {"a": 1}, b"1", object()])
def test_a_value_of_another_type_breaks_its_rules_and_no_others(wrong: object) -> None:
    """One bad event neither stops its neighbours nor passes."""
    check = compile_rows(
        contract(
            (BETWEEN, {"column": "x", "min_value": 0}),
            ("expect_column_values_to_be_in_set", {"column": "o", "value_set": ["EWR"]}),
            (BETWEEN, {"column": "t", "min_value": "2020-01-01"}),
            x="number",
            o="string",
            t="timestamp",
        )
    )
    good = {"x": 1.0, "o": "EWR", "t": "2021-01-01T00:00:00Z"}
    masks = check.check([good, {**good, "x": wrong}, {**good, "o": "JFK", "x": wrong}, {**good, "t": wrong}, good])
    assert masks == [0, 0b001, 0b011, 0b100, 0]


@pytest.mark.parametrize(
    ("type_", "arguments", "why"),
    [
        ("expect_column_values_to_be_unique", {"column": "x"}, "looks at more than one row"),
        ("expect_column_mean_to_be_between", {"column": "x", "max_value": 1}, "looks at more than one row"),
        (BETWEEN, {"column": "x", "max_value": 1, "mostly": 0.9}, "mostly is a share of many rows"),
        ("expect_column_values_to_be_increasing", {"column": "x"}, "judged by Great Expectations on batches"),
    ],
)
def test_rules_of_many_events_observe_only(type_: str, arguments: dict[str, Any], why: str) -> None:
    """With the mode quarantine they are refused with name and reason; otherwise they let events pass."""
    with pytest.raises(ContractError, match=f"rule 'r0': mode quarantine cannot be kept for events: .*{why}"):
        compile_rows(contract((type_, arguments), x="number"))
    check = compile_rows(contract((type_, arguments), modes="observe", x="number"))
    assert check.quarantine_mask == 0
    assert check.unjudged == (() if "mostly" in arguments else ("r0",))


EVIL = [
    "x'); import os; os.abort()#",
    'x"\n raise SystemExit',
    "{__import__('os')}",
    *("k0", "v0", "e", "get", "masks", "\\"),
]


@pytest.mark.parametrize("text", EVIL)
def test_no_text_of_a_contract_becomes_code(text: str) -> None:
    """Column names, values and patterns that look like Python are names, values and patterns."""
    check = compile_rows(
        contract(
            ("expect_column_values_to_be_in_set", {"column": text, "value_set": [text]}),
            ("expect_column_values_to_match_regex", {"column": text, "regex": re.escape(text)}),
            **{text: "string"},
        )
    )
    assert check.check([{text: text}, {text: "other!"}])[0] == 0
    assert text not in check.source or text in {"k0", "v0", "e", "get", "masks"}


@settings(deadline=None, max_examples=50)
@given(st.text(min_size=1), st.text(), st.floats(allow_nan=False, allow_infinity=False))
def test_the_generated_text_depends_on_the_shape_alone(name: str, value: str, bound: float) -> None:
    """Two contracts that differ in names and values only have the same generated text."""
    rules = (
        ("expect_column_values_to_be_in_set", {"column": name, "value_set": [value]}),
        (BETWEEN, {"column": f"{name}2", "min_value": bound}),
    )
    plain = (
        ("expect_column_values_to_be_in_set", {"column": "a", "value_set": ["b"]}),
        (BETWEEN, {"column": "c", "min_value": 0}),
    )
    ours = compile_rows(contract(*rules, **{name: "string", f"{name}2": "number"}))
    assert ours.source == compile_rows(contract(*plain, a="string", c="number")).source
    assert ours.check([{name: value, f"{name}2": bound}]) == [0]


def test_many_rules_have_many_bits() -> None:
    """Masks are not limited to a machine word."""
    rules = [(BETWEEN, {"column": "x", "max_value": n}) for n in range(100)]
    check = compile_rows(contract(*rules, x="integer"))
    assert check.check([{"x": 70}]) == [(1 << 70) - 1]


def test_arrivals_must_match_events() -> None:
    """One arrival for each event, or none at all."""
    check = compile_rows(contract((BETWEEN, {"column": "x", "min_value": 0}), x="number"))
    with pytest.raises(ValueError, match="2 events and 1 arrivals"):
        check.check([{}, {}], [0])
    assert check.check([]) == []


def test_a_rule_quarantines_where_its_mode_at_the_boundary_says_so() -> None:
    """The same rule sets an event aside and only warns of a producer's row."""
    rule = Rule(
        id="r",
        expectation="expect_column_values_to_not_be_null",
        arguments={"column": "id"},
        mode="warn",
        modes={"event": "quarantine"},
    )
    kept = Contract(
        name="c", version="1", source="s", columns=(Column(name="id", logical_type="string"),), rules=(rule,)
    )
    assert compile_rows(kept.at("event")).quarantine_mask == 1
    assert compile_rows(kept.at("producer")).quarantine_mask == 0


def test_what_a_pattern_found_is_remembered_rightly_and_little_of_it() -> None:
    """However often and in whatever order texts come, the answer is the pattern's; a column of keys fills no memory."""
    check = compile_rows(contract(("expect_column_values_to_match_regex", {"column": "s", "regex": "7$"}), s="string"))
    texts = [f"{n % 3_000}" for n in range(7_000)] + ["x" * 10_000 + "7", 7, True, "True"]
    assert check.check([{"s": each} for each in texts]) == [0 if str(each).endswith("7") else 1 for each in texts]
    remembered = [each for each in check._mappings.__defaults__ or () if isinstance(each, dict)]
    assert len(remembered) == 1
    assert len(remembered[0]) == 1_024


@pytest.mark.parametrize("count", [1, 10, 32, 33, 500])
def test_a_tally_counts_every_bit_of_every_mask(count: int) -> None:
    """Few masks are counted in another way than many: both as one by one."""
    check = compile_rows(contract(*[(BETWEEN, {"column": "x", "max_value": n}) for n in range(9)], x="integer"))
    masks = [n * 7 % 512 for n in range(count)]
    assert check.tally(masks) == [sum(mask >> bit & 1 for mask in masks) for bit in range(9)]


@settings(deadline=None, max_examples=200)
@given(
    st.lists(
        st.fixed_dictionaries(
            {
                "x": st.sampled_from([None, float("nan"), -1, 0, 1, 2.5, 3, True, "1", [1], 10**30]),
                "s": st.sampled_from([None, float("nan"), "", "AA", "b1", 7, True, 1, 1.0, ["AA"], "x" * 40]),
                "t": st.sampled_from([None, float("nan"), 0, 5, "1970-01-01T00:00:01Z", "soon", True]),
            }
        ),
        min_size=1,
        max_size=40,
    )
)
def test_one_look_at_a_column_answers_as_each_of_its_rules_alone(events: list[dict[str, Any]]) -> None:
    """Ranges and sets that are asked together, and what is remembered of texts, change no bit of any event."""
    check = compile_rows(
        contract(
            (BETWEEN, {"column": "x", "min_value": 0, "max_value": 3}),
            (BETWEEN, {"column": "x", "min_value": 0, "strict_min": True}),
            ("expect_column_values_to_be_in_set", {"column": "x", "value_set": [0, 1, 3]}),
            ("expect_column_values_to_not_be_null", {"column": "x"}),
            ("expect_column_values_to_match_regex", {"column": "s", "regex": "^[A-Z0-9]"}),
            ("expect_column_values_to_be_in_set", {"column": "s", "value_set": ["AA", "1"]}),
            ("expect_column_values_to_be_of_type", {"column": "s", "type_": "str"}),
            ("expect_column_values_to_be_null", {"column": "s"}),
            ("expect_column_values_to_not_be_null", {"column": "s"}),
            (BETWEEN, {"column": "t", "min_value": "1970-01-01"}),
            ("expect_column_values_to_not_be_null", {"column": "t"}),
            ("expect_column_pair_values_to_be_equal", {"column_A": "s", "column_B": "r", "ignore_row_if": "neither"}),
            x="number",
            s="string",
            r="string",
            t="timestamp",
        )
    )
    judges = [check.judge(bit) for bit in range(len(check.rule_ids))]
    alone = [sum((judge(event, None) == BROKEN) << bit for bit, judge in enumerate(judges)) for event in events]  # type: ignore[misc]
    assert check.check(events) == alone
