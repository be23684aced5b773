"""Say in which unit the integers of each source are read as times: what `apply` shows beside its changes."""

from pathlib import Path

from featurestore.errors import SourceError
from featurestore.offline.stored import units_of_view
from featurestore.plan import Plan

_WORDS = {"s": "seconds", "ms": "milliseconds", "us": "microseconds", "ns": "nanoseconds"}


def told_units(plan: Plan, repo: Path) -> list[str]:
    """One line a column of numbers that are times, by source; sources that cannot be read yet have none."""
    lines: dict[tuple[str, str], str] = {}
    for view in plan.views.values():
        source = view.source
        if source.topic is not None:
            if source.time_unit:
                unit = _WORDS[source.time_unit]
                lines[source.name, ""] = f"topic {source.topic.name}: integers are times in {unit}, as declared"
            continue
        try:
            found = units_of_view(view, repo=repo)
        except SourceError:
            continue
        for column, unit, declared in found:
            how = "as declared" if declared else "by their magnitude"
            what = (
                f"are read as {_WORDS[unit]}, {how}"
                if unit
                else ("are times of no unit or of several: declare it with the tag time_unit (s, ms, us or ns)")
            )
            lines[source.name, column] = f"source {source.name}: numbers in {column!r} {what}"
    return [lines[each] for each in sorted(lines)]
