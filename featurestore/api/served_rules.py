"""Do served answers keep the contracts of what they were made of?

A Look: a random share of the answers of each service is judged after the response, each row by the rules that hold for
features (`featurestore.contracts`). Nothing is set aside or refused any more: whatever its mode, a rule that fails is
counted, and what was gathered becomes a violation report now and then.
"""

from collections.abc import Callable, Sequence
from typing import Any, Final

import msgspec

from featurestore.api.again import Served
from featurestore.api.metrics import Metrics
from featurestore.api.selection import Selection
from featurestore.clock import Clock
from featurestore.contracts import Held, held
from featurestore.errors import DefinitionError
from featurestore.plan import Plan
from validation.check import RowCheckable
from validation.compiled.rows import BROKEN, FILTERED, MISSING, RowCheck, compile_rows
from validation.contract import Contract
from validation.reach import Reach
from validation.report import ViolationReport, report_of
from validation.verdict import RuleVerdict, Sample, Verdict, counted

RATE_TAG: Final = "contract_rate"
"""Tag of a feature service: the share of its answers that are judged, 0 to 1."""
RATE: Final = 0.01
"""The share of answers where no tag says another."""
REPORT_AGE_US: Final = 30_000_000
SAMPLES: Final = 5
_KEPT: Final = 256


class _Count:
    """What became of one rule since the last report."""

    def __init__(self) -> None:
        self.rows = self.evaluated = self.unexpected = 0
        self.samples: list[Sample] = []


class _Judged:
    """One contract held against the answers of one kind of request."""

    def __init__(self, one: Held, plan: Plan, origin: str, places: dict[str, int]) -> None:
        self.contract, self.plan, self.origin = one.contract, plan, origin
        self.check: RowCheck = compile_rows(_observing(one.contract))
        self.columns = {column: places[name] for column, name in one.columns.items()}
        self.counts = [_Count() for _ in one.contract.rules]
        self.rows = 0

    def judge(self, served: Served, metrics: Metrics) -> None:
        """Judges every row of an answer."""
        values = {column: list(served.answered[place].values) for column, place in self.columns.items()}
        rows = [dict(zip(values, row, strict=True)) for row in zip(*values.values(), strict=True)]
        first, self.rows = self.rows, self.rows + len(rows)
        for bit, (rule, count) in enumerate(zip(self.contract.rules, self.counts, strict=True)):
            judge = self.check.judge(bit)
            assert judge is not None  # rules about rows alone are kept here
            codes = [judge(row, served.requested_us) for row in rows]
            broken, left = codes.count(BROKEN), codes.count(FILTERED)
            missing = codes.count(MISSING)
            count.rows += len(rows) - left
            count.evaluated += len(rows) - left - missing
            count.unexpected += broken
            metrics.held_to(self.contract.name, rule.id, kept=len(rows) - left - missing - broken, broken=broken)
            for number, (code, row) in enumerate(zip(codes, rows, strict=True)):
                if code == BROKEN and len(count.samples) < SAMPLES:
                    count.samples.append(Sample(row=first + number, values=row))

    def verdict(self) -> Verdict:
        """What was found since the last time."""
        meanings = self.contract.expectations()
        rules: list[RuleVerdict] = []
        for rule, meaning, count in zip(self.contract.rules, meanings, self.counts, strict=True):
            told = counted(
                rule,
                rows=count.rows,
                evaluated=count.evaluated,
                unexpected=count.unexpected,
                mostly=meaning.mostly,
                samples=tuple(count.samples),
            )
            rules.append(told)
        found = Verdict(
            contract=self.contract.name,
            version=self.contract.version,
            source=self.contract.source,
            rows=self.rows,
            rules=tuple(rules),
        )
        self.counts, self.rows = [_Count() for _ in self.counts], 0
        return found


class ContractLook:
    """Judges sampled answers; `record` gets a report of what failed, at most every `REPORT_AGE_US` per contract."""

    name = "contracts"

    def __init__(
        self, record: Callable[[ViolationReport], object], metrics: Metrics, clock: Clock, *, writer: str
    ) -> None:
        """`writer` is this process's name, so that reports of two workers are two."""
        self._record, self._metrics, self._clock, self._writer = record, metrics, clock, writer
        self._judged: dict[tuple[int, str | None, int], tuple[Selection, list[_Judged]]] = {}
        self._since_us = clock()

    def share(self, plan: Plan, service: str | None) -> float:
        """See Look; none where the plan has no contract. Raises DefinitionError for a tag that is no share."""
        if not plan.contracts:
            return 0.0
        text = plan.services[service].tags.get(RATE_TAG) if service is not None else None
        try:
            rate = RATE if text is None else float(text)
        except ValueError:
            rate = -1.0
        if not 0 <= rate <= 1:
            raise DefinitionError(f"feature service {service!r}: tag {RATE_TAG} is {text!r}; give a share from 0 to 1")
        return rate

    def look(self, served: Served) -> None:
        """See Look."""
        key = (served.plan.version, served.service, id(served.selection))
        found = self._judged.get(key)
        if found is None or found[0] is not served.selection:
            if len(self._judged) >= _KEPT:
                self._report()
                self._judged.clear()
            found = self._judged[key] = (served.selection, _judged(served))
        for one in found[1]:
            one.judge(served, self._metrics)

    def rest(self) -> None:
        """See Look."""
        if self._clock() - self._since_us >= REPORT_AGE_US:
            self._report()

    def finish(self) -> None:
        """See Look."""
        self._report()

    def _report(self) -> None:
        now_us, self._since_us = self._clock(), self._clock()
        for _, judged in self._judged.values():
            for one in judged:
                if not one.rows:
                    continue
                verdict = one.verdict()
                if verdict.outcome == "failed":
                    self._record(
                        report_of(
                            verdict,
                            one.contract,
                            report_id=f"{one.contract.name}-{one.origin}-{self._writer}-{now_us}",
                            now_us=now_us,
                            boundary="online_serve",
                            origin=one.origin,
                            affected=msgspec.json.decode(one.plan.encode(), type=Reach).of_verdict(
                                verdict, one.contract
                            ),
                        )
                    )


def _judged(served: Served) -> list[_Judged]:
    outputs, keys = served.selection.outputs, list(served.keys)
    names = {(output.view, output.feature): output.name for output in outputs}
    places = {name: place for place, name in enumerate([*keys, *(output.name for output in outputs)])}
    projections = _asked(served, names)
    found = held(served.plan, projections, names, boundary="online_serve", service=served.service, others=keys)
    origin = f"service {served.service}" if served.service is not None else "features by name"
    kept = (msgspec.structs.replace(one, contract=_of_rows(one)) for one in found)
    return [_Judged(one, served.plan, origin, places) for one in kept if one.contract.rules]


def _asked(served: Served, names: dict[tuple[str, str], str]) -> Sequence[Any]:
    """What was read, without the features that only on-demand views needed."""
    return [
        msgspec.structs.replace(
            projection, features=tuple(name for name in projection.features if (projection.name, name) in names)
        )
        for projection in served.selection.reads
    ]


def _of_rows(one: Held) -> Contract:
    """The contract's rules that one row decides, `mostly` ones too, of which every column was answered."""
    rules = tuple(
        rule
        for rule, meaning in zip(one.contract.rules, one.contract.expectations(), strict=True)
        if isinstance(meaning.check, RowCheckable) and set(meaning.columns) <= set(one.columns)
    )
    return msgspec.structs.replace(one.contract, rules=rules)


def _observing(contract: Contract) -> Contract:
    return msgspec.structs.replace(
        contract, rules=tuple(msgspec.structs.replace(rule, mode="observe") for rule in contract.rules)
    )
