"""Under which names do the profiles of a boundary lie, and on which baseline?"""

import logging
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Final

import numpy as np
import pyarrow as pa

from validation.profile.baseline import Baseline, baseline_of, kind_of
from validation.profile.build import profile_table
from validation.profile.cohorts import of_kept_cohorts
from validation.profile.profile import Profile, merge
from validation.profile.store import ProfileStore
from validation.whole_file import first_file

AT: Final = "at"
"""The column of instants by which rows belong to an hour."""
_LOG: Final = logging.getLogger(__name__)


def first_baseline(
    store: ProfileStore, boundary: str, name: str, table: pa.Table, left_out: Sequence[str] = ()
) -> Baseline:
    """The baseline of what crosses a boundary: of the first rows that were ever profiled, kept.

    Columns that are `left_out` are no features of it.
    Of processes that begin at the same time one makes it, the others take that one.
    """
    if (known := kept_baseline(store, boundary, name)) is not None:
        return known
    path = _named(store, boundary, name)
    made = baseline_of(table.drop_columns([name for name in (AT, *left_out) if name in table.column_names]))
    store.put_baseline(made)
    chosen = first_file(path, made.id.encode()).decode()
    return made if chosen == made.id else store.baseline(chosen)


def kept_baseline(store: ProfileStore, boundary: str, name: str) -> Baseline | None:
    """The baseline of what crosses a boundary; None where nothing was profiled."""
    path = _named(store, boundary, name)
    return store.baseline(path.read_text(encoding="utf-8")) if path.exists() else None


def by_segment(
    table: pa.Table,
    baseline: Baseline,
    boundary: str,
    segments: Sequence[str],
    *,
    time_column: str | None = None,
    entities: Sequence[str] = (),
    threads: int | None = None,
) -> list[Profile]:
    """What is kept of rows: profiles of all, and of each cohort of those columns in `segments` that the rows have.

    `entities` are the columns that together say whose a row is; where the rows lack one, it is not known. A column of
    another kind than in the baseline has no profile, and a warning says so.
    """
    unfit = [name for name in table.column_names if not _fits(table.schema.field(name).type, name, baseline)]
    for name in unfit:
        kind = table.schema.field(name).type
        _LOG.warning("%s: column %r is %s, and was a number before: it is not profiled", boundary, name, kind)
    return profile_table(
        table,
        baseline,
        boundary=boundary,
        time_column=time_column,
        segments=[name for name in segments if name in table.column_names],
        every_cohort=False,
        entities=entities if all(name in table.column_names for name in entities) else (),
        threads=threads,
        without=unfit,
    )


def _fits(kind: pa.DataType, name: str, baseline: Baseline) -> bool:
    wanted = next((each.kind for each in baseline.features if each.name == name), None)
    number = kind_of(kind) == "number" or pa.types.is_boolean(kind) or pa.types.is_null(kind)
    return wanted != "number" or number


def added(known: Sequence[Profile], more: Sequence[Profile]) -> list[Profile]:
    """Both, one a feature, segment and hour: as many as are kept, however often more come."""
    groups: dict[tuple[str, str, int | None], list[Profile]] = {}
    for profile in (*known, *more):
        groups.setdefault((profile.feature, profile.segment, profile.hour_us), []).append(profile)
    return of_kept_cohorts(map(merge, groups.values()))


def read_kept(store: ProfileStore, boundary: str, name: str, start_us: int, end_us: int) -> list[Profile]:
    """The profiles of hours in [start, end) on that baseline; none where no hour was profiled."""
    path = _named(store, boundary, name)
    if not path.exists():
        return []
    # Two views of the same rows have the same baseline, and lie in one folder.
    of = re.compile(re.escape(safe_name(name)) + r"-[0-9]{4}-[0-9]{2}-[0-9]{2}(T.*)?").fullmatch
    return store.read(
        boundary=boundary, baseline=path.read_text(encoding="utf-8"), start_us=start_us, end_us=end_us, of=of
    )


def read_all_kept(store: ProfileStore, boundary: str, prefix: str, start_us: int, end_us: int) -> list[Profile]:
    """The same on every baseline whose name begins so."""
    named = _named(store, boundary, prefix)
    ids = sorted({path.read_text(encoding="utf-8") for path in named.parent.glob(f"{named.name}*")})
    profiled = {path.parent.name for path in store.paths(boundary)}
    return [
        profile
        for each in ids
        if each in profiled
        for profile in store.read(boundary=boundary, baseline=each, start_us=start_us, end_us=end_us)
    ]


def hour_name(hour: int) -> str:
    """An hour since the epoch within the names of files.

    >>> hour_name(472_222)
    '2023-11-14T22'
    """
    return str(np.datetime64(hour, "h")).replace(":", "")


def safe_name(name: str) -> str:
    """A name within the names of files: other letters than these become their code.

    >>> safe_name("a b"), safe_name("a_b")
    ('a=20b', 'a_b')
    """
    return "".join(each if each.isascii() and (each.isalnum() or each in "._-") else f"={ord(each):x}" for each in name)


def _named(store: ProfileStore, boundary: str, name: str) -> Path:
    """The file that says which baseline a boundary's profiles are on."""
    return store.folder / "sources" / f"{boundary}-{safe_name(name)}"
