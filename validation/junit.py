"""How does a build server learn of a verdict? JUnit XML: a suite per contract, a test case per rule."""

import re
from typing import Final
from xml.etree.ElementTree import Element, SubElement, indent, tostring

from validation.contract import SEVERITIES, Severity
from validation.report import Violation, ViolationReport
from validation.verdict import RuleVerdict, Verdict

_UNWRITABLE: Final = re.compile("[^\t\n\r\x20-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")
"""Characters that XML 1.0 has no way to write."""


def junit(verdict: Verdict, report: ViolationReport, *, fail_on: Severity = "warning") -> bytes:
    """The verdict as JUnit XML, with the samples of the report, in which personal values are masked.

    A rule that failed at `fail_on` or above is a failure, one that could not be judged an error, one without data
    skipped; a failure of less severity passes, told in `system-out`, as the exit code has it.

    >>> from validation.testing import SMALL, small_report
    >>> b'<failure message="1 of 2 rows' in junit(*small_report(SMALL))
    True
    """
    violations = {violation.rule_id: violation for violation in report.violations}
    suite = Element("testsuite", name=_text(f"{verdict.contract} {verdict.version}"), tests=str(len(verdict.rules)))
    counts = {"failures": 0, "errors": 0, "skipped": 0}
    for rule in verdict.rules:
        case = SubElement(suite, "testcase", classname=_text(verdict.contract), name=_text(rule.rule_id))
        violation = violations.get(rule.rule_id)
        if rule.outcome == "no data":
            SubElement(case, "skipped", message="no data")
            counts["skipped"] += 1
        elif violation is not None:
            counted = SEVERITIES.index(rule.severity) <= SEVERITIES.index(fail_on)
            element, count = ("error", "errors") if rule.outcome == "broken" else ("failure", "failures")
            if counted:
                told = SubElement(case, element, message=_text(told_of(rule)), type=rule.severity)
                told.text = _text(_detail(violation))
                counts[count] += 1
            else:
                SubElement(case, "system-out").text = _text(f"{rule.severity}: {told_of(rule)}\n{_detail(violation)}")
    for name, value in counts.items():
        suite.set(name, str(value))
    root = Element("testsuites", suite.attrib)
    root.append(suite)
    indent(root)
    written: bytes = tostring(root, encoding="utf-8", xml_declaration=True)
    return written


def told_of(rule: RuleVerdict) -> str:
    """One line on a rule that failed or broke, without values.

    >>> told_of(RuleVerdict(rule_id="r", outcome="failed", success=False, severity="info", mode="warn",
    ...                     evaluated=4, unexpected=1))
    '1 of 4 rows'
    """
    if rule.outcome == "broken":
        return "the check broke"
    return (
        "the statistic is out of bounds" if rule.unexpected is None else f"{rule.unexpected} of {rule.evaluated} rows"
    )


def _detail(violation: Violation) -> str:
    lines = [f"{violation.expectation} {violation.expected}", violation.description, violation.reason]
    if violation.observed is not None:
        lines.append(f"observed {violation.observed!r}")
    lines += [f"row {sample.row}: {sample.values}" for sample in violation.samples]
    return "\n".join(line for line in lines if line)


def _text(value: str) -> str:
    return _UNWRITABLE.sub("\N{REPLACEMENT CHARACTER}", value)
