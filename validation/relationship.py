"""Foreign keys of a contract: each row's key is that of a row in another file.

A relationship names columns of another schema object (`customers.id`, or `schema/customers/properties/id`). It is
judged on a file beside which that object's file lies, by its name: `customers.parquet`, `.csv`, `.jsonl` or `.ndjson`.
"""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

import msgspec
import pyarrow as pa

from validation.mixed import values_of
from validation.odcs import Place

ENDINGS: Final = (".parquet", ".csv", ".jsonl", ".ndjson")


class Relationship(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Columns whose values are those of another object's columns, in the same order."""

    id: str
    columns: tuple[str, ...]
    other: str
    """The other object's name; empty where the reference names another contract's file."""
    other_columns: tuple[str, ...]

    def describe(self) -> str:
        """The relationship in words.

        >>> Relationship(id="r", columns=("a",), other="b", other_columns=("c",)).describe()
        'a -> b.c'
        """
        return f"{', '.join(self.columns)} -> {', '.join(f'{self.other}.{name}' for name in self.other_columns)}"


def relationships(schema: Place, source: str, columns: Sequence[str]) -> tuple[Relationship, ...]:
    """The relationships of a schema object and its properties; raises ContractError with the place."""
    found: list[Relationship] = []
    for item in schema.items("relationships"):
        _checked(item)
        own = [_reference(item.child("from"), text) for text in _listed(item, "from")]
        names = tuple(name for _, name in own)
        found.append(_relationship(item, names, f"{source}_reference_{len(found)}"))
    for prop in schema.items("properties"):
        name = prop.text("name")
        for number, item in enumerate(prop.items("relationships")):
            _checked(item)
            if "from" in item.value:
                raise item.child("from").error("a property's relationship starts at the property; leave from out")
            suffix = f"_{number}" if number else ""
            found.append(_relationship(item, (name,), f"{name}_reference{suffix}"))
    for one in found:
        if absent := [name for name in one.columns if name not in columns]:
            raise schema.child("relationships").error(
                f"relationship {one.id!r} starts at column {absent[0]!r}, which the contract does not promise"
            )
    return tuple(found)


def _checked(item: Place) -> None:
    item.choice("type", ("foreignKey",), "foreignKey")


def _relationship(item: Place, columns: tuple[str, ...], fallback: str) -> Relationship:
    others = [_reference(item.child("to"), text) for text in _listed(item, "to")]
    if len(others) != len(columns):
        raise item.child("to").error(f"found {len(others)} columns for {len(columns)}; expected as many")
    if len({table for table, _ in others}) > 1:
        raise item.child("to").error("found columns of several objects; expected columns of one")
    return Relationship(
        id=item.text("id", fallback),
        columns=columns,
        other=others[0][0],
        other_columns=tuple(name for _, name in others),
    )


def _listed(item: Place, key: str) -> list[str]:
    place = item.child(key)
    found = [place.value] if isinstance(place.value, str) else place.value
    if not isinstance(found, list) or not found or not all(isinstance(one, str) for one in found):
        raise place.error(f"found {place.value!r}; expected a reference such as customers.id, or a list of them")
    return found


def _reference(place: Place, text: str) -> tuple[str, str]:
    """Object and column of a reference; the object is empty where the reference leads to another file."""
    file, marked, path = text.rpartition("#")
    parts = [part for part in path.split("/") if part]
    if len(parts) > 1:
        names = parts[1::2]
        if len(names) < 2:
            raise place.error(f"found {text!r}; expected a reference to a column, as in schema/customers/properties/id")
        return ("" if marked and file else names[0]), ".".join(names[1:])
    table, dot, column = path.partition(".")
    if not dot:
        raise place.error(f"found {text!r}; expected a reference to a column, as in customers.id")
    return table, column


def file_of(relationship: Relationship, beside: Path) -> Path | None:
    """The other object's file beside a file; None where none is at hand."""
    if not relationship.other:
        return None
    for ending in ENDINGS:
        if (found := beside.with_name(relationship.other + ending)).is_file():
            return found
    return None


def without_match(relationship: Relationship, table: pa.Table, other: pa.Table) -> tuple[list[int], int]:
    """The numbers of the rows whose key the other table lacks, and how many rows have a key.

    A row of which a part of the key is missing has none.

    >>> key = Relationship(id="r", columns=("a",), other="b", other_columns=("c",))
    >>> without_match(key, pa.table({"a": [1, 2, None]}), pa.table({"c": [1, 3]}))
    ([1], 2)
    """
    known = set(_keys(other, relationship.other_columns))
    rows = _keys(table, relationship.columns)
    given = [(number, key) for number, key in enumerate(rows) if key is not None]
    return [number for number, key in given if key not in known], len(given)


def _keys(table: pa.Table, columns: Sequence[str]) -> list[str | None]:
    lists = [values_of(table.column(name)) for name in columns]
    return [
        None if any(value is None or value != value for value in row) else _key(row) for row in zip(*lists, strict=True)
    ]


def _key(row: Sequence[Any]) -> str:
    """A text for each key: integers and the floats that equal them are one key, text and numbers are two."""
    plain: list[Any] = [int(value) if isinstance(value, float) and value.is_integer() else value for value in row]
    return json.dumps(plain, default=str)
