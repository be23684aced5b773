"""Which rows were set aside, and why?

Rejected rows are kept whole in Parquet, one folder per source, one file per range of offsets that was judged:

    <quarantine>/<source>/<origin id>-<partition>-<first>-<last>.parquet

`first`..`last` (both included) is what was judged, not only what was rejected. Names follow from the range alone: the
same range stored again replaces itself; ranges may overlap after a crash, and readers take each (origin id, partition,
offset) once. For a topic the origin id is the topic's id; for a file it is the file's digest, its partition 0 and its
offsets the row numbers from 0. In = accepted + quarantined: what is not in here was accepted.

A file appears whole or not at all (`validation.whole_file`).
"""

import base64
import json
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Final
from urllib.parse import quote, unquote

import msgspec
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from validation.errors import ContractError, PlatformError, did_you_mean
from validation.mixed import rows_of
from validation.place import Place, readable
from validation.whole_file import replace_file

SCHEMA: Final = pa.schema(
    [
        ("source", pa.string()),
        ("contract", pa.string()),
        ("contract_version", pa.string()),
        ("reason", pa.string()),
        ("detail", pa.string()),
        ("rule_ids", pa.list_(pa.string())),
        ("origin", pa.string()),
        ("origin_id", pa.string()),
        ("partition", pa.int32()),
        ("offset", pa.int64()),
        ("arrival", pa.timestamp("us", "UTC")),
        ("attempt", pa.int32()),
        ("key", pa.binary()),
        ("row", pa.binary()),
    ]
)
"""`row` is the message as it came, or a file's row as JSON; `origin` is the topic's name or the file's path."""

CONTRACT: Final = "contract"
"""The reason of rows that break rules."""
FILE_NAME: Final = re.compile(r"(?P<origin>[^/]+)-(?P<partition>\d+)-(?P<first>\d+)-(?P<last>\d+)\.parquet")


class Rejected(msgspec.Struct, frozen=True, kw_only=True):
    """One row that was set aside."""

    offset: int
    """In its partition; a row's number in a file, from 0."""
    row: bytes
    """The row whole, as it came."""
    reason: str
    """contract, or why the row could not be read (malformed, wrong_type, …)."""
    detail: str = ""
    """What exactly was wrong, for a reader."""
    rule_ids: tuple[str, ...] = ()
    arrival_us: int | None = None
    key: bytes | None = None
    attempt: int = 1
    """1 for the first time it was judged; a replay adds one."""


class Origin(msgspec.Struct, frozen=True, kw_only=True):
    """Where a run of rows came from: a topic's partition, or a file."""

    name: str
    """The topic's name, or the file's path."""
    id: str
    """The topic's id, or the file's digest."""
    partition: int = 0


class QuarantineSink:
    """Keeps the rejected rows of one source under one contract."""

    def __init__(self, folder: Place, *, source: str, contract: str = "", version: str = "") -> None:
        self.folder = folder / quote(source, safe="")
        self._source, self._contract, self._version = source, contract, version

    def store(
        self, origin: Origin, first: int, last: int, rejected: Sequence[Rejected], *, partly: bool = False
    ) -> Place | None:
        """Keeps what was rejected of the offsets `first`..`last`; None, and no file, where nothing was.

        Idempotent: the same range stored again replaces itself; `partly` says that not all offsets between the two were
        judged, so that what lies there of others stays. A crash leaves nothing half that a reader sees. Raises
        ValueError where an offset lies outside the range or is given twice.
        """
        offsets = [row.offset for row in rejected]
        if len(set(offsets)) != len(offsets) or any(not first <= offset <= last for offset in offsets):
            raise ValueError(f"offsets {offsets} are not distinct offsets of {first}..{last}")
        path = self.folder / f"{quote(origin.id, safe='')}-{origin.partition}-{first}-{last}.parquet"
        earlier = read_file(path) if partly and path.exists() else SCHEMA.empty_table()
        earlier = earlier.filter(pc.invert(pc.is_in(earlier.column("offset"), pa.array(offsets, pa.int64()))))
        if not rejected and not earlier.num_rows:
            path.unlink(missing_ok=True)
            return None
        put_table(pa.concat_tables([self._table(origin, rejected), earlier]), path)
        return path

    def next_offset(self, origin: Origin) -> int | None:
        """The first offset after the contiguous ranges stored of an origin; None without any."""
        prefix = quote(origin.id, safe="")
        names = [FILE_NAME.fullmatch(path.name) for path in self.folder.glob("*.parquet")]
        ranges = sorted(
            (int(name["first"]), int(name["last"]))
            for name in names
            if name is not None and name["origin"] == prefix and int(name["partition"]) == origin.partition
        )
        end: int | None = None
        for first, last in ranges:
            if end is not None and first > end:
                break
            end = max(last + 1, end or 0)
        return end

    def _table(self, origin: Origin, rejected: Sequence[Rejected]) -> pa.Table:
        count = len(rejected)
        columns: dict[str, list[Any]] = {
            "source": [self._source] * count,
            "contract": [self._contract] * count,
            "contract_version": [self._version] * count,
            "reason": [row.reason for row in rejected],
            "detail": [row.detail for row in rejected],
            "rule_ids": [list(row.rule_ids) for row in rejected],
            "origin": [origin.name] * count,
            "origin_id": [origin.id] * count,
            "partition": [origin.partition] * count,
            "offset": [row.offset for row in rejected],
            "arrival": [row.arrival_us for row in rejected],
            "attempt": [row.attempt for row in rejected],
            "key": [row.key for row in rejected],
            "row": [row.row for row in rejected],
        }
        return pa.table([pa.array(columns[field.name], field.type) for field in SCHEMA], schema=SCHEMA)


def put_table(table: pa.Table, path: Place) -> None:
    """Replaces a Parquet file, whole and durably."""
    data = pa.BufferOutputStream()
    pq.write_table(table, data, compression="zstd")
    replace_file(path, data.getvalue().to_pybytes())


class Summary(msgspec.Struct, frozen=True, kw_only=True):
    """What lies in quarantine of one source for one reason."""

    source: str
    contract: str
    contract_version: str
    reason: str
    """The ids of the broken rules, or why rows could not be read."""
    rows: int
    first_us: int | None
    """Earliest and latest arrival."""
    last_us: int | None


def read_quarantine(folder: Place, source: str | None = None) -> pa.Table:
    """Every row in quarantine (of one source), once, by source, origin, partition and offset.

    Empty where nothing is. Of a row stored twice the latest attempt is taken. Raises ContractError for an unknown
    source, PlatformError for a torn file.
    """
    sources = sorted(unquote(path.name) for path in folder.iterdir() if path.is_dir()) if folder.is_dir() else []
    if source is not None and source not in sources:
        raise ContractError(f"{folder}: nothing of source {source!r} is in quarantine; {did_you_mean(source, sources)}")
    tables = [
        read_file(path)
        for name in ([source] if source is not None else sources)
        for path in _files(folder / quote(name, safe=""))
    ]
    if not tables:
        return SCHEMA.empty_table()
    whole = pa.concat_tables(tables)
    order = [("source", "ascending"), ("origin_id", "ascending"), ("partition", "ascending"), ("offset", "ascending")]
    whole = whole.sort_by([*order, ("attempt", "descending")])
    identities = list(zip(*(whole.column(name).to_pylist() for name, _ in order), strict=True))
    first = [n == 0 or identity != identities[n - 1] for n, identity in enumerate(identities)]
    return whole.filter(pa.array(first, pa.bool_()))


def _files(folder: Place) -> list[Place]:
    found: list[Place] = [path for path in folder.glob("*.parquet") if FILE_NAME.fullmatch(path.name)]
    return sorted(found, key=lambda path: path.name)


def read_file(path: Place) -> pa.Table:
    """The rows of one file; raises PlatformError where it is torn."""
    try:
        return pq.read_table(readable(path), schema=SCHEMA, partitioning=None)
    except (pa.ArrowInvalid, OSError) as error:
        raise PlatformError(f"{path}: the quarantine file cannot be read: {error}") from error


def summaries(rows: pa.Table) -> list[Summary]:
    """What lies in a table of `read_quarantine`, one line per source, contract version and reason, largest first."""
    groups: dict[tuple[str, str, str, str], list[int | None]] = {}
    for row in (
        rows.select(["source", "contract", "contract_version", "reason", "rule_ids", "arrival"])
        .cast(_MICROSECONDS)
        .to_pylist()
    ):
        reason = ", ".join(row["rule_ids"]) or row["reason"]
        key = (row["source"], row["contract"], row["contract_version"], reason)
        groups.setdefault(key, []).append(row["arrival"])
    found = [
        Summary(
            source=source,
            contract=contract,
            contract_version=version,
            reason=reason,
            rows=len(arrivals),
            first_us=min((at for at in arrivals if at is not None), default=None),
            last_us=max((at for at in arrivals if at is not None), default=None),
        )
        for (source, contract, version, reason), arrivals in groups.items()
    ]
    return sorted(found, key=lambda summary: (-summary.rows, summary.source, summary.reason))


_MICROSECONDS: Final = pa.schema(
    [
        *(SCHEMA.field(name) for name in ("source", "contract", "contract_version", "reason", "rule_ids")),
        pa.field("arrival", pa.int64()),
    ]
)


def rejected_rows(
    table: pa.Table, rejected: Mapping[int, tuple[str, ...]], arrival_us: int | None = None
) -> Iterable[Rejected]:
    """A file's rows that were rejected (row number -> rule ids), whole, as JSON in which NaN stays NaN."""
    numbers = sorted(rejected)
    rows = rows_of(table.take(pa.array(numbers, pa.int64())))
    for number, row in zip(numbers, rows, strict=True):
        yield Rejected(
            offset=number,
            row=json.dumps(row, default=_text, ensure_ascii=False).encode(),
            reason=CONTRACT,
            rule_ids=rejected[number],
            arrival_us=arrival_us,
        )


def _text(value: object) -> str:
    return base64.b64encode(value).decode() if isinstance(value, bytes) else str(value)
