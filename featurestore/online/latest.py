"""What do the stored rows of a latest-value view say at an instant? Decoded, aged and typed as the view declares."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from featurestore.errors import NotExact, UsageError
from featurestore.online.codec import Rows, fingerprint_of
from featurestore.online.keys import row_key, row_prefixes
from featurestore.online.result import Column, Instants, Status
from featurestore.online.schemas import Schemas
from featurestore.online.types import NESTED, arrow_type, to_column
from featurestore.online.writer import EXPIRY_SLACK_MS
from featurestore.plan import Field, View

Positions = npt.NDArray[np.int64]


@dataclass(frozen=True, slots=True, eq=False)
class LatestView:
    """One latest-value view as a reader sees it: which keys to fetch, and what fetched rows mean."""

    view: View
    prefixes: tuple[bytes, ...]
    schemas: Schemas

    @classmethod
    def of(cls, project: str, view: View, schemas: Schemas) -> "LatestView":
        """The view of that project."""
        return cls(view, row_prefixes(project, view.name), schemas)

    def names(self, keys: Sequence[bytes]) -> list[bytes]:
        """The store's key for each entity key."""
        return [row_key(self.prefixes, key) for key in keys]

    def columns(
        self,
        alias: str,
        features: Sequence[str],
        held: Sequence[bytes | None],
        place: Positions,
        t_us: int,
        *,
        as_of: bool,
        now_us: int,
    ) -> list[Column]:
        """The columns of an answer: `held` are the fetched rows, `place` which of them each entity row is (-1: none).

        With `as_of`, t_us is an instant that somebody named: raises NotExact where a key holds a newer row, or may
        have lost the row of that instant to its expiry.
        """
        fields = [self.view.feature(name) for name in features]
        found = np.fromiter((row is not None for row in held), np.bool_, len(held))
        rows, statuses = self._decode([row for row in held if row is not None], fields)
        # `place` counts in fetched keys, the decoded rows are those of them that were there.
        there = np.where(found, np.cumsum(found) - 1, -1)
        place = np.where(place >= 0, there[place], -1) if len(there) else place
        missing = place < 0
        event_us = np.where(missing, 0, rows.event_us[place]) if len(rows.event_us) else np.zeros(len(place), np.int64)
        if as_of:
            self._refuse_inexact(t_us, now_us, event_us, missing)
        instant_us = np.where(missing, t_us, np.maximum(event_us, t_us))
        ttl = self.view.ttl_us
        # Subtracted from the instant: an event time near the end of int64 must not overflow.
        expired = ~missing & (event_us < instant_us - ttl) if ttl else np.zeros(len(place), np.bool_)
        gone = missing | expired
        base = np.where(missing, np.uint8(Status.NOT_FOUND), np.uint8(Status.PRESENT))
        base[expired] = Status.OUTSIDE_MAX_AGE
        whole = not gone.any() and len(place) == len(rows.event_us) and bool((place == np.arange(len(place))).all())
        index = None if whole else pa.array(place, mask=gone)
        frame = _Frame(alias, place, index, gone, int(gone.sum()), base, event_us, instant_us)
        return [frame.column(field, rows.columns[field.name], statuses[field.name]) for field in fields]

    def _decode(
        self, rows: list[bytes], fields: Sequence[Field]
    ) -> tuple[Rows, dict[str, npt.NDArray[np.bool_] | None]]:
        """Rows of whatever layouts as the declared columns, and where a feature is not in its row's layout."""
        declared = self.schemas.declared
        names = [field.name for field in fields]
        prints = [fingerprint_of(row) for row in rows]
        if all(print_ == declared.fingerprint for print_ in prints):
            return declared.decode(rows, names), dict.fromkeys(names)
        groups: dict[bytes, list[int]] = {}
        for i, print_ in enumerate(prints):
            groups.setdefault(print_, []).append(i)
        parts, lacking = [], {name: np.zeros(len(rows), np.bool_) for name in names}
        for print_, members in groups.items():
            codec = self.schemas.codec(print_)
            part = codec.decode([rows[i] for i in members], names)
            types = {field.name: field.dtype for field in codec.features}
            for field in fields:
                column = _converted(part.columns.get(field.name), types.get(field.name), field)
                lacking[field.name][members] = column is None
                part.columns[field.name] = pa.nulls(len(members), arrow_type(field.dtype)) if column is None else column
            parts.append(part)
        back = np.argsort(np.concatenate([np.array(members) for members in groups.values()]))
        order = pa.array(back)
        merged = Rows(
            np.concatenate([part.event_us for part in parts])[back],
            np.concatenate([part.created_us for part in parts])[back],
            {name: pa.concat_arrays([part.columns[name] for part in parts]).take(order) for name in names},
        )
        return merged, dict(lacking)

    def _refuse_inexact(self, t_us: int, now_us: int, event_us: Instants, missing: npt.NDArray[np.bool_]) -> None:
        newer = int((event_us > t_us).sum())
        if newer:
            raise NotExact(
                f"view {self.view.name!r} keeps the latest row of a key: {newer} of the rows asked for are newer than "
                "as_of; ask the offline store for that instant"
            )
        if self.view.ttl_us and missing.any() and t_us < now_us - EXPIRY_SLACK_MS * 1000:
            raise NotExact(
                f"view {self.view.name!r}: {int(missing.sum())} rows are not there; they may have been at as_of and "
                "have expired since; ask the offline store for that instant"
            )


@dataclass(frozen=True, slots=True, eq=False)
class _Frame:
    """What the columns of one view in one answer share."""

    alias: str
    place: Positions
    index: pa.Array | None
    """`place` with nulls where there is no value to give; None where the rows are the answer as they are."""
    gone: npt.NDArray[np.bool_]
    gone_count: int
    statuses: npt.NDArray[np.uint8]
    """Those of a column without nulls; one array for all such columns, so that an encoder sees it once."""
    event_us: Instants
    instant_us: Instants

    def column(self, field: Field, values: pa.Array, lacking: npt.NDArray[np.bool_] | None) -> Column:
        if self.index is not None:
            values = values.take(self.index)
        statuses = self.statuses
        if values.null_count > self.gone_count:
            statuses = statuses.copy()
            statuses[values.is_null().to_numpy(zero_copy_only=False) & ~self.gone] = Status.NULL_VALUE
            if lacking is not None:
                statuses[~self.gone & lacking[self.place]] = Status.NOT_FOUND
        return Column(self.alias, field.name, field.dtype, values, statuses, self.event_us, self.instant_us)


def _converted(column: pa.Array | None, stored: str | None, field: Field) -> pa.Array | None:
    """A stored column as the declared type; None where the row's layout lacks it or it cannot become one."""
    if column is None or stored == field.dtype:
        return column
    if stored in NESTED or field.dtype in NESTED:
        return None
    try:
        return to_column(column, field.dtype, name=field.name)
    except UsageError:
        return None
