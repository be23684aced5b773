"""What do the stored rows of a latest-value view say at an instant? Decoded, aged and typed as the view declares."""

from collections.abc import Sequence
from dataclasses import dataclass
from operator import add
from typing import Any, cast

import msgspec
import numpy as np
import numpy.typing as npt
import pyarrow as pa

from featurestore.errors import NotExact, StaleStore, UsageError
from featurestore.online.ahead import refuse_ahead
from featurestore.online.codec import FINGERPRINT, Numeric, fingerprint_of
from featurestore.online.keys import row_prefixes
from featurestore.online.numbers import Numbers
from featurestore.online.result import Block, Column, Instants, Status
from featurestore.online.row_check import RowDamaged
from featurestore.online.scalar import Chosen
from featurestore.online.schemas import Schemas
from featurestore.online.types import NESTED, arrow_type, to_column
from featurestore.online.writer import EXPIRY_SLACK_MS
from featurestore.plan import Field, View

Positions = npt.NDArray[np.int64]

FEW, FEW_NUMBERS = 24, 6
"""Up to this many entity rows are decoded one by one; above, columns are faster, those of one type of number sooner."""
_BEGINNING = -(1 << 63)
# Plain integers: an enum's members cost a look-up each.
_PRESENT, _NULL_VALUE, _NOT_FOUND, _OUTSIDE_MAX_AGE = (int(status) for status in Status if status != Status.INCOMPLETE)


@dataclass(frozen=True, slots=True, eq=False)
class _Wanted:
    """A list of features of one view, worked out once for all requests that repeat it."""

    names: tuple[str, ...]
    dtypes: tuple[str, ...]
    nothing: tuple[None, ...]
    choose: Chosen | None
    """Of the declared layout, row by row; None where it has types that `struct` has not."""
    numeric: Numeric | None
    """Of the declared layout, all rows at once; None where the features are not numbers of one type."""
    few: int
    """Up to this many entity rows are decoded one by one."""


@dataclass(frozen=True, slots=True, eq=False)
class LatestView:
    """One latest-value view as a reader sees it: which keys to fetch, and what fetched rows mean."""

    view: View
    prefixes: tuple[bytes, ...]
    schemas: Schemas
    wanted: dict[tuple[str, ...], _Wanted]

    @classmethod
    def of(cls, project: str, view: View, schemas: Schemas) -> "LatestView":
        """The view of that project."""
        return cls(view, row_prefixes(project, view.name), schemas, {})

    def names(self, keys: Sequence[bytes], tags: Sequence[int]) -> list[bytes]:
        """The store's key for each entity key; `tags` as `row_tags` gives them."""
        # Twice as fast as a comprehension with zip: this is done for every key of every view of a request.
        return [*map(add, map(self.prefixes.__getitem__, tags), keys)]

    def parts(
        self,
        alias: str,
        features: tuple[str, ...],
        held: Sequence[bytes | None],
        place: Sequence[int] | None,
        t_us: int,
        *,
        as_of: bool,
        now_us: int,
    ) -> Sequence[Block | Column]:
        """The features of an answer; `held` are the fetched rows, `place` which of them each entity row is.

        -1 is none of them; without `place` the rows are the entity rows. With `as_of`, t_us is an instant that somebody
        named: raises NotExact where a key holds a newer row, or may have lost the row of that instant to its expiry.
        """
        try:
            parts = self._parts(alias, features, held, place, t_us, as_of=as_of, now_us=now_us)
        except RowDamaged as error:
            raise StaleStore(f"view {self.view.name!r}: {error}") from error
        if parts and parts[0].instant_us is not None and len(parts[0].instant_us):
            # An instant is later than the one asked for where a row is.
            refuse_ahead(self.view.name, int(max(parts[0].instant_us)), now_us)
        return parts

    def _parts(
        self,
        alias: str,
        features: tuple[str, ...],
        held: Sequence[bytes | None],
        place: Sequence[int] | None,
        t_us: int,
        *,
        as_of: bool,
        now_us: int,
    ) -> Sequence[Block | Column]:
        wanted = self.wanted.get(features) or self._want(features)
        if not as_of and held:
            rows = held if place is None else [None if at < 0 else held[at] for at in place]
            parts = self._few(alias, wanted, rows, t_us) if len(rows) <= wanted.few else None
            if parts is None:
                parts = self._at_once(alias, wanted, rows, t_us)
            if parts is not None:
                return parts
        return self._many(alias, features, held, place, t_us, as_of=as_of, now_us=now_us)

    def _want(self, names: tuple[str, ...]) -> _Wanted:
        declared = self.schemas.declared
        dtypes = tuple(self.view.feature(name).dtype for name in names)
        choose = None if declared.scalar is None else declared.scalar.choose(names)
        numeric = declared.choose(names)
        few = 0 if choose is None else FEW if numeric is None else FEW_NUMBERS
        made = _Wanted(names, dtypes, (None,) * len(names), choose, numeric, few)
        self.wanted[names] = made
        return made

    def _few(
        self, alias: str, wanted: _Wanted, held: Sequence[bytes | None], t_us: int
    ) -> Sequence[Block | Column] | None:
        """Row by row; None where a row needs the columns' way: of an older layout, of types that `struct` has not."""
        declared, choose = self.schemas.declared, wanted.choose
        scalar = declared.scalar
        if scalar is None or choose is None:
            return None
        fingerprint, decode, oldest_us = declared.fingerprint, scalar.decode, t_us - self.view.ttl_us
        if not self.view.ttl_us:
            oldest_us = _BEGINNING
        rows: list[tuple[Any, ...]] = []
        events, statuses = [], []
        some_null, late = False, False
        for row in held:
            if row is None:
                rows.append(wanted.nothing)
                events.append(0)
                statuses.append(_NOT_FOUND)
                continue
            if row[FINGERPRINT] != fingerprint:
                return None
            event_us, values, null = decode(row)
            if event_us > t_us:
                late = True
            if event_us < oldest_us:
                rows.append(wanted.nothing)
                statuses.append(_OUTSIDE_MAX_AGE)
            else:
                rows.append(choose(values))
                statuses.append(_PRESENT)
                if null:
                    some_null = True
            events.append(event_us)
        instants = [max(event_us, t_us) for event_us in events] if late else None
        oldest_us = min(events)
        if not oldest_us:
            oldest_us = min(filter(None, events), default=0)
        block = Block(alias, wanted.names, wanted.dtypes, rows, bytes(statuses), events, instants, t_us, oldest_us)
        return _without(block) if some_null else [block]

    def _at_once(
        self, alias: str, wanted: _Wanted, held: Sequence[bytes | None], t_us: int
    ) -> Sequence[Block | Column] | None:
        """All rows in a few calls; None unless all are there, fresh, of the declared layout and without nulls."""
        if wanted.numeric is None or None in held:
            return None
        found = self.schemas.declared.block(cast("Sequence[bytes]", held), wanted.numeric)
        if found is None:
            return None
        event_us, values = found
        events = event_us.tolist()
        oldest_us, newest_us = min(events), max(events)
        if self.view.ttl_us and oldest_us < t_us - self.view.ttl_us:
            return None
        instants = np.maximum(event_us, t_us) if newest_us > t_us else None
        statuses = bytes((_PRESENT,)) * len(event_us)
        return [Block(alias, wanted.names, wanted.dtypes, values, statuses, event_us, instants, t_us, oldest_us)]

    def _many(
        self,
        alias: str,
        features: Sequence[str],
        held: Sequence[bytes | None],
        places: Sequence[int] | None,
        t_us: int,
        *,
        as_of: bool,
        now_us: int,
    ) -> list[Column]:
        """Column by column."""
        place = np.arange(len(held)) if places is None else np.asarray(places, np.int64)
        fields = [self.view.feature(name) for name in features]
        there_rows = [row for row in held if row is not None]
        event, columns, lacking = self._decode(there_rows, fields)
        if len(there_rows) < len(held):
            # `place` counts in fetched keys, the decoded rows are those of them that were there.
            found = np.fromiter((row is not None for row in held), np.bool_, len(held))
            place = np.where(place >= 0, np.where(found, np.cumsum(found) - 1, -1)[place], -1)
        missing = place < 0
        count = len(place)
        event_us = np.where(missing, 0, event[place]) if len(event) else np.zeros(count, np.int64)
        if as_of:
            self._refuse_inexact(t_us, now_us, event_us, missing)
        instant_us = np.where(missing, t_us, np.maximum(event_us, t_us))
        ttl = self.view.ttl_us
        # Subtracted from the instant: an event time near the end of int64 must not overflow.
        expired = ~missing & (event_us < instant_us - ttl) if ttl else np.zeros(count, np.bool_)
        gone = missing | expired
        base = np.where(missing, np.uint8(Status.NOT_FOUND), np.uint8(Status.PRESENT))
        base[expired] = Status.OUTSIDE_MAX_AGE
        some_gone = bool(gone.any())
        whole = not some_gone and count == len(event) and bool((place == np.arange(count)).all())
        frame = _Frame(alias, None if whole else place, gone if some_gone else None, base, event_us, instant_us)
        return [frame.column(field, columns[field.name], lacking[field.name]) for field in fields]

    def _decode(
        self, rows: list[bytes], fields: Sequence[Field]
    ) -> tuple[Instants, dict[str, Numbers | pa.Array], dict[str, npt.NDArray[np.bool_] | None]]:
        """Event times, rows of whatever layouts as the declared columns, where a feature is not in its row's layout."""
        declared = self.schemas.declared
        names = [field.name for field in fields]
        fingerprint = declared.fingerprint
        if all([row[FINGERPRINT] == fingerprint for row in rows]):  # noqa: C419 - a list is twice as fast
            event_us, _, found = declared.numbers(rows, names)
            return event_us, found, dict.fromkeys(names)
        groups: dict[bytes, list[int]] = {}
        for i, row in enumerate(rows):
            groups.setdefault(fingerprint_of(row), []).append(i)
        events, parts, lacking = [], [], {name: np.zeros(len(rows), np.bool_) for name in names}
        for print_, members in groups.items():
            codec = self.schemas.codec(print_)
            part = codec.decode([rows[i] for i in members], names)
            types = {field.name: field.dtype for field in codec.features}
            for field in fields:
                column = _converted(part.columns.get(field.name), types.get(field.name), field)
                lacking[field.name][members] = column is None
                part.columns[field.name] = pa.nulls(len(members), arrow_type(field.dtype)) if column is None else column
            events.append(part.event_us)
            parts.append(part.columns)
        back = np.argsort(np.concatenate([np.array(members) for members in groups.values()]))
        order = pa.array(back)
        merged = {name: pa.concat_arrays([part[name] for part in parts]).take(order) for name in names}
        return np.concatenate(events)[back], merged, dict(lacking)

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
    place: Positions | None
    """Which decoded row each entity row is; None where the rows are the answer as they are."""
    gone: npt.NDArray[np.bool_] | None
    """Where there is no value to give; None: nowhere."""
    statuses: npt.NDArray[np.uint8]
    """Those of a column without nulls; one array for all such columns, so that an encoder sees it once."""
    event_us: Instants
    instant_us: Instants

    def column(self, field: Field, values: Numbers | pa.Array, lacking: npt.NDArray[np.bool_] | None) -> Column:
        if self.place is not None:
            if not len(values):
                values = pa.nulls(len(self.place), arrow_type(field.dtype))
            elif isinstance(values, Numbers):
                values = values.take(self.place, self.gone)
            else:
                values = values.take(pa.array(self.place, mask=self.gone))
        nulls = values.nulls if isinstance(values, Numbers) else _nulls(values)
        statuses = self.statuses
        if nulls is not None and nulls is not self.gone:
            here = nulls if self.gone is None else nulls & ~self.gone
            if here.any():
                statuses = statuses.copy()
                statuses[here] = Status.NULL_VALUE
                if lacking is not None:
                    absent = lacking if self.place is None else lacking[self.place]
                    statuses[absent if self.gone is None else absent & ~self.gone] = Status.NOT_FOUND
        return Column(self.alias, field.name, field.dtype, values, statuses, self.event_us, self.instant_us)


def _without(block: Block) -> list[Column]:
    """A block some of whose values are null: columns of different statuses."""
    columns = block.columns()
    for place, (column, values) in enumerate(zip(columns, zip(*block.held, strict=True), strict=True)):
        null_here = [value is None and told == _PRESENT for value, told in zip(values, block.statuses, strict=True)]
        if any(null_here):
            told = np.where(null_here, np.uint8(_NULL_VALUE), column.statuses)
            columns[place] = msgspec.structs.replace(column, statuses=told)
    return columns


def _nulls(values: pa.Array) -> npt.NDArray[np.bool_] | None:
    return values.is_null().to_numpy(zero_copy_only=False) if values.null_count else None


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
