"""How does the answer to a request look as rows of JSON or as an Arrow stream, and what is a column of it?"""

import base64
import math
import uuid
from collections.abc import Callable, Iterable, Sequence
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from functools import lru_cache
from typing import Any

import msgspec
import numpy as np
import orjson
import pyarrow as pa

from featurestore.api.faults import Refused
from featurestore.online.numbers import Numbers
from featurestore.online.result import Block, Column, Instants, Status
from featurestore.online.types import NESTED, from_python, item_of

JSON = "application/json"
ROWS = "application/vnd.featurestore.rows+json"
ARROW = "application/vnd.apache.arrow.stream"
MEDIA_TYPES = (JSON, ROWS, ARROW)

_TEXT_NAMES = ["INVALID", *(status.name for status in Status)]
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_WHEN = pa.timestamp("us", tz="UTC")
_FIRST_US = -62_135_596_800_000_000
_LAST_US = 253_402_300_799_999_999
_INSTANTS = orjson.OPT_SERIALIZE_NUMPY | orjson.OPT_NAIVE_UTC | orjson.OPT_UTC_Z
FEW = 4
"""Up to this many instants are written one by one: a call of numpy's costs as much."""
VERBATIM = frozenset({"INT32", "INT64", "BOOL", "STRING", "JSON", "UUID", "TIME_UUID"})
"""Types whose Python values are JSON values."""


class Answered(msgspec.Struct, frozen=True, eq=False, gc=False):
    """One column of an answer: a join key, a feature that was read, or one that was computed."""

    name: str
    dtype: str
    values: list[Any] | Numbers
    """Python values of the Feast type; None for null."""
    statuses: np.ndarray[Any, np.dtype[np.uint8]]
    event_us: Instants
    """0 where there is none: join keys, computed and missing values."""
    instant_us: Instants | None
    """The instant each value holds at; None for join keys and computed values."""

    @classmethod
    def of(cls, column: Column, name: str = "") -> "Answered":
        """A column that was read, under that name; numbers wait for an encoder: JSON is written from stored bytes."""
        held = column.held if isinstance(column.held, (list, Numbers)) else column.to_python()
        return cls(name, column.dtype, held, column.statuses, column.event_us, column.instant_us)


def media_type(accept: str | None) -> str:
    """The media type to answer in; raises Refused (406) where we have none that is accepted.

    >>> media_type(None), media_type("application/vnd.apache.arrow.stream")
    ('application/json', 'application/vnd.apache.arrow.stream')
    """
    if accept is None or accept in ("*/*", JSON):
        return JSON
    for part in accept.split(","):
        wanted = part.partition(";")[0].strip().lower()
        if wanted in ("*/*", "application/*"):
            return JSON
        if wanted in MEDIA_TYPES:
            return wanted
    raise Refused(406, "not_acceptable", f"Accept is {accept!r}; this service answers {', '.join(MEDIA_TYPES)}")


def reading_instant(parts: Iterable[Answered | Block], otherwise_us: int) -> int:
    """The instant of the whole answer: the earliest any of its values holds at."""
    distinct: dict[int, int] = {}
    for part in parts:
        instants = part.instant_us
        if isinstance(part, Block) and instants is None:
            return part.t_us
        if instants is not None and id(instants) not in distinct:
            distinct[id(instants)] = int(min(instants) if isinstance(instants, list) else instants.min())
    return min(distinct.values(), default=otherwise_us)


def rows_json(columns: Sequence[Answered], instant_us: int, _: bytes | None = None) -> bytes:
    """The answer row by row: by name values, statuses, event times (null where there is none) and, in rows where any
    value holds at a later instant than `instant`, the values' instants.

    Timestamps are RFC 3339 text to the microsecond.
    """
    names = [column.name for column in columns]
    values = [json_values([*column.values], column.dtype, seconds=False) for column in columns]
    statuses = [[_TEXT_NAMES[status] for status in column.statuses.tobytes()] for column in columns]
    count = len(columns[0].values)
    times = _texts([column.event_us for column in columns], count)
    instants = _texts([column.instant_us for column in columns], count)
    base = rfc3339(instant_us)
    rows = []
    by_row = [zip(*each, strict=True) for each in (values, statuses, times, instants)]
    for held, told, since, at in zip(*by_row, strict=True):
        row = {
            "values": dict(zip(names, held, strict=True)),
            "statuses": dict(zip(names, told, strict=True)),
            "event_timestamps": dict(zip(names, since, strict=True)),
        }
        if any(instant not in (None, base) for instant in at):
            row["instants"] = dict(zip(names, at, strict=True))
        rows.append(row)
    return orjson.dumps({"instant": base, "feature_names": names, "rows": rows})


def _texts(arrays: Sequence[Instants | None], rows: int) -> list[list[str | None]]:
    """The instants of each array as text, None for 0; arrays that are the same one are written once."""
    written: dict[int, list[str | None]] = {}
    for instants_us in arrays:
        if instants_us is not None and id(instants_us) not in written:
            texts = orjson.loads(instants_json(instants_us))
            written[id(instants_us)] = [
                text if instant else None for text, instant in zip(texts, instants_us.tolist(), strict=True)
            ]
    return [[None] * rows if instants_us is None else written[id(instants_us)] for instants_us in arrays]


class ArrowFeature(msgspec.Struct, frozen=True, array_like=True):
    """Where a column's statuses and times stand in an Arrow answer."""

    name: str
    dtype: str
    status: int
    """Its statuses are the column `status:N`."""
    times: int
    """Its event times and instants are the columns `event_timestamp:N` and `instant:N`."""


def arrow_stream(columns: Sequence[Answered], instant_us: int, _: bytes | None = None) -> bytes:
    """The answer as an Arrow IPC stream of one batch, typed as declared.

    First every column under its name, then statuses (text), event times and instants (microseconds, UTC; null where
    there is none), each distinct one once. The schema's metadata holds `instant` and, as JSON, `features`: for each
    column [name, Feast type, number of its statuses, number of its times].
    """
    arrays: dict[str, pa.Array] = {
        column.name: column.values.arrow()
        if isinstance(column.values, Numbers)
        else from_python(column.values, column.dtype, name=column.name)
        for column in columns
    }
    statuses: dict[bytes, int] = {}
    times: dict[tuple[int, int], int] = {}
    features = []
    for column in columns:
        status = statuses.setdefault(column.statuses.tobytes(), len(statuses))
        if f"status:{status}" not in arrays:
            arrays[f"status:{status}"] = pa.array(
                [_TEXT_NAMES[each] for each in column.statuses.tobytes()], pa.string()
            )
        time = times.setdefault((id(column.event_us), id(column.instant_us)), len(times))
        if f"instant:{time}" not in arrays:
            instants_us = np.zeros_like(column.event_us) if column.instant_us is None else column.instant_us
            arrays[f"event_timestamp:{time}"] = pa.array(column.event_us, _WHEN, mask=column.event_us == 0)
            arrays[f"instant:{time}"] = pa.array(instants_us, _WHEN, mask=instants_us == 0)
        features.append(ArrowFeature(column.name, column.dtype, status, time))
    batch = pa.RecordBatch.from_arrays(list(arrays.values()), names=list(arrays))
    told = {"instant": rfc3339(instant_us), "features": msgspec.json.encode(features)}
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, batch.schema.with_metadata(told)) as stream:
        stream.write_batch(batch.replace_schema_metadata(told))
    return bytes(sink.getvalue())


def json_values(values: list[Any], dtype: str, *, seconds: bool = True) -> list[Any]:
    """The values of a column as JSON has them; the list itself where nothing has to change.

    >>> json_values([1.5, float("nan"), None], "DOUBLE")
    [1.5, 'NaN', None]
    """
    if dtype in VERBATIM:
        return values
    if dtype in ("DOUBLE", "FLOAT"):
        # filter(None): nulls and zeros, both finite, are left out.
        if all(map(math.isfinite, filter(None, values))):
            return values
        return [None if value is None else _finite(value) for value in values]
    if dtype in NESTED:
        return [_plain(value, seconds=seconds) for value in values]
    item = item_of(dtype)
    if item is not None:
        return [None if value is None else json_values(list(value), item, seconds=seconds) for value in values]
    return [_plain(value, seconds=seconds) for value in values]


def rfc3339(instant_us: int) -> str:
    """An instant as text, to the microsecond where there is a fraction; beyond years 1 to 9999 the nearest of these.

    >>> rfc3339(1_357_000_000_250_000)
    '2013-01-01T00:26:40.250000Z'
    """
    second, fraction = divmod(min(max(instant_us, _FIRST_US), _LAST_US), 1_000_000)
    return f"{_second(second)}.{fraction:06}Z" if fraction else _second(second) + "Z"


@lru_cache(maxsize=4096)
def _second(second: int) -> str:
    """A second as text; requests and the rows of one source mostly share theirs."""
    return (_EPOCH + timedelta(seconds=second)).replace(tzinfo=None).isoformat()


def instants_json(instants_us: Instants | list[int]) -> bytes:
    """Instants as a JSON array of RFC 3339 texts."""
    if isinstance(instants_us, list):
        if len(instants_us) <= FEW:
            return b'["' + '","'.join(map(rfc3339, instants_us)).encode() + b'"]'
        instants_us = np.array(instants_us, np.int64)
    try:
        return orjson.dumps(instants_us.view("M8[us]"), option=_INSTANTS)
    except TypeError:
        # Years that orjson's calendar lacks.
        return orjson.dumps([rfc3339(instant_us) for instant_us in instants_us.tolist()])


def _finite(value: float) -> float | str:
    if math.isfinite(value):
        return value
    return "NaN" if math.isnan(value) else "Infinity" if value > 0 else "-Infinity"


def _instant(value: datetime, *, seconds: bool) -> int | str:
    since = value - _EPOCH
    micros = (since.days * 86_400 + since.seconds) * 1_000_000 + since.microseconds
    return micros // 1_000_000 if seconds else rfc3339(micros)


_TO_JSON: dict[type, Callable[[Any], Any]] = {
    float: _finite,
    bytes: lambda value: base64.b64encode(value).decode("ascii"),
    uuid.UUID: str,
    Decimal: str,
}


def _plain(value: Any, *, seconds: bool) -> Any:
    """A value of any depth as JSON has it."""
    if isinstance(value, dict):
        return {str(key): _plain(item, seconds=seconds) for key, item in value.items()}
    if isinstance(value, (list, tuple, set, frozenset)):
        return [_plain(item, seconds=seconds) for item in value]
    if isinstance(value, datetime):
        return _instant(value, seconds=seconds)
    convert = _TO_JSON.get(type(value))
    return value if convert is None else convert(value)
