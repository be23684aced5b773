"""What does an answer hold where a value is missing, stale, incomplete or invalid? What the service's policy says.

Features are replaced as they leave; what on-demand views compute from is what was found. A replaced value has no event
time. Where the policy tells, its status says why it was replaced (INVALID for what is wrong in itself).
"""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import msgspec
import numpy as np
import numpy.typing as npt

from featurestore.api.answer import Answered
from featurestore.api.faults import Refused
from featurestore.api.request import from_json
from featurestore.api.selection import Output
from featurestore.coercion import coerce
from featurestore.online.result import Status
from featurestore.plan import Plan, Service, ServingPolicy
from featurestore.view_rules import ViewRules, rules_of

INVALID = 0
"""Feast's FieldStatus of that name."""
_STATUSES: tuple[tuple[str, tuple[int, ...]], ...] = (
    ("missing", (Status.NOT_FOUND, Status.NULL_VALUE)),
    ("stale", (Status.OUTSIDE_MAX_AGE,)),
    ("incomplete", (Status.INCOMPLETE,)),
)
Mask = npt.NDArray[np.bool_]


@dataclass(frozen=True, eq=False)
class _Judge:
    """The contract's rules over one view's outputs."""

    rules: ViewRules
    places: Mapping[str, int]
    """Column of the source -> number of the output."""


class AppliedPolicy:
    """The policy of one service over the outputs of one kind of request."""

    def __init__(self, plan: Plan, service: Service, outputs: Sequence[Output]) -> None:
        self._service = service.name
        self._policy = service.policy
        self._outputs = outputs
        self._defaults = [self._default(output) for output in outputs]
        self._judges = list(_judges(plan, service, outputs)) if self._policy.invalid != "value" else []

    def _default(self, output: Output) -> Any:
        defaults = self._policy.defaults
        value = defaults.get(f"{output.view}__{output.feature}", defaults.get(output.feature))
        return coerce([from_json(value, output.dtype)], output.dtype)[0]

    def apply(self, columns: Sequence[Answered]) -> list[Answered]:
        """The features of an answer (join keys left out), replaced where the policy says so, in their order.

        Raises Refused (422) where a value is what the policy calls an error.
        """
        lists = [column.values if isinstance(column.values, list) else column.values.tolist() for column in columns]
        invalid = self._invalid(columns, lists) if self._policy.invalid != "value" else {}
        return [self._column(place, column, lists[place], invalid.get(place)) for place, column in enumerate(columns)]

    def alarmed(self, columns: Sequence[Answered]) -> list[Answered]:
        """The features of an answer while an alarm is on: null or default, whatever was found."""
        made = []
        for column, default in zip(columns, self._defaults, strict=True):
            value = default if self._policy.alarm == "default" else None
            rows = len(column.statuses)
            status = INVALID if self._policy.told else Status.NULL_VALUE if value is None else Status.PRESENT
            made.append(
                msgspec.structs.replace(
                    column,
                    values=[value] * rows,
                    statuses=np.full(rows, status, np.uint8),
                    event_us=np.zeros(rows, np.int64),
                )
            )
        return made

    def _column(self, place: int, column: Answered, values: list[Any], invalid: Mask | None) -> Answered:
        replaced = np.zeros(len(values), np.bool_)
        statuses = column.statuses
        made: list[Any] | None = None
        cases: list[tuple[str, Mask]] = [
            (case, np.isin(column.statuses, found))
            for case, found in _STATUSES
            if getattr(self._policy, case) != "value"
        ]
        if invalid is not None:
            cases.append(("invalid", invalid))
        for case, found in cases:
            mask = found & ~replaced
            if not mask.any():
                continue
            instead = getattr(self._policy, case)
            if instead == "error":
                output = self._outputs[place]
                raise Refused(
                    422,
                    "refused_by_policy",
                    f"service {self._service!r} refuses {case} values: {int(mask.sum())} of {output.view}:"
                    f"{output.feature}, the first in row {int(mask.argmax())} (counted from 0)",
                )
            value = self._defaults[place] if instead == "default" else None
            made = [value if gone else each for gone, each in zip(mask.tolist(), made or values, strict=True)]
            if not self._policy.told:
                status = Status.NULL_VALUE if value is None else Status.PRESENT
                statuses = np.where(mask, np.uint8(status), statuses)
            elif case == "invalid":
                statuses = np.where(mask, np.uint8(INVALID), statuses)
            replaced |= mask
        if made is None:
            return column
        event_us = np.where(replaced, 0, column.event_us)
        return msgspec.structs.replace(column, values=made, statuses=statuses, event_us=event_us)

    def _invalid(self, columns: Sequence[Answered], lists: Sequence[list[Any]]) -> dict[int, Mask]:
        """Which values are wrong in themselves, by output; missing and stale ones never are."""
        given = [np.isin(column.statuses, (Status.PRESENT, Status.INCOMPLETE)) for column in columns]
        found: dict[int, Mask] = {}
        for place, values in enumerate(lists):
            if self._outputs[place].dtype in ("FLOAT", "DOUBLE"):
                wrong = [isinstance(value, float) and not math.isfinite(value) for value in values]
                found[place] = np.array(wrong, np.bool_) & given[place]
        for judge in self._judges:
            names, places = list(judge.places), list(judge.places.values())
            rows = [dict(zip(names, row, strict=True)) for row in zip(*(lists[each] for each in places), strict=True)]
            masks = [mask & judge.rules.refusing for mask in judge.rules.check.check(rows)]
            for bit, about in enumerate(judge.rules.columns):
                broken = np.array([mask >> bit & 1 for mask in masks], np.bool_)
                for name in about:
                    place = judge.places[name]
                    found[place] = found.get(place, np.zeros(len(broken), np.bool_)) | (broken & given[place])
        return found


def _judges(plan: Plan, service: Service, outputs: Sequence[Output]) -> Iterator[_Judge]:
    for projection in service.projections:
        view = plan.views.get(projection.view)
        # The columns of a windowed view's source are those of events, not its features.
        if view is None or view.kind == "windowed":
            continue
        back = {inner: outer for outer, inner in view.source.field_mapping.items()}
        places = {
            back.get(output.feature, output.feature): number
            for number, output in enumerate(outputs)
            if output.view == projection.name
        }
        rules = rules_of(plan, view, places)
        if rules is not None and rules.refusing:
            yield _Judge(rules, places)


def policy_of(
    plan: Plan, service: str | None, outputs: Sequence[Output], *, fallback: bool = False
) -> Callable[[Sequence[Answered]], list[Answered]] | None:
    """What applies a service's policy to the features of an answer; None where values go out as they are found.

    With `fallback` every value is what the policy says of an alarm; null where this is an earlier plan's, and is gone.
    """
    found = None if service is None else plan.services.get(service)
    if found is None or found.policy == ServingPolicy():
        return None
    applied = AppliedPolicy(plan, found, outputs)
    return applied.alarmed if fallback and found.policy.alarm != "value" else applied.apply
