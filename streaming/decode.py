"""Which typed row does a message hold, or why does it hold none?

Bytes in, rows out: every message that cannot become a row is set aside with a reason, and its neighbours pass. What
a row is follows from the views that read the topic, from the topic's schema and from the contract: a column that none
of them names is dropped. JSON, Avro and Protobuf give the same rows for the same events.

Rows are `msgspec` Structs whose attributes are the columns' names as the producer writes them; a missing column is
null. Times are `datetime`s or integer microseconds; join keys have the type of their entity. `table` makes Arrow
columns of rows, where times are int64 microseconds in UTC.
"""

import datetime as dt
import keyword
import re
from collections.abc import Callable, Sequence
from operator import attrgetter
from typing import Any, Final

import msgspec
import numpy as np
import numpy.typing as npt
import pyarrow as pa

from featurestore.aggregation.values import decimal_of
from featurestore.errors import ConfigurationError
from featurestore.plan import View
from streaming.avro_messages import avro_reader
from streaming.column_types import INT64, type_of
from streaming.event_columns import EventColumns
from streaming.event_times import event_us
from streaming.messages import EMPTY, MALFORMED, UNKNOWN_SCHEMA, WRONG_TYPE, Message, Refused
from streaming.proto_messages import proto_reader
from streaming.row_values import finisher, micros
from streaming.schema_registry import SchemaRegistry
from streaming.sound_batch import MESSAGES, SoundBatch
from validation.contract import Contract

_ID_BYTES: Final = 5
"""Confluent's wire format: a zero byte and the schema's id, big-endian."""
_FINER: Final = re.compile(rb":\d\d\.\d{7}")
_DIGITS: Final = re.compile(rb"(:\d\d\.\d{6})\d+")


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
        columns = EventColumns(views, contract)
        self.timestamp_field, self.topic, self.fields = columns.timestamp_field, columns.topic, columns.fields
        self.schema = pa.schema([(field.name, type_of(field)[1]) for field in self.fields])
        self._keys, self._message_key = columns.keys, columns.message_key
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
        self._row = self._row_type(dt.datetime | INT64)
        self._decode = self._parser(self._row)
        # For times that msgspec does not read (dates, minutes without seconds, fractions of a number): few and slower.
        self._decode_any = self._parser(self._row_type(Any))
        self._unit = columns.time_unit
        self._ts = self._attributes[self.timestamp_field]
        self._instants = [self._attributes[field.name] for field in self.fields if field.dtype == "UNIX_TIMESTAMP"]
        self._finish = finisher(columns, self._attributes)
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
        decode, ts_attribute, finish, finer = self._decode, self._ts, self._finish, self._json
        for number, message in enumerate(messages, first):
            try:
                value = message.value or _refuse_empty(message.value)
                try:
                    row = decode(value)
                except msgspec.ValidationError:
                    row = self._any_times(value, message)
                else:
                    if finer and _FINER.search(value):
                        self._floor(row, value)
                    self._read_integers(row, message)
                ts = getattr(row, ts_attribute)
                ts_us = ts if type(ts) is int else micros(ts)
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
        for read, dtype, timed in self._columns:
            values = list(map(read, rows))
            if timed:
                if set(map(type, values)) - {int, type(None)}:
                    values = [v if v is None or type(v) is int else micros(v) for v in values]
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
            unit=self._unit,
            keys=[(self._attributes[name], dtype) for name, dtype in self._keys.items()],
            message_key=None if self._message_key is None else self._attributes[self._message_key],
            plain=self._instants == [self._ts] and all(decimal_of(field.dtype) is None for field in self.fields),
        )

    def _read_integers(self, row: Any, message: Message) -> None:
        """Brings integers that are times into microseconds."""
        for attribute in self._instants:
            value = getattr(row, attribute)
            if type(value) is int:
                setattr(row, attribute, event_us(value, self._unit, message))

    def _any_times(self, value: bytes, message: Message) -> Any:
        """The row of a message whose times have another form; raises what `decode` raises where it is not they."""
        found = self._decode_any(value)
        held = {attribute: getattr(found, attribute) for attribute in self._attributes.values()}
        held |= {attribute: event_us(held[attribute], self._unit, message) for attribute in self._instants}
        return self._row(**held)

    def _parser(self, row: type[msgspec.Struct]) -> Callable[[bytes], Any]:
        """From a message's bytes to its row."""
        topic, registry = self.topic, self._registry
        if topic.message_format == "json":
            from_json = msgspec.json.Decoder(row).decode
            if self._framed:
                return lambda value: from_json(self._document(value))
            return from_json
        if topic.message_format == "avro":
            read = avro_reader(topic, registry)
        else:
            read = proto_reader(topic, {field.name for field in self.fields}, registry)
        if self._framed:
            return lambda value: msgspec.convert(read(value[_ID_BYTES:], _schema_id(value)), row)
        return lambda value: msgspec.convert(read(value, None), row)

    def _document(self, value: bytes) -> bytes:
        """What stands behind a schema's id, with no more digits of a second than the library floors."""
        number = _schema_id(value)
        if number not in self._known_ids:
            assert self._registry is not None
            if self._registry.schema(number) is None:
                raise Refused(UNKNOWN_SCHEMA, f"{self._registry} has no schema {number}")
            self._known_ids.add(number)
        return value[_ID_BYTES:]

    def _row_type(self, instant: Any) -> type[msgspec.Struct]:
        """A row whose times are of that type."""
        fields: list[tuple[str, Any, Any]] = []
        for field in self.fields:
            timed = field.dtype == "UNIX_TIMESTAMP"
            kind = str | INT64 if field.name in self._keys else instant if timed else type_of(field)[0]
            fields.append((self._attributes[field.name], kind | None, None))
        renamed = {attribute: name for name, attribute in self._attributes.items()}
        return msgspec.defstruct("Row", fields, gc=False, rename=renamed)

    def _floor(self, row: Any, value: bytes) -> None:
        """Nanoseconds are floored; the library rounds, so the instants are read again without their last digits."""
        cut = self._decode(_DIGITS.sub(rb"\1", value))
        for attribute in self._instants:
            setattr(row, attribute, getattr(cut, attribute))


def _schema_id(value: bytes) -> int:
    if len(value) < _ID_BYTES or value[0]:
        raise Refused(MALFORMED, "it does not begin with a zero byte and a schema id")
    return int.from_bytes(value[1:_ID_BYTES], "big")


def _refuse_empty(value: bytes | None) -> bytes:
    raise Refused(EMPTY, "no value (a tombstone)" if value is None else "no bytes")


def _attribute(number: int, name: str) -> str:
    plain = name.isidentifier() and not keyword.iskeyword(name) and not name.startswith("__")
    return name if plain else f"column_{number}"
