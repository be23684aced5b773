"""Does a report tell the producer what to act on, and nothing that is not theirs to read?"""

import msgspec
import pyarrow as pa

from validation.compiled.batch import compile_batch
from validation.contract import Column, Contract, Rule
from validation.page import violation_page
from validation.report import MASK, event_time_column, event_window, masked, report_of
from validation.verdict import RuleVerdict, Verdict
from validation.violations import fold

CONTRACT = Contract(
    name="people",
    version="2.0.0",
    source="people",
    owner="crm",
    support="mailto:crm@example.com",
    columns=(
        Column(name="email", logical_type="string", classification="PII"),
        Column(name="age", logical_type="integer"),
        Column(name="at", logical_type="timestamp"),
    ),
    rules=(
        Rule(
            id="age_range",
            expectation="expect_column_values_to_be_between",
            arguments={"column": "age", "min_value": 0},
            severity="info",
        ),
        Rule(
            id="email_form",
            expectation="expect_column_values_to_match_regex",
            arguments={"column": "email", "regex": "@"},
            severity="critical",
        ),
        Rule(id="email_there", expectation="expect_column_values_to_not_be_null", arguments={"column": "email"}),
        Rule(id="gone", expectation="expect_column_values_to_not_be_null", arguments={"column": "at"}),
    ),
)
BAD = pa.table({"email": ["secret-address", None, "a@b"], "age": [-1, -2, 3]})


def report(table: pa.Table, samples: int = 5) -> dict[str, object]:
    """The report of a table, as a reader of its JSON sees it."""
    verdict = compile_batch(CONTRACT).run(table)
    made = report_of(
        *(verdict, CONTRACT),
        report_id="r-1",
        now_us=0,
        boundary="producer",
        origin="people.csv",
        origin_range=(0, 2),
        quarantined=1,
        samples=samples,
    )
    found: dict[str, object] = msgspec.json.decode(made.encode())
    return found


def test_failing_and_broken_rules_are_reported_most_severe_first() -> None:
    """With counts, what was expected, mode, and why a check broke."""
    told = report(BAD)
    assert [v["rule_id"] for v in told["violations"]] == ["email_form", "email_there", "gone", "age_range"]  # type: ignore[attr-defined]
    first = told["violations"][0]  # type: ignore[index]
    assert (first["evaluated"], first["failed"], first["percent"]) == (2, 1, 50.0)
    assert first["expected"] == {"column": "email", "regex": "@"}
    assert "no column 'at'" in told["violations"][2]["reason"]  # type: ignore[index]
    assert (told["owner"], told["outcome"], told["quarantined"]) == ("crm", "broken", 1)
    assert (told["created"], told["origin_range"]) == ("1970-01-01T00:00:00+00:00", [0, 2])


def test_personal_values_are_masked() -> None:
    """No value of a classified column is in the report; that it is missing is."""
    told = report(BAD)
    assert "secret-address" not in str(told)
    assert told["violations"][0]["samples"] == [{"row": 0, "values": {"email": MASK}}]  # type: ignore[index]
    assert told["violations"][1]["samples"] == [{"row": 1, "values": {"email": None}}]  # type: ignore[index]
    assert told["violations"][3]["samples"][0] == {"row": 0, "values": {"age": -1}}  # type: ignore[index]


def test_a_planted_leak_is_seen() -> None:
    """Were the column not classified, its values would show: the mask is what keeps them out."""
    open_columns = tuple(msgspec.structs.replace(column, classification="") for column in CONTRACT.columns)
    leaking = msgspec.structs.replace(CONTRACT, columns=open_columns)
    verdict = compile_batch(leaking).run(BAD)
    made = report_of(verdict, leaking, report_id="r", now_us=0, boundary="producer", origin="x")
    assert b"secret-address" in made.encode()


def test_a_report_stays_small_however_much_is_bad() -> None:
    """Samples are limited in number and in length."""
    many = pa.table({"email": ["x" * 1_000] * 20_000, "age": [-1] * 20_000})
    assert len(str(report(many))) < 5_000
    assert [len(v["samples"]) for v in report(many, samples=2)["violations"]] == [2, 0, 2]  # type: ignore[attr-defined]


def test_the_event_window_is_that_of_the_contracts_event_time() -> None:
    """Of `event_timestamp`, else of the first timestamp; none where there is none."""
    assert event_time_column(CONTRACT) == "at"
    assert event_window(pa.table({"at": pa.nulls(2, pa.timestamp("us", "UTC"))}), "at") is None
    assert event_window(BAD, "at") is None


def test_what_a_rule_says_of_several_columns_is_masked_where_one_is() -> None:
    """Reason and observed value may quote either column of a pair, or one of a list."""
    for arguments in (
        {"column_A": "age", "column_B": "email"},
        {"column_list": ["age", "email"]},
        {"columns": ["age"], "segments": ["email"]},
    ):
        rule = Rule(id="r", expectation="expect_column_values_to_not_be_null", arguments=arguments)
        contract = msgspec.structs.replace(CONTRACT, rules=(rule,))
        told = RuleVerdict(
            rule_id="r",
            outcome="broken",
            success=False,
            severity="warning",
            mode="warn",
            observed="secret-address",
            reason="secret-address is none",
        )
        verdict = Verdict(contract="people", version="2.0.0", source="people", rows=1, rules=(told,))
        made = report_of(verdict, contract, report_id="r", now_us=0, boundary="producer", origin="f")
        for text in (made.encode().decode(), str(masked(verdict, contract))):
            assert "secret-address" not in text
            assert MASK in text


def test_a_violation_tells_all_that_a_producer_acts_on() -> None:
    """Each word of it, in the JSON of a violation that was folded and on its page; none is left empty."""
    told = {
        "report_id": "r-2",
        "contract": "people",
        "version": "2.0.0",
        "rule_id": "age_range",
        "severity": "info",
        "mode": "quarantine",
        "dimension": "validity",
        "boundary": "event",
        "producer": "signup-form",
        "owner": "crm",
        "support": "mailto:crm@example.com",
        "origin": "people-topic",
        "origin_id": "id-7",
        "origin_partition": 3,
        "origin_range": [40, 42],
        "event_window": ["2024-05-01T00:00:00+00:00", "2024-05-01T01:00:00+00:00"],
        "evaluated": 6,
        "rows": 4,
        "allowed": 0,
        "expected": {"column": "age", "min_value": 0},
        "samples": [{"row": 0, "values": {"age": -1}}, {"row": 1, "values": {"age": -2}}],
        "first_seen": "1970-01-01T00:00:00+00:00",
        "last_seen": "1970-01-01T00:01:00+00:00",
        "count": 2,
        "affected": ["view ages", "service ads"],
        "action": "2 rows set aside",
        "replay": "featurestore quarantine replay people",
    }
    age = msgspec.structs.replace(CONTRACT.rules[0], mode="quarantine", dimension="validity")
    contract = msgspec.structs.replace(CONTRACT, rules=(age,), producer="signup-form")
    verdict, one = compile_batch(contract).run(BAD), None
    for number in (1, 2):
        report = report_of(
            *(verdict, contract),
            report_id=f"r-{number}",
            now_us=(number - 1) * 60_000_000,
            boundary="event",
            origin="people-topic",
            origin_id="id-7",
            origin_partition=3,
            origin_range=(40, 42),
            event_window=("2024-05-01T00:00:00+00:00", "2024-05-01T01:00:00+00:00"),
            quarantined=2,
            affected=("view ages", "service ads"),
        )
        one = fold("violation", one, report, report.violations[0], number)
    assert one is not None
    found = msgspec.json.decode(msgspec.json.encode(one))
    assert {name: found[name] for name in told} == told
    page = violation_page(one).decode()
    on_it = {
        **told,
        "origin_range": "40 to 42",
        "affected": "view ages, service ads",
        "samples": -2,
        "count": "2 times",
    }
    on_it |= {"event_window": " to ".join(told["event_window"]), "expected": "min_value: 0", "rows": "4 of 6"}  # type: ignore[arg-type]
    assert [name for name, value in on_it.items() if str(value) not in page] == []
