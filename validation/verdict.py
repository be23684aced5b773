"""Did the data keep the promise?

Four outcomes are told apart: the rules hold (passed), the data is bad (failed), the check itself could not be made
(broken), and there was nothing to check (no data). `success` is Great Expectations' own answer, which passes an empty
batch; the outcome does not.
"""

from typing import Any, Literal

import msgspec

from validation.contract import Mode, Rule, Severity

Outcome = Literal["passed", "failed", "broken", "no data"]


class Sample(msgspec.Struct, frozen=True, kw_only=True):
    """One row that breaks a rule: its number in the batch, from 0, and the columns that the rule reads."""

    row: int
    values: dict[str, Any]


class RuleVerdict(msgspec.Struct, frozen=True, kw_only=True):
    """What became of one rule on one batch. Counts are None where the rule counts no rows."""

    rule_id: str
    outcome: Outcome
    success: bool | None
    """Great Expectations' answer; None where the check broke."""
    severity: Severity
    mode: Mode
    rows: int | None = None
    """Rows that met the row condition."""
    evaluated: int | None = None
    """Rows considered: those not left out for missing values."""
    unexpected: int | None = None
    percent: float | None = None
    """Unexpected rows in percent of those evaluated; None where there are none."""
    observed: Any = None
    """The statistic of an aggregate rule."""
    samples: tuple[Sample, ...] = ()
    reason: str = ""
    """Why the check broke."""


class Verdict(msgspec.Struct, frozen=True, kw_only=True):
    """What became of a contract's rules on one batch, in the order of the rules."""

    contract: str
    version: str
    source: str
    rows: int
    rules: tuple[RuleVerdict, ...]

    @property
    def outcome(self) -> Outcome:
        """broken before failed before no data before passed: an unmade check is not excused by a made one."""
        found = {rule.outcome for rule in self.rules}
        if "broken" in found:
            return "broken"
        if "failed" in found:
            return "failed"
        return "no data" if self.rows == 0 else "passed"

    @property
    def blocked(self) -> tuple[str, ...]:
        """Ids of the rules whose mode is block and that failed or broke: the batch must not pass."""
        return tuple(r.rule_id for r in self.rules if r.mode == "block" and r.outcome in {"failed", "broken"})

    @property
    def stops(self) -> tuple[str, ...]:
        """Ids of the rules for which a batch must not pass: those that block, and quarantining ones that broke.

        What a quarantining rule would have set aside cannot be told where it could not be judged.
        """
        unjudged = tuple(r.rule_id for r in self.rules if r.mode == "quarantine" and r.outcome == "broken")
        return (*self.blocked, *unjudged)

    def rule(self, rule_id: str) -> RuleVerdict:
        """The verdict on one rule; raises KeyError."""
        for rule in self.rules:
            if rule.rule_id == rule_id:
                return rule
        raise KeyError(rule_id)


def counted(
    rule: Rule,
    *,
    rows: int,
    evaluated: int,
    unexpected: int,
    mostly: float,
    samples: tuple[Sample, ...] = (),
) -> RuleVerdict:
    """The verdict of counts as Great Expectations judges: no row considered is success, else the share decides.

    >>> rule = Rule(id="r", expectation="expect_column_values_to_not_be_null", arguments={})
    >>> counted(rule, rows=4, evaluated=4, unexpected=1, mostly=0.75).outcome
    'passed'
    """
    success = evaluated == 0 or (float(evaluated) - float(unexpected)) / float(evaluated) >= mostly
    return RuleVerdict(
        rule_id=rule.id,
        outcome="no data" if rows == 0 else "passed" if success else "failed",
        success=success,
        severity=rule.severity,
        mode=rule.mode,
        rows=rows,
        evaluated=evaluated,
        unexpected=unexpected,
        percent=unexpected / evaluated * 100 if evaluated else None,
        samples=samples,
    )


def stated(rule: Rule, *, success: bool, observed: Any, rows: int | None) -> RuleVerdict:
    """The verdict of a rule about a statistic or about columns; over no rows a statistic is no data.

    >>> rule = Rule(id="r", expectation="expect_column_mean_to_be_between", arguments={})
    >>> stated(rule, success=False, observed=None, rows=0).outcome
    'no data'
    """
    return RuleVerdict(
        rule_id=rule.id,
        outcome="no data" if rows == 0 else "passed" if success else "failed",
        success=success,
        severity=rule.severity,
        mode=rule.mode,
        rows=rows,
        observed=observed,
    )


def broken(rule: Rule, reason: str) -> RuleVerdict:
    """The verdict of a rule that could not be judged.

    >>> broken(Rule(id="r", expectation="expect_column_to_exist", arguments={}), "no column 'x'").success
    """
    return RuleVerdict(
        rule_id=rule.id, outcome="broken", success=None, severity=rule.severity, mode=rule.mode, reason=reason
    )
