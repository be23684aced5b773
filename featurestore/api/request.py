"""What does a caller ask for? The body of a request, decoded and held to its limits."""

import base64
import binascii
from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from typing import Any

import msgspec

from featurestore.api.body import decoded
from featurestore.api.faults import Refused
from featurestore.api.limits import Limits
from featurestore.api.selection import Selection
from featurestore.coercion import coerce
from featurestore.errors import UsageError
from featurestore.online.keys import may_be_rounded
from featurestore.online.types import FLOAT_INTEGERS
from featurestore.plan import TimeUnit
from validation.instant import EARLIEST_US, LATEST_US, number_us, text_us

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_NON_FINITE = {"NaN": float("nan"), "Infinity": float("inf"), "-Infinity": float("-inf")}


class FeatureRequest(msgspec.Struct, frozen=True):
    """The body of /get-online-features, as Feast's clients send it; fields that it does not know are ignored."""

    entities: dict[str, list[Any]]
    features: list[str] = []
    feature_service: str | None = None
    full_feature_names: bool = False
    as_of: str | int | None = None
    """The instant to answer for: RFC 3339 text, or microseconds since the epoch. Exact, or refused."""


class Asked(msgspec.Struct, frozen=True, gc=False):
    """A FeatureRequest whose features are left as they came: the text of those asked for before says all."""

    entities: dict[str, list[Any]]
    features: msgspec.Raw = msgspec.Raw(b"[]")
    feature_service: str | None = None
    full_feature_names: bool = False
    as_of: str | int | None = None


_decoder = msgspec.json.Decoder(Asked)


def decode_request(body: bytes) -> Asked:
    """The request in a body, its features undecoded; raises Refused (400) where it is not JSON of that shape.

    >>> bytes(decode_request(b'{"features": ["weather:temp_f"], "entities": {"origin": ["EWR"]}}').features)
    b'["weather:temp_f"]'
    """
    try:
        return _decoder.decode(body)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        # Told by the one decoder whose message names the place.
        decoded(body, FeatureRequest)
        raise


def instant_of(as_of: str | int | None) -> int | None:
    """The `as_of` of a request in microseconds; a time without a zone is UTC.

    >>> instant_of("2013-01-01T00:26:40Z")
    1357000000000000
    """
    if as_of is None or isinstance(as_of, int):
        if as_of is not None and not 0 <= as_of < 1 << 62:
            raise UsageError("as_of: expected microseconds since the epoch")
        return as_of
    try:
        found = text_us(as_of)
    except (ValueError, OverflowError):
        raise UsageError("as_of: expected RFC 3339 text or microseconds since the epoch") from None
    if not EARLIEST_US <= found <= LATEST_US:
        raise UsageError("as_of: expected an instant within the years 1 to 9999")
    return found


def entity_columns(
    entities: Mapping[str, list[Any]], selection: Selection, limits: Limits
) -> tuple[int, dict[str, list[Any]], dict[str, list[Any]]]:
    """How many rows are asked for, their join key columns and their request columns, each typed as declared.

    Columns that nothing needs are ignored, as Feast does, but must be as long as the others. Raises UsageError, and
    Refused (422) beyond a limit.
    """
    lengths = {len(values) for values in entities.values()}
    if len(lengths) > 1:
        told = ", ".join(f"{name} has {len(values)}" for name, values in sorted(entities.items())[:10])
        raise UsageError(f"the columns of `entities` differ in length: {told}")
    # Views without entities have one row, which no column can say.
    rows = lengths.pop() if lengths else int(not selection.join_keys and not selection.request)
    if rows == 0:
        raise UsageError("`entities` holds no rows; give each join key column at least one value")
    within(rows, len(selection.outputs), limits)
    keys, request = {}, {}
    for name, dtype in selection.join_keys.items():
        keys[name] = typed_keys(name, _column(entities, name, selection), dtype, limits)
    for name, dtype in selection.request.items():
        try:
            request[name] = coerce([from_json(v, dtype) for v in _column(entities, name, selection)], dtype)
        except UsageError as error:
            raise UsageError(f"request column {name!r}: {error}") from error
    return rows, keys, request


def within(rows: int, features: int, limits: Limits) -> None:
    """Raises Refused (422) where a request asks for more than one may."""
    for what, found, most in (
        ("entities", rows, limits.entities),
        ("features", features, limits.features),
        ("values (entities times features)", rows * features, limits.values),
    ):
        if found > most:
            raise Refused(422, "too_large", f"{found} {what} asked for at once; at most {most}: ask in parts")


def _column(entities: Mapping[str, list[Any]], name: str, selection: Selection) -> list[Any]:
    try:
        return entities[name]
    except KeyError:
        needed = ", ".join([*selection.join_keys, *selection.request])
        found = ", ".join(list(entities)[:20])
        raise UsageError(f"`entities` lacks the column {name!r}; needed: {needed}; found: {found}") from None


def typed_keys(name: str, values: list[Any], dtype: str, limits: Limits) -> list[Any]:
    """A join key column as its entity's type; raises UsageError, and Refused (422) for a value that is too long."""
    plain = str if dtype == "STRING" else int if dtype in ("INT32", "INT64", "UNIX_TIMESTAMP") else None
    if plain is int and set(map(type, values)) == {int}:
        return values
    made: list[Any] = [value if type(value) is plain or value is None else _key(name, value, dtype) for value in values]
    if plain is not int and any(len(value) > limits.text_chars for value in made if value):
        raise Refused(422, "too_large", f"join key {name!r}: a value longer than {limits.text_chars} characters")
    return made


def _key(name: str, value: object, dtype: str) -> object:
    """A join key value as the entity's type, where nothing is lost: 5, 5.0 and "5" are one INT64 key."""
    if dtype == "STRING" and isinstance(value, int) and not isinstance(value, bool):
        return str(value)
    if dtype == "BYTES" and isinstance(value, str):
        return _decoded(value, dtype)
    if dtype in ("INT32", "INT64", "UNIX_TIMESTAMP"):
        if isinstance(value, float) and value.is_integer():
            if abs(value) < FLOAT_INTEGERS[64]:
                return int(value)
            raise UsageError(f"join key {name!r} is declared {dtype}: {may_be_rounded(64)}")
        if isinstance(value, str) and len(value) < 21 and value.removeprefix("-").isdecimal() and value.isascii():
            number = int(value)
            if str(number) == value:
                return number
    raise UsageError(
        f"join key {name!r} is declared {dtype}; a JSON {_json_type(value)} cannot become one without loss"
    )


def from_json(value: Any, dtype: str, unit: TimeUnit = "") -> Any:
    """What JSON has no value for: bytes come as base64, instants as ISO 8601 text or numbers, NaN as a word.

    `unit` is the declared one of numbers that are instants; empty goes by magnitude.
    """
    if unit and dtype == "UNIX_TIMESTAMP" and type(value) in (int, float):
        try:
            return _EPOCH + timedelta(microseconds=number_us(value, unit))
        except (OverflowError, ValueError):
            raise UsageError(f"declared {dtype}, found a number of {unit} beyond the year 9999") from None
    if isinstance(value, str):
        if dtype in ("FLOAT", "DOUBLE"):
            return _NON_FINITE.get(value, value)
        if dtype == "BYTES":
            return _decoded(value, dtype)
        if dtype == "UNIX_TIMESTAMP":
            try:
                return _EPOCH + timedelta(microseconds=text_us(value))
            except (ValueError, OverflowError):
                return value
    if isinstance(value, list):
        for collection in ("_LIST", "_SET"):
            if dtype.endswith(collection):
                return [from_json(each, dtype.removesuffix(collection), unit) for each in value]
    return value


def _decoded(value: str, dtype: str) -> bytes:
    try:
        return base64.b64decode(value, validate=True)
    except (binascii.Error, ValueError):
        raise UsageError(f"declared {dtype}, which JSON carries as base64; this text is not") from None


def _json_type(value: object) -> str:
    return {bool: "boolean", str: "text", list: "array", dict: "object", int: "integer", float: "number"}.get(
        type(value), "null"
    )
