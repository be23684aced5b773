"""Which typed row does a message hold, or why does it hold none?

Bytes in, rows out: every message that cannot become a row is set aside with a reason, and its neighbours pass. What
a row is follows from the views that read the topic, from the topic's schema and from the contract: a column that none
of them names is dropped. JSON, Avro and Protobuf give the same rows for the same events.

Rows are `msgspec` Structs whose attributes are the columns' names as the producer writes them; a missing column is
null. Times are `datetime`s or integers as they came; join keys have the type of their entity. `table` makes Arrow
columns of rows, where times are int64 microseconds in UTC.
"""

import datetime as dt
import decimal
import keyword
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from operator import attrgetter
from typing import Annotated, Any, Final, Protocol

import msgspec
import numpy as np
import numpy.typing as npt
import pyarrow as pa

from featurestore.aggregation.values import decimal_of
from featurestore.errors import ConfigurationError, DefinitionError
from featurestore.plan import Field, View
from featurestore.topic_schema import declared_columns
from streaming.avro_messages import avro_reader
from streaming.messages import (
    BAD_KEY,
    EMPTY,
    KEY_MISMATCH,
    MALFORMED,
    NO_TIMESTAMP,
    UNKNOWN_SCHEMA,
    WRONG_TYPE,
    Refused,
)
from streaming.proto_messages import proto_reader
from streaming.schema_registry import SchemaRegistry
from streaming.sound_batch import MESSAGES, SoundBatch
from validation.contract import Contract
from validation.errors import did_you_mean

_EPOCH = dt.datetime(1970, 1, 1, tzinfo=dt.UTC)
_NAIVE_EPOCH = dt.datetime(1970, 1, 1)  # noqa: DTZ001 - naive input is UTC: it is subtracted from naive values
_MICROSECOND = dt.timedelta(microseconds=1)
_ID_BYTES = 5
"""Confluent's wire format: a zero byte and the schema's id, big-endian."""
_FINER = re.compile(rb":\d\d\.\d{7}")
_DIGITS = re.compile(rb"(:\d\d\.\d{6})\d+")
_INT64 = Annotated[int, msgspec.Meta(ge=-(2**63), le=2**63 - 1)]
EARLIEST_US: Final = -62_135_596_800_000_000
LATEST_US: Final = 253_402_300_799_999_999
"""The years 1 to 9999, which is what RFC 3339 and every reader of the event log can say."""
_EDGES = (1, 9999)
"""Years in which an offset may carry an instant out of the calendar."""
_INSTANT = Annotated[int, msgspec.Meta(ge=EARLIEST_US, le=LATEST_US)]
_INT32 = Annotated[int, msgspec.Meta(ge=-(2**31), le=2**31 - 1)]
_SCALARS: Final[Mapping[str, tuple[Any, pa.DataType]]] = {
    "INT32": (_INT32, pa.int32()),
    "INT64": (_INT64, pa.int64()),
    "FLOAT": (float, pa.float32()),
    "DOUBLE": (float, pa.float64()),
    "STRING": (str, pa.string()),
    "BOOL": (bool, pa.bool_()),
    "BYTES": (bytes, pa.binary()),
    "UNIX_TIMESTAMP": (dt.datetime | _INSTANT, pa.timestamp("us", "UTC")),
    "DATE": (dt.date, pa.date32()),
}
_EXACT = decimal.Context(prec=50)
_TYPES: Final[Mapping[str, tuple[Any, pa.DataType]]] = {
    **_SCALARS,
    **{
        f"{name}_LIST": (list[kind | None], pa.list_(arrow))  # type: ignore[valid-type]  # read by msgspec alone
        for name, (kind, arrow) in _SCALARS.items()
        if name not in ("UNIX_TIMESTAMP", "DATE")
    },
}
_LOGICAL: Final = {
    "string": "STRING",
    "integer": "INT64",
    "number": "DOUBLE",
    "boolean": "BOOL",
    "timestamp": "UNIX_TIMESTAMP",
    "date": "STRING",
    "time": "STRING",
}
"""ODCS logical types as Feast types; dates and times of day stay the text they are."""


class Message(Protocol):
    """What is decoded: the bytes of one record."""

    @property
    def key(self) -> bytes | None: ...
    @property
    def value(self) -> bytes | None: ...


class Malformed(msgspec.Struct, frozen=True):
    """A message that holds no row: its place in the sequence that was decoded, and why."""

    index: int
    reason: str
    detail: str


class Decoded(msgspec.Struct, frozen=True):
    """The rows of a sequence of messages; `index[i]` is the place of row i's message."""

    rows: list[Any]
    index: npt.NDArray[np.int64]
    ts_us: npt.NDArray[np.int64]
    malformed: list[Malformed]


class Decoder:
    """Decodes one topic's messages for all views that read it.

    Raises DefinitionError where the views disagree about the topic, a column has a type that events cannot carry, or
    an Avro or Protobuf schema lacks a column that a view reads; ConfigurationError where messages carry schema ids and
    no `registry` is given. `decode` raises SourceUnavailable where the registry does not answer.
    """

    def __init__(
        self, views: Sequence[View], contract: Contract | None = None, *, registry: SchemaRegistry | None = None
    ) -> None:
        self.timestamp_field = _agreed(views, "timestamp field", lambda view: view.source.timestamp_field)
        self.topic = _agreed(views, "topic", lambda view: view.source.topic)
        if self.topic is None:
            raise DefinitionError(f"view {views[0].name!r} reads no topic; only stream views are decoded")
        mapping = {new: old for view in views for old, new in view.source.field_mapping.items()}
        fields: dict[str, str] = {}
        keys: dict[str, str] = {}
        for view in views:
            for key in view.join_keys:
                _declare(keys, mapping.get(key.name, key.name), key.dtype, view)
            # What a view of latest values reads of an event are its features.
            for column in view.columns or view.features:
                name = mapping.get(column.name, column.name)
                _declare(fields, name, column.dtype, view)
        fields.update(keys)
        fields[self.timestamp_field] = "UNIX_TIMESTAMP"
        declared = {column.name: column.dtype for column in declared_columns(self.topic)}
        if self.topic.message_format != "json":
            _check_declared(self.topic.name, fields, declared)
        for name, dtype in declared.items():
            fields.setdefault(name, dtype)
        for promised in contract.columns if contract else ():
            if promised.name not in fields and promised.logical_type in _LOGICAL:
                fields[promised.name] = _LOGICAL[promised.logical_type]
        for name in (self.topic.event_id, self.topic.key_column):
            if name is not None:
                fields.setdefault(name, "STRING")
        self.fields = tuple(Field(name=name, dtype=dtype) for name, dtype in fields.items())
        """Every column of a row, with its Feast type, as the producer names it."""
        self.schema = pa.schema([(field.name, _type_of(field)[1]) for field in self.fields])
        self._keys = {name: dtype for name, dtype in keys.items() if dtype in ("STRING", "INT32", "INT64")}
        keyed = any(view.partitions == "keyed" for view in views)
        self._message_key = self.topic.key_column if keyed else None
        self._attributes = {field.name: _attribute(number, field.name) for number, field in enumerate(self.fields)}
        self._columns = [
            (attrgetter(self._attributes[field.name]), field.type, pa.types.is_timestamp(field.type))
            for field in self.schema
        ]
        self._json = self.topic.message_format == "json"
        self._framed = self.topic.wire_format == "confluent"
        if self._framed and registry is None:
            raise ConfigurationError(
                f"topic {self.topic.name!r}: its messages carry schema ids; name the registry that resolves them with "
                "--schema-registry or FEATURESTORE_SCHEMA_REGISTRY (a folder or an http address)"
            )
        self._registry = registry
        self._known_ids: set[int] = set()
        self._decode = self._parser()
        self._ts = self._attributes[self.timestamp_field]
        self._instants = [self._attributes[field.name] for field in self.fields if field.dtype == "UNIX_TIMESTAMP"]
        self._sound = self._sound_batch() if self._json and not self._framed else None

    def decode(self, messages: Sequence[Message]) -> Decoded:
        """The rows of the messages, in order, and the messages that hold none.

        >>> from featurestore.plan import Source, Topic
        >>> topic = Topic(name="clicks", bootstrap_servers="", message_format="json")
        >>> source = Source(name="clicks", path="clicks", timestamp_field="ts", topic=topic)
        >>> view = View(name="v", version=1, kind="windowed", join_keys=(), features=(), ttl_us=0, source=source)
        >>> class Text(msgspec.Struct):
        ...     value: bytes
        ...     key: bytes | None = None
        >>> found = Decoder([view]).decode([Text(b'{"ts": "2024-01-01T00:00:00Z"}'), Text(b'{"ts": 1}{}'), Text(b"")])
        >>> found.ts_us.tolist(), [(bad.index, bad.reason) for bad in found.malformed]
        ([1704067200000000], [(1, 'malformed'), (2, 'empty')])
        """
        if self._sound is None:
            return self._one_by_one(messages, 0)
        parts: list[Decoded] = []
        for first in range(0, len(messages), MESSAGES):
            some = messages[first : first + MESSAGES]
            sound = self._sound.read(some)
            if sound is None:
                parts.append(self._one_by_one(some, first))
            else:
                parts.append(Decoded(sound[0], np.arange(first, first + len(some)), sound[1], []))
        if len(parts) == 1:
            return parts[0]
        none = np.zeros(0, np.int64)
        return Decoded(
            [row for part in parts for row in part.rows],
            np.concatenate([part.index for part in parts] or [none]),
            np.concatenate([part.ts_us for part in parts] or [none]),
            [bad for part in parts for bad in part.malformed],
        )

    def _one_by_one(self, messages: Sequence[Message], first: int) -> Decoded:
        """The rows of messages whose places begin at `first`."""
        rows: list[Any] = []
        index: list[int] = []
        times: list[int] = []
        malformed: list[Malformed] = []
        decode, ts_attribute, finish, finer = self._decode, self._ts, self._finish, self._json and not self._framed
        for number, message in enumerate(messages, first):
            try:
                value = message.value or _refuse_empty(message.value)
                row = decode(value)
                if finer and _FINER.search(value):
                    self._floor(row, value)
                ts = getattr(row, ts_attribute)
                ts_us = ts if type(ts) is int else _micros(ts)
                if finish is not None:
                    finish(row, message)
            except Refused as refused:
                malformed.append(Malformed(number, refused.reason, refused.detail))
            except msgspec.ValidationError as error:
                malformed.append(Malformed(number, WRONG_TYPE, str(error)))
            except TypeError as error:
                malformed.append(Malformed(number, WRONG_TYPE, str(error)))
            except (msgspec.MsgspecError, ValueError, RecursionError) as error:
                malformed.append(Malformed(number, MALFORMED, str(error)))
            else:
                rows.append(row)
                index.append(number)
                times.append(ts_us)
        return Decoded(rows, np.array(index, np.int64), np.array(times, np.int64), malformed)

    def table(self, rows: Sequence[Any]) -> pa.Table:
        """The rows as Arrow columns of `schema`."""
        columns = []
        for read, dtype, is_instant in self._columns:
            values = list(map(read, rows))
            if is_instant:
                if set(map(type, values)) - {int, type(None)}:
                    values = [v if v is None or type(v) is int else _micros(v) for v in values]
                columns.append(pa.array(values, pa.int64()).view(dtype))
            else:
                columns.append(pa.array(values, dtype))
        return pa.Table.from_arrays(columns, schema=self.schema)

    def named(self, rows: Sequence[Any]) -> Sequence[Any]:
        """The rows for a reader that goes by column names: themselves, or mappings where a name is no attribute."""
        if all(name == attribute for name, attribute in self._attributes.items()):
            return rows
        return [{name: getattr(row, attribute) for name, attribute in self._attributes.items()} for row in rows]

    def _sound_batch(self) -> SoundBatch:
        """Reads many messages together, where all of them are sound."""
        return SoundBatch(
            self._decode,
            timestamp=self._ts,
            keys=[(self._attributes[name], dtype) for name, dtype in self._keys.items()],
            message_key=None if self._message_key is None else self._attributes[self._message_key],
            plain=self._instants == [self._ts] and all(decimal_of(field.dtype) is None for field in self.fields),
        )

    def _parser(self) -> Callable[[bytes], Any]:
        """From a message's bytes to its row."""
        row = self._row_type()
        topic, registry = self.topic, self._registry
        if topic.message_format == "json":
            self._from_json = msgspec.json.Decoder(row).decode
            return self._framed_json if self._framed else self._from_json
        if topic.message_format == "avro":
            read = avro_reader(topic, registry)
        else:
            read = proto_reader(topic, {field.name for field in self.fields}, registry)
        if self._framed:
            return lambda value: msgspec.convert(read(value[_ID_BYTES:], _schema_id(value)), row)
        return lambda value: msgspec.convert(read(value, None), row)

    def _framed_json(self, value: bytes) -> Any:
        number = _schema_id(value)
        if number not in self._known_ids:
            assert self._registry is not None
            if self._registry.schema(number) is None:
                raise Refused(UNKNOWN_SCHEMA, f"{self._registry} has no schema {number}")
            self._known_ids.add(number)
        document = value[_ID_BYTES:]
        row = self._from_json(document)
        if _FINER.search(document):
            self._floor(row, document)
        return row

    def _row_type(self) -> type[msgspec.Struct]:
        fields: list[tuple[str, Any, Any]] = []
        for field in self.fields:
            kind = str | _INT64 if field.name in self._keys else _type_of(field)[0]
            fields.append((self._attributes[field.name], kind | None, None))
        renamed = {attribute: name for name, attribute in self._attributes.items()}
        return msgspec.defstruct("Row", fields, gc=False, rename=renamed)

    def _floor(self, row: Any, value: bytes) -> None:
        """Nanoseconds are floored; the library rounds, so the instants are read again without their last digits."""
        cut = self._from_json(_DIGITS.sub(rb"\1", value))
        for attribute in self._instants:
            setattr(row, attribute, getattr(cut, attribute))

    @property
    def _finish(self) -> "Callable[[Any, Message], None] | None":
        keys = [(self._attributes[name], name, dtype) for name, dtype in self._keys.items()]
        message_key = self._message_key
        key_attribute = self._attributes[message_key] if message_key is not None else ""
        instants = [attribute for attribute in self._instants if attribute != self._ts]
        decimals = [
            (self._attributes[field.name], field.name, *digits)
            for field in self.fields
            if (digits := decimal_of(field.dtype)) is not None
        ]
        if not keys and not instants and not decimals and message_key is None:
            return None

        def finish(row: Any, message: Message) -> None:
            for attribute, name, dtype in keys:
                value = getattr(row, attribute)
                if value is not None and (type(value) is not str) is (dtype == "STRING"):
                    setattr(row, attribute, _coerced(name, dtype, value))
                elif dtype == "INT32" and value is not None and not -(2**31) <= value < 2**31:
                    raise Refused(BAD_KEY, f"join key {name!r} is declared INT32, found {value}")
            for attribute in instants:
                value = getattr(row, attribute)
                if value is not None and type(value) is not int and value.year in _EDGES:
                    _micros(value)
            for attribute, name, precision, scale in decimals:
                value = getattr(row, attribute)
                if value is not None:
                    setattr(row, attribute, _exact(name, value, precision, scale))
            if message_key is not None:
                value = getattr(row, key_attribute)
                if (b"" if value is None else str(value).encode()) != (message.key or b""):
                    raise Refused(KEY_MISMATCH, f"the message key is {message.key!r}, {message_key} is {value!r}")

        return finish


def arrow_type(dtype: str) -> pa.DataType:
    """The type of an event column that is declared with a Feast type.

    >>> arrow_type("INT64")
    DataType(int64)
    """
    return _type_of(Field(name="", dtype=dtype))[1]


def is_instant(micros: int) -> bool:
    """Whether an arrival or event time can be an instant at all.

    >>> is_instant(0), is_instant(2**63 - 1)
    (True, False)
    """
    return EARLIEST_US <= micros <= LATEST_US


def _schema_id(value: bytes) -> int:
    if len(value) < _ID_BYTES or value[0]:
        raise Refused(MALFORMED, "it does not begin with a zero byte and a schema id")
    return int.from_bytes(value[1:_ID_BYTES], "big")


def _check_declared(topic: str, wanted: Iterable[str], declared: Mapping[str, str]) -> None:
    for name in wanted:
        if name not in declared:
            raise DefinitionError(
                f"topic {topic!r}: its schema has no column {name!r} of a type that a column can have; "
                + did_you_mean(name, declared)
            )


def _refuse_empty(value: bytes | None) -> bytes:
    raise Refused(EMPTY, "no value (a tombstone)" if value is None else "no bytes")


def _micros(value: dt.datetime | None) -> int:
    if value is None:
        raise Refused(NO_TIMESTAMP, "the timestamp is missing or null")
    micros = (value - (_NAIVE_EPOCH if value.tzinfo is None else _EPOCH)) // _MICROSECOND
    if not is_instant(micros):
        raise Refused(WRONG_TYPE, f"{value.isoformat()} is not within the years 1 to 9999 in UTC")
    return micros


def _exact(name: str, value: decimal.Decimal, precision: int, scale: int) -> decimal.Decimal:
    """The same number with so many digits behind the point."""
    if value.is_finite() and (not value or value.adjusted() < precision - scale):
        exact = value.quantize(decimal.Decimal(1).scaleb(-scale), context=_EXACT)
        if exact == value:
            return exact
    raise Refused(WRONG_TYPE, f"column {name!r} is declared DECIMAL({precision},{scale}), found {value}")


def _coerced(name: str, dtype: str, value: str | int) -> str | int:
    if dtype == "STRING":
        return str(value)
    bits = 31 if dtype == "INT32" else 63
    text = str(value)
    digits = text.removeprefix("-")
    # str(int(text)) == text refuses "05", "+5" and "5_0": two spellings must not be one key.
    if len(digits) < 20 and digits.isascii() and digits.isdigit() and str(int(text)) == text:
        number = int(text)
        if -(1 << bits) <= number < 1 << bits:
            return number
    raise Refused(BAD_KEY, f"join key {name!r} is declared {dtype}, found {value!r}")


def _declare(fields: dict[str, str], name: str, dtype: str, view: View) -> None:
    if fields.setdefault(name, dtype) != dtype:
        raise DefinitionError(
            f"view {view.name!r} declares column {name!r} as {dtype}, another view of its topic as {fields[name]}; "
            "declare it alike in both"
        )


def _type_of(field: Field) -> tuple[Any, pa.DataType]:
    """What the decoder reads and what Arrow holds."""
    if (digits := decimal_of(field.dtype)) is not None:
        return decimal.Decimal, pa.decimal128(*digits)
    if field.dtype not in _TYPES:
        raise DefinitionError(
            f"event column {field.name!r} is declared {field.dtype}, which messages cannot carry; "
            + did_you_mean(field.dtype, _TYPES)
        )
    return _TYPES[field.dtype]


def _attribute(number: int, name: str) -> str:
    plain = name.isidentifier() and not keyword.iskeyword(name) and not name.startswith("__")
    return name if plain else f"column_{number}"


def _agreed(views: Sequence[View], what: str, of: Callable[[View], Any]) -> Any:
    found = of(views[0])
    for view in views[1:]:
        if of(view) != found:
            raise DefinitionError(
                f"views {views[0].name!r} and {view.name!r} read one topic and disagree about its {what}: "
                f"{found!r} and {of(view)!r}; let them share one source"
            )
    return found


def by_topic(views: Iterable[View]) -> dict[str, tuple[View, ...]]:
    """The stream views by the topic they read, in order of name; views that read none are left out."""
    found: dict[str, list[View]] = {}
    for view in sorted(views, key=lambda view: view.name):
        if view.source.topic is not None:
            found.setdefault(view.source.topic.name, []).append(view)
    return {topic: tuple(readers) for topic, readers in sorted(found.items())}
