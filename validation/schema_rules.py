"""Derive expectations from what a contract's schema says: presence, types, formats, bounds, keys, items, properties.

Every field of a property either becomes an expectation or a remark that `lint` shows: none is passed over in silence.
"""

from collections.abc import Mapping
from typing import Any, Final

from validation.check import INSTANTS, UNTYPED
from validation.formats import PATTERNS
from validation.odcs import Place
from validation.quality import Stated
from validation.shape import judged_physical, logical_of, physical_type

LOGICAL_TYPES: Final = (
    *("string", "integer", "number", "boolean", "date", "timestamp", "time", "object", "array", "map", "vector"),
)
CONFORM: Final = "expect_column_values_to_conform_to_schema"
_BOUNDS: Final = ("minimum", "exclusiveMinimum", "maximum", "exclusiveMaximum")
_TIMES: Final = (*_BOUNDS, "format", "timezone", "defaultTimezone")
_NUMBERS: Final = (*_BOUNDS, "multipleOf", "format")
_ITEMS: Final = ("minItems", "maxItems", "uniqueItems")
_OPTIONS: Final[Mapping[str, tuple[str, ...]]] = {
    "string": ("minLength", "maxLength", "pattern", "format"),
    "integer": _NUMBERS,
    "number": _NUMBERS,
    "date": _TIMES,
    "timestamp": _TIMES,
    "time": _TIMES,
    "object": ("minProperties", "maxProperties", "required"),
    "map": ("minProperties", "maxProperties"),
    "array": _ITEMS,
    "vector": ("dimensions", "elementType", "distanceMetric", "embeddingModel", "embeddingModelVersion", "normalized"),
    "boolean": (),
}
"""Logical type -> the options that say something of its values."""
_COUNTS: Final = frozenset(
    ("minLength", "maxLength", "minItems", "maxItems", "minProperties", "maxProperties", "dimensions")
)
_WIDTHS: Final[Mapping[str, tuple[str, ...]]] = {
    "integer": ("i8", "i16", "i32", "i64", "i128", "u8", "u16", "u32", "u64", "u128"),
    "number": ("f32", "f64"),
}
_ELEMENTS: Final = ("bfloat16", "binary", "float16", "float32", "float64", "int8", "uint8")
_FREE_FORMATS: Final = frozenset({"password", "binary"})
"""Formats that any text has."""


def logical_type(item: Place) -> str:
    """A property's logical type; without one what its physical type stands for, else none."""
    if item.value.get("logicalType") is None:
        return logical_of(item.text("physicalType", ""))
    return item.choice("logicalType", LOGICAL_TYPES)


def stated_by_schema(item: Place, column: str, *, alone_key: bool = False) -> list[Stated]:
    """What the schema keys of a column promise; `alone_key`: the column is the whole primary key.

    Raises ContractError with the place of an option that cannot be read.
    """
    stated = []
    named = {"column": column}
    logical, options = logical_type(item), _options(item)
    if item.flag("required") or item.flag("primaryKey"):
        stated.append(Stated("expect_column_values_to_not_be_null", named, "completeness", "_required"))
    if shape := _type_of(item, logical, options):
        stated.append(Stated(CONFORM, {**named, "shape": shape}, "conformity", "_type"))
    if item.flag("unique") or alone_key:
        stated.append(Stated("expect_column_values_to_be_unique", named, "uniqueness", "_unique"))
    stated += _texts(named, logical, options)
    stated += _ranges(item, named, logical, options)
    if "multipleOf" in options and logical in {"integer", "number"}:
        inner = {"logicalType": logical, "logicalTypeOptions": {"multipleOf": options["multipleOf"]}}
        stated.append(Stated(CONFORM, {**named, "shape": inner}, "conformity", "_multiple"))
    if values := _enum(item):
        stated.append(_one_of(named, logical, values))
    if logical in {"array", "vector", "object", "map"}:
        whole = shape_of(item)
        whole.pop("required", None)
        whole.pop("enum", None)
        if set(whole) != {"logicalType"}:
            suffix = "_items" if logical in {"array", "vector"} else "_properties"
            stated.append(Stated(CONFORM, {**named, "shape": whole}, "conformity", suffix))
    return stated


def _type_of(item: Place, logical: str, options: Mapping[str, Any]) -> dict[str, Any]:
    """The shape of the column's type alone, with what its width or size says."""
    if logical == UNTYPED:
        return {}
    shape: dict[str, Any] = {"logicalType": logical}
    if options.get("format") in _WIDTHS.get(logical, ()) and options["format"] not in {"i64", "f64"}:
        shape["logicalTypeOptions"] = {"format": options["format"]}
    physical = item.text("physicalType", "")
    family, size, _ = physical_type(physical)
    telling = family in _WIDTHS["integer"] or family in {"integer", *INSTANTS} or size is not None
    if judged_physical(logical, physical) and telling:
        shape["physicalType"] = physical
    return shape


def _texts(named: Mapping[str, Any], logical: str, options: Mapping[str, Any]) -> list[Stated]:
    if logical not in {"string", UNTYPED}:
        return []
    stated = []
    for pattern, suffix in (
        (options.get("pattern"), "_pattern"),
        (PATTERNS.get(str(options.get("format", ""))), "_format"),
    ):
        if pattern is not None:
            matched = {**named, "regex": pattern}
            stated.append(Stated("expect_column_values_to_match_regex", matched, "conformity", suffix))
    lengths = {"min_value": options.get("minLength"), "max_value": options.get("maxLength")}
    if lengths != {"min_value": None, "max_value": None}:
        arguments = {**named, **lengths}
        stated.append(Stated("expect_column_value_lengths_to_be_between", arguments, "conformity", "_length"))
    return stated


def _ranges(item: Place, named: Mapping[str, Any], logical: str, options: Mapping[str, Any]) -> list[Stated]:
    bounds: dict[str, Any] = {}
    for key, name, strict in (
        ("minimum", "min_value", None),
        ("exclusiveMinimum", "min_value", "strict_min"),
        ("maximum", "max_value", None),
        ("exclusiveMaximum", "max_value", "strict_max"),
    ):
        if key in options and logical in {"integer", "number", "date", "timestamp", "time", UNTYPED}:
            if name in bounds:
                raise item.child("logicalTypeOptions").error(f"{key} repeats a bound; give one of the two")
            bounds[name] = options[key]
            if strict is not None:
                bounds[strict] = True
    if not bounds:
        return []
    if logical == "time":
        given = {key: options[key] for key in _BOUNDS if key in options}
        shape = {"logicalType": "time", "logicalTypeOptions": given}
        return [Stated(CONFORM, {**named, "shape": shape}, "conformity", "_range")]
    return [Stated("expect_column_values_to_be_between", {**named, **bounds}, "conformity", "_range")]


def _one_of(named: Mapping[str, Any], logical: str, values: list[Any]) -> Stated:
    if logical in {"time", "array", "object", "map", "vector"}:
        shape = {"logicalType": logical, "enum": values}
        return Stated(CONFORM, {**named, "shape": shape}, "conformity", "_enum")
    return Stated("expect_column_values_to_be_in_set", {**named, "value_set": values}, "conformity", "_enum")


def _enum(item: Place) -> list[Any]:
    members = item.items("enum")
    for member in members:
        if "value" not in member.value:
            raise member.error("found no value; each member of an enum has one")
    return [member.value["value"] for member in members]


def _options(item: Place) -> dict[str, Any]:
    """The options, checked where an expectation does not check them itself."""
    found = item.mapping("logicalTypeOptions")
    place, logical = item.child("logicalTypeOptions"), logical_type(item)
    for name, value in found.items():
        whole = isinstance(value, int) and not isinstance(value, bool)
        if name in _COUNTS and not (whole and value >= (name == "dimensions")):
            raise place.child(name).error(f"found {value!r}; expected a whole number, 0 or more")
        if name == "multipleOf" and not (isinstance(value, int | float) and not isinstance(value, bool) and value > 0):
            raise place.child(name).error(f"found {value!r}; expected a number above 0")
        if name in {"uniqueItems", "timezone", "normalized"} and not isinstance(value, bool):
            raise place.child(name).error(f"found {value!r}; allowed: true, false")
        if name == "elementType":
            place.choice(name, _ELEMENTS)
        if name == "required":
            texts = isinstance(value, list) and all(isinstance(one, str) for one in value)
            if not texts:
                raise place.child(name).error(f"found {value!r}; expected a list of property names")
        if name == "format" and logical in _WIDTHS:
            place.choice(name, _WIDTHS[logical])
    for low, high in (("minItems", "maxItems"), ("minProperties", "maxProperties")):
        if low in found and high in found and found[low] > found[high]:
            raise place.child(low).error(f"found {low} {found[low]} above {high} {found[high]}")
    return found


def shape_of(item: Place) -> dict[str, Any]:
    """The whole shape of a property, nested ones included, as `validation.shape` reads it."""
    logical, options = logical_type(item), _options(item)
    shape: dict[str, Any] = {"logicalType": logical} if logical else {}
    kept = {name: value for name, value in options.items() if name in _OPTIONS.get(logical, ())}
    if logical in INSTANTS or logical == "time":
        kept = {name: value for name, value in kept.items() if name in _BOUNDS}
    if kept:
        shape["logicalTypeOptions"] = kept
    physical = item.text("physicalType", "")
    if logical and judged_physical(logical, physical):
        shape["physicalType"] = physical
    if item.flag("required"):
        shape["required"] = True
    if values := _enum(item):
        shape["enum"] = values
    if properties := item.items("properties"):
        shape["properties"] = [{"name": inner.text("name"), **shape_of(inner)} for inner in properties]
    if isinstance(item.child("items").value, dict):
        shape["items"] = shape_of(item.child("items"))
    elif item.child("items").value is not None:
        raise item.child("items").error("found no mapping; expected the property that each item is")
    if pair := item.mapping("map"):
        lacking = [name for name in ("key", "value") if not isinstance(pair.get(name), dict)]
        if lacking:
            raise item.child("map").error(f"found no {lacking[0]}; a map has a key and a value")
        shape["map"] = {name: shape_of(item.child("map").child(name)) for name in ("key", "value")}
    return shape


def not_judged(item: Place, path: str, *, nested: bool = False) -> list[str]:
    """What of a property nothing judges, a sentence each, with its path in the schema."""
    logical, found = logical_type(item), []
    options, physical = item.mapping("logicalTypeOptions"), item.text("physicalType", "")
    if logical == UNTYPED:
        found.append("has no logicalType, and none follows from its physicalType: its type is not judged")
    if physical and not judged_physical(logical, physical):
        why = f"contradicts logicalType {logical}" if physical_type(physical)[0] else "is of no kind known here"
        found.append(f"physicalType {physical!r} {why}: it is not judged")
    for name, value in options.items():
        if logical and name not in _OPTIONS[logical]:
            found.append(f"option {name} says nothing of a {logical}: it is not judged")
        elif name == "format" and logical not in _WIDTHS:
            if logical not in {"string", UNTYPED}:
                found.append(f"format {value!r} is not judged: values are read as ISO 8601")
            elif value not in PATTERNS and value not in _FREE_FORMATS:
                known = ", ".join(sorted({*PATTERNS, *_FREE_FORMATS}))
                found.append(f"format {value!r} is not judged; judged are {known}")
        elif name in {"timezone", "normalized"}:
            found.append(f"option {name} is not judged")
    if nested:
        found += [
            f"{key} of a nested property is not judged"
            for key in ("quality", "unique", "primaryKey", "relationships")
            if item.value.get(key)
        ]
    told = [f"column {path!r}: {line}" for line in found]
    inner = [(f"{path}.{one.text('name')}", one) for one in item.items("properties")]
    if isinstance(item.child("items").value, dict):
        inner.append((f"{path}[]", item.child("items")))
    if item.mapping("map"):
        inner += [(f"{path}.{name}", item.child("map").child(name)) for name in ("key", "value")]
    return [*told, *(line for name, one in inner for line in not_judged(one, name, nested=True))]
