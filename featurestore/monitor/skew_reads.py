"""Offline values of what was served, and the causes of those that differ.

Answers of all services, plan versions and hours are read together: the cost is one read of each view's source for the
values and, where some differ, one or two more for their causes, however many answers there are. A view that cannot be
read is told by its error, and holds no other up.
"""

import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from featurestore.monitor import skew_latest, skew_windowed
from featurestore.monitor.parity import comparable, differing
from featurestore.offline.connection import WATCH_S
from featurestore.offline.history import historical_features
from featurestore.online.result import Status
from featurestore.online.types import to_column
from featurestore.plan import Plan, Projection
from validation.errors import PlatformError
from validation.interrupts import interrupted

Causes = npt.NDArray[np.object_]
"""A Cause for each row, None where the value holds."""
Say = Callable[[str], None]
_AT = "event_timestamp"


class Ask:
    """What was served of one view, and once it is answered what holds offline."""

    def __init__(
        self,
        view: str,
        keys: Mapping[str, pa.Array],
        instant_us: pa.Array,
        event_us: pa.Array,
        served: Mapping[str, pa.Array],
        statuses: Mapping[str, npt.NDArray[np.uint8]],
    ) -> None:
        """`keys` has the view's join keys in their order; `served` and `statuses` a value for each row, by feature."""
        self.view = view
        self.keys = keys
        self.instant_us = instant_us
        self.event_us = event_us
        self.served = served
        self.statuses = statuses
        self.offline: dict[str, pa.Array] = {}
        """By feature, in the types that the store serves."""
        self.causes: dict[str, Causes] = {}
        self.error: PlatformError | None = None
        """Why the view could not be read; then there are neither values nor causes."""

    def differing(self, feature: str) -> npt.NDArray[np.int64]:
        """The rows whose value does not hold offline; one that was served as incomplete is not compared."""
        wrong = differing(self.served[feature], self.offline[feature])
        return np.flatnonzero(wrong & (self.statuses[feature] != Status.INCOMPLETE))


def answer(asks: Iterable[Ask], plan: Plan, *, repo: Path, say: Say) -> None:
    """Answer what is asked, a view at a time; `say` hears how far it is."""
    by_view: dict[tuple[str, str], list[Ask]] = {}
    for ask in asks:
        types = str([column.type for column in ask.keys.values()])
        by_view.setdefault((ask.view, types), []).append(ask)
    for number, ((view, _), group) in enumerate(by_view.items(), 1):
        try:
            say(f"view {view!r} ({number} of {len(by_view)}): {sum(map(_rows, group)):,} answers are read offline")
            _read(group, plan, view, repo, say)
            _explain(group, plan, view, repo, say)
        except PlatformError as error:
            if interrupted():
                raise
            say(f"view {view!r} cannot be audited: {error}")
            for ask in group:
                ask.error = error


def _rows(ask: Ask) -> int:
    return len(ask.instant_us)


def _read(group: list[Ask], plan: Plan, view: str, repo: Path, say: Say) -> None:
    known = {field.name: field.dtype for field in plan.view(view).features}
    features = tuple(dict.fromkeys(name for ask in group for name in ask.served if name in known))
    at = pa.chunked_array([ask.instant_us for ask in group], pa.int64()).cast(pa.timestamp("us", "UTC"))
    keys = {name: pa.chunked_array([ask.keys[name] for ask in group]) for name in group[0].keys}
    read = historical_features(
        plan,
        [Projection(view=view, features=features)],
        pa.table(keys | {_AT: at}),
        repo=repo,
        full_feature_names=True,
        on_share=_seldom(lambda name, share: say(f"view {name!r}: {share:.0%}")),
    )
    columns = {name: to_column(read[f"{view}__{name}"], known[name], name=name) for name in features}
    start = 0
    for ask in group:
        ask.offline = {name: columns[name].slice(start, _rows(ask)) for name in ask.served if name in known}
        start += _rows(ask)


def _seldom(tell: Callable[[str, float], None]) -> Callable[[str, float], None]:
    """Tell no more often than every few seconds."""
    last_s = time.monotonic()

    def hear(name: str, share: float) -> None:
        nonlocal last_s
        if time.monotonic() - last_s >= WATCH_S:
            last_s = time.monotonic()
            tell(name, share)

    return hear


def _explain(group: list[Ask], plan: Plan, name: str, repo: Path, say: Say) -> None:
    view = plan.view(name)
    places: list[tuple[Ask, str, npt.NDArray[np.int64]]] = []
    windowed: list[skew_windowed.Case] = []
    latest: list[skew_latest.Case] = []
    for ask in group:
        for feature in ask.offline:
            ask.causes[feature] = np.full(_rows(ask), None, object)
            differ = ask.differing(feature)
            if not len(differ):
                continue
            places.append((ask, feature, differ))
            chosen = pa.array(differ)
            keys = _tuples([column.take(chosen) for column in ask.keys.values()], len(differ))
            instants = ask.instant_us.take(chosen).to_pylist()
            values = comparable(ask.served[feature].take(chosen))
            if view.kind == "windowed":
                windowed += [
                    skew_windowed.Case(key=key, feature=feature, t_us=t_us, served=value)
                    for key, t_us, value in zip(keys, instants, values, strict=True)
                ]
                continue
            events = ask.event_us.take(chosen).to_pylist()
            statuses = ask.statuses[feature][differ].tolist()
            latest += [
                skew_latest.Case(key=key, feature=feature, t_us=t_us, event_us=event_us, status=status, served=value)
                for key, t_us, event_us, status, value in zip(keys, instants, events, statuses, values, strict=True)
            ]
    if not places:
        return
    say(f"view {name!r}: {len(windowed) + len(latest):,} values differ, their causes are looked for")
    told = (
        skew_windowed.causes(plan, view, windowed, repo=repo)
        if view.kind == "windowed"
        else skew_latest.causes(view, latest, repo=repo)
    )
    start = 0
    for ask, feature, differ in places:
        ask.causes[feature][differ] = told[start : start + len(differ)]
        start += len(differ)


def _tuples(columns: Sequence[pa.Array], rows: int) -> list[tuple[object, ...]]:
    return list(zip(*(column.to_pylist() for column in columns), strict=True)) if columns else [()] * rows
