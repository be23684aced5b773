"""Under which Redis keys does a value live?

Every name that a user chose is length-prefixed, so that no project, view or topic can reach into another's keys
("ml" and "team_ml", "a" with view "b_c" and "a_b" with view "c"). One hash tag per stream shard and 64 per
latest-value view keep every atomic script within one Redis Cluster slot.

    fs:plan:{PROJECT}                        the Plan in force
    fs:plans:{PROJECT}                       hash of the last Plans that were in force, by version
    fs:applying:{PROJECT}                    which `apply` changes the Plan now; ends by itself
    fs:fallback:{PROJECT}                    hash of the services that answer by their fallback, and why
    fs:row:{PROJECT VIEW TAG}:KEY            latest values of one entity key; TAG is crc32(KEY) mod 64
    fs:schema:{PROJECT VIEW}                 hash of every layout its rows were written in, by fingerprint
    fs:loaded:{PROJECT VIEW}                 how far its source is loaded
    fs:shards:{PROJECT VIEW VERSION}         the shards whose tiles a reader of that view version merges
    fs:users:{PROJECT}                       hash: who uses which version of the Plan, and until when that holds
    fs:ctl:{SHARD}                           control hash of one shard: epoch, offset, watermark, …
    fs:tile:{SHARD}:HOP:BLOCK:KEY            32 tiles of one entity key and hop; at hop -1 the key's newest tile
    fs:seen:{SHARD}:SPAN                     hash of the event ids that counted and arrived in one span of time

PROJECT, VIEW and topic ids appear as `length:name`; SHARD is project, view, version, topic id and partition. KEY is
Feast's entity key serialization, version 3. HOP and BLOCK are decimal microseconds and block number; SPAN numbers
spans of arrival as long as the horizon of the view's event ids, at least a minute.
"""

import re
import struct
import zlib
from collections.abc import Mapping, Sequence
from decimal import Decimal
from typing import Final

import msgspec
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from featurestore.errors import UsageError
from featurestore.online import blobs
from featurestore.online.types import FLOAT_INTEGERS
from featurestore.plan import JoinKey

ROW_TAGS = 64
DROPPED = b"dropped"
"""What stands in place of a view version's list of shards once its tiles are to be removed."""
_STRING = struct.pack("<I", 2)
_INT64 = struct.Struct("<q")
_VALUE_TYPES = {"BYTES": 1, "STRING": 2, "INT32": 3, "INT64": 4, "UNIX_TIMESTAMP": 8}
_BOUNDS = {"INT32": 31, "INT64": 63, "UNIX_TIMESTAMP": 63}


REPLAY_SUFFIX: Final = ".replay"
"""What the name of a topic of replayed events ends with, and the id under which its partitions are read."""
HISTORY_MARK: Final = ".before-"
"""In the id of a history: events of a topic from before it had so many partitions."""
_FILE_ID: Final = re.compile(r"[0-9a-f]{32}")


def is_awaited(topic_id: str) -> bool:
    """Whether events are to be expected under a topic id: not of replays, a history, or a file that was read once.

    >>> [is_awaited(each) for each in ("u5wDpzYCRXK2vOHt1dZbLg", "u5wDpzYCRXK2vOHt1dZbLg.replay",
    ...                                "u5wDpzYCRXK2vOHt1dZbLg.before-4", "0123456789abcdef0123456789abcdef")]
    [True, False, False, False]
    """
    return not (topic_id.endswith(REPLAY_SUFFIX) or HISTORY_MARK in topic_id or _FILE_ID.fullmatch(topic_id))


class Shard(msgspec.Struct, frozen=True):
    """The unit of stream state: one partition of one topic, as one version of one view sees it."""

    project: str
    view: str
    version: int
    topic_id: str
    partition: int

    @property
    def tag(self) -> str:
        """The hash tag that all keys of the shard share; braces in names cannot end it early."""
        parts = [
            _named(self.project),
            _named(self.view),
            str(self.version),
            _named(self.topic_id),
            str(self.partition),
        ]
        return "{" + " ".join(parts) + "}"

    @property
    def control_key(self) -> bytes:
        """Key of the control hash."""
        return f"fs:ctl:{self.tag}".encode()

    def tile_prefix(self, hop_us: int) -> bytes:
        """What every tile key of the shard at that hop starts with; `BLOCK:KEY` follows."""
        return f"fs:tile:{self.tag}:{hop_us}:".encode()

    def seen_key(self, span: int) -> bytes:
        """Key of the event ids that counted and arrived in a span of time."""
        return f"fs:seen:{self.tag}:{span}".encode()


def tile_key(prefix: bytes, block: int, entity_key: bytes) -> bytes:
    """Key of one block of 32 tiles; `prefix` is the shard's for the hop."""
    return b"%s%d:%s" % (prefix, block, entity_key)


def plan_key(project: str) -> bytes:
    """Key of the project's Plan in force."""
    return f"fs:plan:{{{_named(project)}}}".encode()


def plans_key(project: str) -> bytes:
    """Key of the hash of the project's last Plans, by version."""
    return f"fs:plans:{{{_named(project)}}}".encode()


def applying_key(project: str) -> bytes:
    """Key of the lease of the `apply` that changes the Plan."""
    return f"fs:applying:{{{_named(project)}}}".encode()


def fallback_key(project: str) -> bytes:
    """Key of the hash of services that answer by their fallback."""
    return f"fs:fallback:{{{_named(project)}}}".encode()


def users_key(project: str) -> bytes:
    """Key of the hash of those who use the project's Plans."""
    return f"fs:users:{{{_named(project)}}}".encode()


def shards_key(project: str, view: str, version: int) -> bytes:
    """Key of the list of shards whose tiles hold the view version's state."""
    return f"fs:shards:{{{_named(project)} {_named(view)} {version}}}".encode()


def version_tag(project: str, view: str, version: int) -> str:
    """What the hash tags of all shards of a view version start with, and no other version's.

    >>> Shard("ml", "v", 1, "t", 0).tag.startswith(version_tag("ml", "v", 1))
    True
    >>> Shard("ml", "v", 12, "t", 0).tag.startswith(version_tag("ml", "v", 1))
    False
    """
    return f"{{{_named(project)} {_named(view)} {version} "


def schema_key(project: str, view: str) -> bytes:
    """Key of the hash of row layouts of a view: fingerprint -> layout."""
    return f"fs:schema:{{{_named(project)} {_named(view)}}}".encode()


def loaded_key(project: str, view: str) -> bytes:
    """Key of how far a view's source is loaded."""
    return f"fs:loaded:{{{_named(project)} {_named(view)}}}".encode()


def view_prefixes(project: str, view: str) -> tuple[bytes, ...]:
    """What every key that holds values of one view starts with, and no other view's; for deletes.

    >>> b"fs:row:{2:ml 1:v 7}:k".startswith(view_prefixes("ml", "v"))
    True
    >>> b"fs:row:{7:team_ml 1:v 7}:k".startswith(view_prefixes("ml", "v"))
    False
    """
    scope = f"{{{_named(project)} {_named(view)}"
    ends = {"row": " ", "schema": "}", "loaded": "}", "shards": " ", "ctl": " ", "tile": " ", "seen": " "}
    return tuple(f"fs:{kind}:{scope}{end}".encode() for kind, end in ends.items())


def row_prefixes(project: str, view: str) -> tuple[bytes, ...]:
    """The 64 prefixes of a view's latest-value rows; `row_key` picks one by the entity key."""
    return tuple(f"fs:row:{{{_named(project)} {_named(view)} {tag}}}:".encode() for tag in range(ROW_TAGS))


def row_key(prefixes: Sequence[bytes], entity_key: bytes) -> bytes:
    """Key of the latest values of one entity key."""
    return prefixes[zlib.crc32(entity_key) % ROW_TAGS] + entity_key


def row_tags(entity_keys: Sequence[bytes]) -> list[int]:
    """Which of a view's prefixes each entity key takes: the same one in every view of that entity."""
    return [zlib.crc32(key) % ROW_TAGS for key in entity_keys]


class EntityKeyCodec:
    """Serializes one view's entity keys: Feast's version 3, join keys sorted by name.

    Values are coerced to the declared types (5 and "5" are one INT64 key) and refused where that loses something, or
    may have lost something before: floats from 2^53 on.
    """

    def __init__(self, join_keys: Sequence[JoinKey]) -> None:
        self.join_keys = tuple(sorted(join_keys, key=lambda key: key.name))
        head = struct.pack("<I", len(self.join_keys))
        for key in self.join_keys:
            name = key.name.encode()
            head += _STRING + struct.pack("<I", len(name)) + name
        self._head = head
        self._types = [(key.name, key.dtype) for key in self.join_keys]

    @property
    def value_at(self) -> int:
        """Where in a key of one join key its value begins."""
        return len(self._head) + 8

    def encode(self, values: Mapping[str, object]) -> bytes | None:
        """The key of one entity row; None where a key value is null (no such entity).

        >>> codec = EntityKeyCodec([JoinKey(entity="driver", name="driver_id", dtype="INT64")])
        >>> codec.encode({"driver_id": "5"}) == codec.encode({"driver_id": 5})
        True
        """
        parts = [self._head]
        for name, dtype in self._types:
            value = values[name]
            if value is None:
                return None
            raw = _key_bytes(name, dtype, value)
            parts.append(struct.pack("<II", _VALUE_TYPES[dtype], len(raw)) + raw)
        return b"".join(parts)

    def encode_rows(self, columns: Sequence[Sequence[object]], rows: int) -> list[bytes | None]:
        """The keys of many entity rows of Python values; columns in the order of `join_keys`, sorted by name.

        >>> codec = EntityKeyCodec([JoinKey(entity="driver", name="driver_id", dtype="INT64")])
        >>> codec.encode_rows([[5, "5"]], 2) == [codec.encode({"driver_id": 5})] * 2
        True
        """
        if len(self._types) != 1:
            names = [name for name, _ in self._types]
            parts = zip(*columns, strict=True) if columns else [()] * rows
            return [self.encode(dict(zip(names, part, strict=True))) for part in parts]
        [(name, dtype)] = self._types
        head = self._head + struct.pack("<I", _VALUE_TYPES[dtype])
        if dtype == "INT64" and set(map(type, columns[0])) == {int}:
            # Nearly every request: numbers as they should be.
            head += (8).to_bytes(4, "little")
            try:
                return [head + raw for raw in map(_INT64.pack, columns[0])]
            except struct.error:
                pass
        keys: list[bytes | None] = []
        for value in columns[0]:
            if value is None:
                keys.append(None)
            else:
                raw = _key_bytes(name, dtype, value)
                keys.append(head + len(raw).to_bytes(4, "little") + raw)
        return keys

    def encode_columns(self, columns: Mapping[str, pa.Array | pa.ChunkedArray], rows: int) -> list[bytes | None]:
        """The keys of many entity rows at once: what `encode` gives for each; columns by join key.

        >>> codec = EntityKeyCodec([JoinKey(entity="driver", name="driver_id", dtype="INT64")])
        >>> codec.encode_columns({"driver_id": pa.array([5, None])}, 2) == [codec.encode({"driver_id": 5}), None]
        True
        """
        if not self._types:
            return [self._head] * rows
        parts = [blobs.repeat(self._head, rows)]
        missing = np.zeros(rows, np.bool_)
        for name, dtype in self._types:
            try:
                column = columns[name]
            except KeyError:
                raise UsageError(
                    f"no column for join key {name!r}; what exists: {', '.join(sorted(columns))}"
                ) from None
            raw = _key_column(name, dtype, column)
            if raw.null_count:
                missing |= raw.is_null().to_numpy(zero_copy_only=False)
                raw = raw.fill_null(b"")
            lengths = np.stack([np.full(rows, _VALUE_TYPES[dtype]), blobs.spread(raw)[1]], axis=1).astype("<u4")
            parts += [blobs.fixed(lengths.view(np.uint8)), raw]
        keys = blobs.cut(blobs.join(parts))
        return (
            [None if gone else key for gone, key in zip(missing.tolist(), keys, strict=True)]
            if missing.any()
            else [*keys]
        )


def _key_bytes(name: str, dtype: str, value: object) -> bytes:
    if dtype == "STRING" and isinstance(value, (str, int)) and not isinstance(value, bool):
        return str(value).encode()
    if dtype == "BYTES" and isinstance(value, bytes):
        return value
    bits = _BOUNDS.get(dtype)
    if bits:
        number = _whole(value)
        if number is not None and -(1 << bits) <= number < 1 << bits:
            return number.to_bytes(4 if dtype == "INT32" else 8, "little", signed=True)
    rounded = bits and isinstance(value, float) and value.is_integer()
    why = f"; {may_be_rounded(64)}" if rounded else ""
    found = type(value).__name__
    raise UsageError(f"join key {name!r} is declared {dtype}; a {found} cannot become one without loss{why}")


def may_be_rounded(bits: int) -> str:
    """Why a float of that width is refused as an integer, and what to do.

    >>> may_be_rounded(32)
    'a float from 2^24 on may be the rounded form of another integer: give integers as integers'
    """
    power = FLOAT_INTEGERS[bits].bit_length() - 1
    return f"a float from 2^{power} on may be the rounded form of another integer: give integers as integers"


def _key_column(name: str, dtype: str, column: pa.Array | pa.ChunkedArray) -> pa.BinaryArray:
    array = column.combine_chunks() if isinstance(column, pa.ChunkedArray) else column
    if dtype == "STRING" and pa.types.is_string(array.type):
        return array.cast(pa.binary())
    if dtype in ("INT64", "UNIX_TIMESTAMP") and pa.types.is_int64(array.type):
        values = array.fill_null(0).to_numpy().astype("<i8").view(np.uint8).reshape(-1, 8)
        raw = blobs.fixed(values)
        return pc.if_else(array.is_valid(), raw, pa.scalar(None, pa.binary())) if array.null_count else raw
    # Any other type, value by distinct value: the rule of `encode` is the only one.
    distinct = array if pa.types.is_dictionary(array.type) else array.dictionary_encode()
    values = distinct.dictionary
    if pa.types.is_floating(values.type) and dtype in _BOUNDS:
        # NaN is how a float column of whole numbers says null, and a narrower float is rounded sooner than Python's.
        values = pc.if_else(pc.is_nan(values), pa.scalar(None, values.type), values)
        rounded = pc.greater_equal(pc.abs(values.cast(pa.float64())), float(FLOAT_INTEGERS[values.type.bit_width]))
        if pc.any(rounded).as_py():
            why = may_be_rounded(values.type.bit_width)
            raise UsageError(f"join key {name!r} is declared {dtype}; found {values.type}: {why}")
    keys = [None if value is None else _key_bytes(name, dtype, value) for value in values.to_pylist()]
    return pa.array(keys, pa.binary()).take(distinct.indices)


def _whole(value: object) -> int | None:
    if isinstance(value, bool):
        return None
    if isinstance(value, int):
        return value
    if isinstance(value, float):
        # From 2^53 on it may be the rounded form of another integer.
        return int(value) if value.is_integer() and abs(value) < FLOAT_INTEGERS[64] else None
    if isinstance(value, Decimal):
        return int(value) if value.is_finite() and value == value.to_integral_value() else None
    if isinstance(value, str):
        digits = value.removeprefix("-")
        return int(value) if digits.isascii() and digits.isdigit() and str(int(value)) == value else None
    return None


def _named(name: str) -> str:
    return f"{len(name.encode())}:{name}".replace("}", "%7D").replace("{", "%7B")
