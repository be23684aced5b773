"""How do rows get online? Atomically, and so that the greatest (event time, created time) wins, whoever writes when."""

import zlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from importlib.resources import files

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import redis

from featurestore.clock import Clock
from featurestore.errors import StoreRefused, UsageError
from featurestore.online.blobs import Ints
from featurestore.online.connection import StoreClient
from featurestore.online.failures import failure
from featurestore.online.keys import ROW_TAGS, EntityKeyCodec, row_key, row_prefixes
from featurestore.online.row_check import sound
from featurestore.online.schemas import Schemas
from featurestore.plan import View
from validation.instant_columns import column_us

AHEAD_TOLERANCE_US = 5_000_000
"""A row dated further ahead of the clock than this is set aside: it would block its key."""
EXPIRY_SLACK_MS = 24 * 3_600_000
"""How long a row outlives its ttl in the store, so that reads can say OUTSIDE_MAX_AGE."""
LEAST = -(1 << 63)
"""The created time of a row whose created column is null: below every other."""
_SCRIPT = files(__package__).joinpath("newest_row.lua").read_text(encoding="utf-8")
_REMOVE = "if redis.call('GET', KEYS[1]) == ARGV[1] then return redis.call('UNLINK', KEYS[1]) end return 0"
_LOST, _WON = ord("2"), ord("1")
_KEYS_PER_SCRIPT = 256
"""Few enough that other clients wait for about a millisecond at most while a script runs."""
_ROWS_PER_ROUND = 50_000
"""Bounds the memory of a write, whatever the size of its table."""


@dataclass(frozen=True, slots=True, eq=False)
class WriteResult:
    """What became of the rows of one write; their numbers add up to the rows given."""

    written: int
    """Rows that became their key's value."""
    superseded: int
    """Rows that lost to a greater one or were there already, in the store or in the same write."""
    unkeyed: int
    """Rows with a null join key or event time: no read could find them."""
    ahead: pa.Table
    """Rows dated beyond the tolerance, to be reported and offered again by the next run."""


class RowWriter:
    """Writes rows of one latest-value view.

    Of all rows ever written for an entity key, by any number of writers in any order, with repetitions, the one
    with the greatest (event time, created time, row bytes) stays. One script makes the choice for up to 256
    keys, atomically; nothing is promised across scripts. Every call can be repeated. A row may vanish a day after
    its ttl has passed, counted from `clock`.
    """

    def __init__(
        self,
        client: StoreClient,
        project: str,
        view: View,
        *,
        clock: Clock,
        tolerance_us: int = AHEAD_TOLERANCE_US,
        slack_ms: int = EXPIRY_SLACK_MS,
    ) -> None:
        self.view = view
        self._client = client
        self._clock = clock
        self._tolerance_us = tolerance_us
        self._slack_ms = slack_ms
        self._schemas = Schemas(client, project, view)
        self._keys = EntityKeyCodec(view.join_keys)
        self._prefixes = row_prefixes(project, view.name)
        self._sha: str | None = None

    def write(
        self,
        table: pa.Table,
        *,
        event_timestamp: str,
        created: str | None = None,
        progress: Callable[[int], object] | None = None,
        became: Callable[[pa.Table], object] | None = None,
    ) -> WriteResult:
        """Write the rows of a table whose columns are join keys, features and timestamps, as the view names them.

        Without a created column this call's own instant takes its place, so that a correction of an equal event
        time arrives. `progress` is told how many rows each round took, `became` is given those that became their
        key's value. In order: 1. the layout is recorded; 2. the rows follow. Raises UsageError for a missing or unfit
        column, before any row of its round is written, and StoreUnavailable.
        """
        self._schemas.remember()
        now_us = self._clock()
        written = superseded = unkeyed = 0
        ahead = []
        for start in range(0, table.num_rows, _ROWS_PER_ROUND):
            part = table.slice(start, _ROWS_PER_ROUND)
            result = self._write_round(part, event_timestamp, created, now_us, became)
            written, superseded = written + result.written, superseded + result.superseded
            unkeyed += result.unkeyed
            ahead.append(result.ahead)
            if progress is not None:
                progress(part.num_rows)
        return WriteResult(written, superseded, unkeyed, pa.concat_tables(ahead) if ahead else table)

    def _write_round(
        self,
        table: pa.Table,
        event_timestamp: str,
        created: str | None,
        now_us: int,
        became: Callable[[pa.Table], object] | None,
    ) -> WriteResult:
        event_us, dated = _instants(table, event_timestamp)
        keys = self._keys.encode_columns({name: table.column(name) for name in table.column_names}, table.num_rows)
        keyed = dated & np.fromiter((key is not None for key in keys), np.bool_, len(keys))
        early = keyed & (event_us > now_us + self._tolerance_us)
        taken = keyed & ~early
        ahead = table.filter(pa.array(early))
        created_us = np.full(table.num_rows, now_us, np.int64)
        if created is not None:
            held, known = _instants(table, created)
            created_us = np.where(known, held, LEAST)
        if not taken.all():
            table, event_us, created_us = table.filter(pa.array(taken)), event_us[taken], created_us[taken]
            keys = [key for key, take in zip(keys, taken.tolist(), strict=True) if take]
        columns = {name: table.column(name) for name in table.column_names}
        rows = self._schemas.declared.encode(columns, event_us, created_us)
        named = [key for key in keys if key is not None]
        told = self._send(named, rows, now_us)
        won = told == _WON
        if self._remove_damaged([named[place] for place in np.flatnonzero(told == _LOST).tolist()]):
            won |= self._send(named, rows, now_us) == _WON
        written = int(won.sum())
        if became is not None and written:
            became(table if written == len(won) else table.filter(pa.array(won)))
        unkeyed = len(keyed) - int(keyed.sum())
        return WriteResult(written, len(rows) - written, unkeyed, ahead)

    def _send(self, keys: Sequence[bytes], rows: Sequence[bytes], now_us: int) -> npt.NDArray[np.uint8]:
        """What became of each row, as the script says; chunks that were written are not sent again."""
        times = (self.view.ttl_us // 1000, now_us // 1000, self._slack_ms)
        chunks = list(self._chunks(keys, rows))
        won = np.zeros(len(rows), np.uint8)
        for _ in range(2):
            if self._sha is None:
                self._sha = str(self._client.script_load(_SCRIPT))
            pipeline = self._client.pipeline(transaction=False)
            for _, names, values in chunks:
                # Not `evalsha`: the library's pipeline of a cluster lacks it, and takes the command.
                pipeline.execute_command("EVALSHA", self._sha, len(names), *names, *times, *values)  # type: ignore[no-untyped-call]
            missed = []
            for chunk, told in zip(chunks, pipeline.execute(raise_on_error=False), strict=True):
                if isinstance(told, redis.exceptions.NoScriptError):
                    missed.append(chunk)
                elif isinstance(told, Exception):
                    raise failure(self._client.address, told) from told
                else:
                    won[chunk[0]] = np.frombuffer(told, np.uint8)
            if not missed:
                return won
            # The server was restarted without its scripts, perhaps between two chunks.
            chunks, self._sha = missed, None
        raise StoreRefused("the online store forgets scripts faster than they are loaded", "NOSCRIPT")

    def _remove_damaged(self, keys: Sequence[bytes]) -> int:
        """Remove what these keys hold where it is damaged or of another format: it would win for ever, unreadable."""
        names = [row_key(self._prefixes, key) for key in keys]
        held = self._client.mget(names) if names else []
        doomed = [
            (name, row) for name, row in zip(names, held, strict=True) if isinstance(row, bytes) and not sound(row)
        ]
        for name, row in doomed:
            self._client.eval(_REMOVE, 1, name, row)
        return len(doomed)

    def _chunks(
        self, keys: Sequence[bytes], rows: Sequence[bytes]
    ) -> Iterator[tuple[list[int], list[bytes], list[bytes]]]:
        """Places, keys and rows, at most 256 of one hash tag at a time."""
        tags = np.fromiter(map(zlib.crc32, keys), np.int64, len(keys)) % ROW_TAGS
        order = np.argsort(tags, kind="stable").tolist()
        bounds = np.searchsorted(tags[order], np.arange(ROW_TAGS + 1)).tolist()
        for tag, prefix in enumerate(self._prefixes):
            for start in range(bounds[tag], bounds[tag + 1], _KEYS_PER_SCRIPT):
                these = order[start : min(start + _KEYS_PER_SCRIPT, bounds[tag + 1])]
                yield these, [prefix + keys[i] for i in these], [rows[i] for i in these]


def _instants(table: pa.Table, name: str) -> tuple[Ints, npt.NDArray[np.bool_]]:
    """A timestamp column as microseconds (0 where null), and where it is not null."""
    if name not in table.column_names:
        raise UsageError(f"no timestamp column {name!r} among the rows to write; what exists: {table.column_names}")
    try:
        column = column_us(table.column(name).combine_chunks())
    except (TypeError, ValueError) as error:
        raise UsageError(f"timestamp column {name!r}: {error}") from error
    known = column.is_valid().to_numpy(zero_copy_only=False)
    return column.fill_null(0).to_numpy().astype(np.int64), known
