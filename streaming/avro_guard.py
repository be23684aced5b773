"""Bounds of what an Avro schema and a message may make the decoder do.

The decoder recurses on the processor's stack, believes counts of items that take no bytes, does not look whether what
it skips is there, and turns a decimal of any length into a number. A message is walked before it is decoded where its
schema makes any of that possible: where types hold themselves, items may take no bytes, or fields are skipped.
"""

from collections.abc import Callable, Iterator, Mapping
from typing import Any, Final

from fastavro import read as fastavro_read

from featurestore.errors import DefinitionError

DEEPEST: Final = 64
"""Levels of a schema, and of a message whose types hold themselves."""
LARGEST_SCHEMA: Final = 1 << 20
"""Characters of a schema."""
_MOST_EMPTY: Final = 1_000
"""Items of an array that take no bytes."""
_MOST_FREE: Final = 64
"""Values of one type that take no bytes: types made of each other double them with each level."""
_FIXED: Final = {"null": 0, "boolean": 1, "float": 4, "double": 8}
_NUMBERS: Final = ("int", "long", "enum")
_VARINT_BYTES: Final = 10
_DECIMAL_DIGITS: Final = 1_000
Walk = Callable[[bytes, int, int], int]
"""Of a message, a place in it and a depth: the place after the value. Raises ValueError."""


def check_schema(text: str, *, where: str) -> None:
    """Raise DefinitionError for a schema whose text is too large or too deep to be worked on.

    >>> check_schema('{"type":' * 100, where="topic t")
    Traceback (most recent call last):
    ...
    featurestore.errors.DefinitionError: topic t: its Avro schema is nested deeper than 64 levels
    """
    if len(text) > LARGEST_SCHEMA:
        raise DefinitionError(f"{where}: its Avro schema has {len(text)} characters, at most {LARGEST_SCHEMA}")
    depth = quoted = 0
    skip = False
    for each in text:
        if skip:
            skip = False
        elif each == "\\":
            skip = True
        elif each == '"':
            quoted ^= 1
        elif quoted:
            continue
        elif each in "[{":
            depth += 1
            if depth > DEEPEST:
                raise DefinitionError(f"{where}: its Avro schema is nested deeper than {DEEPEST} levels")
        elif each in "]}":
            depth -= 1


def guard(schema: Any, *, skips: bool) -> Callable[[bytes], None] | None:
    """A function that raises ValueError for messages that are not to be decoded; None where the schema needs none.

    `schema` is as fastavro parsed it. `skips`: fields of it are passed over, since the reader's schema lacks them.
    """
    named = {str(each["name"]): each for each in _types(schema) if "name" in each}
    for each in _types(schema):
        if each.get("logicalType") == "decimal" and int(each.get("precision", 0) or 0) > _DECIMAL_DIGITS:
            raise DefinitionError(f"a decimal of {each.get('precision')} digits, at most {_DECIMAL_DIGITS}")
    sizes = _Sizes(named)
    for name in named:
        sizes.of(name)
    if not skips and not _holds_itself(schema, named) and not _has_empty_items(schema, sizes):
        return None
    walk = _Walks(named, sizes).of(schema)

    def check(value: bytes) -> None:
        end = walk(value, 0, 0)
        if end != len(value):
            raise ValueError(f"{len(value) - end} bytes after the record")

    return check


def _types(schema: Any) -> Iterator[Mapping[str, Any]]:
    """Every type that a schema defines in place."""
    if isinstance(schema, list):
        for each in schema:
            yield from _types(each)
    elif isinstance(schema, dict):
        yield schema
        for part in ("type", "items", "values"):
            if isinstance(schema.get(part), (dict, list)):
                yield from _types(schema[part])
        for field in schema.get("fields", ()):
            yield from _types(field["type"])


def _holds_itself(schema: Any, named: Mapping[str, Any], within: tuple[str, ...] = ()) -> bool:
    if isinstance(schema, list):
        return any(_holds_itself(each, named, within) for each in schema)
    if isinstance(schema, str):
        return schema in within
    if "fields" in schema:
        inside = (*within, str(schema["name"]))
        return any(_holds_itself(field["type"], named, inside) for field in schema["fields"])
    return any(_holds_itself(schema[part], named, within) for part in ("type", "items", "values") if part in schema)


def _has_empty_items(schema: Any, sizes: "_Sizes") -> bool:
    return any(each.get("type") == "array" and sizes.of(each["items"])[0] == 0 for each in _types(schema))


class _Sizes:
    """By type: the least bytes of a value (0 or 1), and how many values within it take none."""

    def __init__(self, named: Mapping[str, Any]) -> None:
        self._named = named
        self._known: dict[str, tuple[int, int]] = {}

    def of(self, schema: Any) -> tuple[int, int]:
        if isinstance(schema, list):
            return 1, max((self.of(each)[1] for each in schema), default=0)
        if isinstance(schema, str):
            if schema in self._named:
                return self._of_named(schema)
            return (0, 1) if schema == "null" else (1, 0)
        kind = schema.get("type")
        if kind in ("record", "error", "enum", "fixed"):
            return self._of_named(str(schema["name"]))
        if kind in ("array", "map"):
            return 1, 0
        return self.of(kind)

    def _of_named(self, name: str) -> tuple[int, int]:
        if name not in self._known:
            # What holds itself is walked anyway; within itself it counts as taking a byte.
            self._known[name] = 1, 0
            self._known[name] = self._define(self._named[name])
            if self._known[name][1] > _MOST_FREE:
                raise DefinitionError(f"type {name} holds more than {_MOST_FREE} values that take no bytes")
        return self._known[name]

    def _define(self, schema: Mapping[str, Any]) -> tuple[int, int]:
        if schema["type"] == "fixed":
            return int(schema["size"] > 0), int(schema["size"] == 0)
        if schema["type"] == "enum":
            return 1, 0
        sizes = [self.of(field["type"]) for field in schema["fields"]]
        least = max((size for size, _ in sizes), default=0)
        return least, sum(free for _, free in sizes) + (least == 0)


class _Walks:
    """Makes the walk of each type once; a type that holds itself finds its own."""

    def __init__(self, named: Mapping[str, Any], sizes: _Sizes) -> None:
        self._named = named
        self._sizes = sizes
        self._made: dict[str, Walk] = {}

    def of(self, schema: Any) -> Walk:
        if isinstance(schema, list):
            return _union([self.of(each) for each in schema])
        if isinstance(schema, str):
            return self._by_name(schema)
        kind = schema.get("type")
        if kind in ("record", "error", "enum", "fixed"):
            return self._by_name(str(schema["name"]))
        if kind == "array":
            return _blocks(self.of(schema["items"]), bool(self._sizes.of(schema["items"])[0]))
        if kind == "map":
            value = self.of(schema["values"])
            return _blocks(lambda data, at, depth: value(data, _text(data, at, depth), depth), takes_bytes=True)
        return self.of(kind)

    def _by_name(self, name: str) -> Walk:
        if name in _FIXED:
            return _sized(_FIXED[name])
        if name in _NUMBERS:
            return _integer
        if name in ("string", "bytes"):
            return _text
        if name not in self._made:
            made: list[Walk] = []
            self._made[name] = lambda *at: made[0](*at)  # noqa: PLW0108 - it is made below
            made.append(self._define(self._named[name]))
        return self._made[name]

    def _define(self, schema: Mapping[str, Any]) -> Walk:
        if schema["type"] == "fixed":
            return _sized(int(schema["size"]))
        if schema["type"] == "enum":
            return _one_of(len(schema["symbols"]))
        return _record([self.of(field["type"]) for field in schema["fields"]])


def _record(fields: list[Walk]) -> Walk:
    def walk(data: bytes, at: int, depth: int) -> int:
        if depth >= DEEPEST:
            raise ValueError(f"nested deeper than {DEEPEST} levels")
        for field in fields:
            at = field(data, at, depth + 1)
        return at

    return walk


def _union(branches: list[Walk]) -> Walk:
    def walk(data: bytes, at: int, depth: int) -> int:
        number, at = _number(data, at)
        if not 0 <= number < len(branches):
            raise ValueError(f"branch {number} of a union of {len(branches)}")
        return branches[number](data, at, depth)

    return walk


def _one_of(count: int) -> Walk:
    def walk(data: bytes, at: int, _: int) -> int:
        number, at = _number(data, at)
        if not 0 <= number < count:
            raise ValueError(f"symbol {number} of an enum of {count}")
        return at

    return walk


def _sized(size: int) -> Walk:
    def walk(data: bytes, at: int, _: int) -> int:
        if at + size > len(data):
            raise ValueError(f"{size} bytes expected, {len(data) - at} are left")
        return at + size

    return walk


def _blocks(item: Walk, takes_bytes: bool) -> Walk:  # noqa: FBT001 - private
    def walk(data: bytes, at: int, depth: int) -> int:
        if depth >= DEEPEST:
            raise ValueError(f"nested deeper than {DEEPEST} levels")
        total = 0
        while True:
            count, at = _number(data, at)
            if not count:
                return at
            if count < 0:
                count = -count
                size, at = _number(data, at)
                if not 0 <= size <= len(data) - at:
                    raise ValueError(f"a block of {size} bytes, {len(data) - at} are left")
            total += count
            if (count > len(data) - at) if takes_bytes else (total > _MOST_EMPTY):
                raise ValueError(f"{total} items in {len(data) - at} bytes")
            for _ in range(count):
                at = item(data, at, depth + 1)

    return walk


def _text(data: bytes, at: int, _: int) -> int:
    size, at = _number(data, at)
    if not 0 <= size <= len(data) - at:
        raise ValueError(f"a text of {size} bytes, {len(data) - at} are left")
    return at + size


def _integer(data: bytes, at: int, _: int) -> int:
    return _number(data, at)[1]


def _number(data: bytes, at: int) -> tuple[int, int]:
    raw = shift = 0
    for place in range(at, min(at + _VARINT_BYTES, len(data))):
        byte = data[place]
        raw |= (byte & 0x7F) << shift
        if byte < 0x80:
            return (raw >> 1) ^ -(raw & 1), place + 1
        shift += 7
    raise ValueError("a number that does not end")


def _bounded_decimal(read: Callable[..., Any]) -> Callable[..., Any]:
    """A reader of decimals that refuses more bytes than the declared precision can need."""

    def bounded(data: Any, writer_schema: Any = None, reader_schema: Any = None) -> Any:
        digits = int((writer_schema or {}).get("precision") or _DECIMAL_DIGITS)
        most = digits * 10 // 24 + 16
        if len(data) > most:
            raise ValueError(f"a decimal of {digits} digits in {len(data)} bytes, at most {most}")
        return read(data, writer_schema, reader_schema)

    return bounded


def bound_decimals() -> None:
    """Let fastavro refuse decimals longer than their precision: turning bytes into digits takes the square of time."""
    for name in ("bytes-decimal", "fixed-decimal"):
        read = fastavro_read.LOGICAL_READERS[name]
        if not getattr(read, "bounded", False):
            made = _bounded_decimal(read)
            made.bounded = True  # type: ignore[attr-defined]  # a mark for the next call
            fastavro_read.LOGICAL_READERS[name] = made
