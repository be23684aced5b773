"""How does a nested value (map, struct, list of lists) become bytes, exactly? As MessagePack with named extensions.

Equal values have equal bytes: keys are sorted, sets too, there is one NaN and no -0.0. What MessagePack lacks
(sets, UUIDs, decimals, instants with their zone, maps whose keys are no strings) is an extension of ours.
"""

import uuid
from collections.abc import Callable
from datetime import UTC, datetime, timedelta, timezone, tzinfo
from decimal import Decimal
from typing import Any
from zoneinfo import ZoneInfo

import msgspec

from featurestore.errors import UsageError

_SET, _UUID, _DECIMAL, _INSTANT, _PAIRS = range(1, 6)
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_NAN = float("nan")


def pack(value: object) -> bytes:
    """The canonical bytes of a nested value; raises UsageError for a type that has none.

    >>> pack({"b": -0.0, "a": [1, None]}) == pack({"a": [1, None], "b": 0.0})
    True
    """
    try:
        return msgspec.msgpack.encode(_node(value))
    except (OverflowError, UnicodeEncodeError) as error:
        raise UsageError(f"a nested value cannot be stored: {error}") from error


def unpack(data: bytes) -> Any:
    """The value that `pack` was given.

    >>> sorted(unpack(pack({"a": {1, 2}}))["a"])
    [1, 2]
    """
    return msgspec.msgpack.decode(data, ext_hook=_extension)


def _node(value: Any) -> Any:
    if value is None or isinstance(value, (bool, int, str, bytes)):
        return value
    if isinstance(value, float):
        return _NAN if value != value else value + 0.0
    for kind, convert in _CONVERTERS:
        if isinstance(value, kind):
            return convert(value)
    if callable(getattr(value, "tolist", None)):
        return _node(value.tolist())
    raise UsageError(f"a nested value of type {type(value).__name__} cannot be stored")


def _mapping(value: dict[Any, Any]) -> Any:
    if all(isinstance(key, str) for key in value):
        return {key: _node(value[key]) for key in sorted(value)}
    pairs = sorted((pack(key), _node(item)) for key, item in value.items())
    return _ext(_PAIRS, [list(pair) for pair in pairs])


def _set(value: Any) -> Any:
    return _ext(_SET, sorted(pack(item) for item in value))


def _instant(value: datetime) -> Any:
    zone = value.tzinfo or UTC
    name = "UTC" if zone is UTC else getattr(zone, "key", None) or _offset_name(value)
    return _ext(_INSTANT, [(value.replace(tzinfo=zone) - _EPOCH) // timedelta(microseconds=1), name])


def _offset_name(value: datetime) -> str:
    offset = value.utcoffset() or timedelta(0)
    return str(offset // timedelta(seconds=1))


def _zone(name: str) -> tzinfo:
    if name == "UTC":
        return UTC
    return timezone(timedelta(seconds=int(name))) if name.lstrip("-").isdigit() else ZoneInfo(name)


def _ext(code: int, content: Any) -> msgspec.msgpack.Ext:
    return msgspec.msgpack.Ext(code, msgspec.msgpack.encode(content))


_CONVERTERS: tuple[tuple[type | tuple[type, ...], Callable[[Any], Any]], ...] = (
    (dict, _mapping),
    ((set, frozenset), _set),
    ((list, tuple), lambda value: [_node(item) for item in value]),
    (datetime, _instant),
    (uuid.UUID, lambda value: msgspec.msgpack.Ext(_UUID, value.bytes)),
    (Decimal, lambda value: _ext(_DECIMAL, str(value))),
)


def _extension(code: int, data: memoryview) -> Any:
    if code == _UUID:
        return uuid.UUID(bytes=bytes(data))
    content = msgspec.msgpack.decode(data, ext_hook=_extension)
    if code == _SET:
        return {unpack(item) for item in content}
    if code == _DECIMAL:
        return Decimal(content)
    if code == _INSTANT:
        return (_EPOCH + timedelta(microseconds=content[0])).astimezone(_zone(content[1]))
    return {unpack(key): item for key, item in content}
