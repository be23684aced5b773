"""Which columns does a topic's JSON schema declare?"""

import re
from typing import Final

from featurestore.errors import DefinitionError
from featurestore.plan import Field

DDL_TYPES: Final = {
    "string": "STRING",
    "varchar": "STRING",
    "binary": "BYTES",
    "bytes": "BYTES",
    "boolean": "BOOL",
    "bool": "BOOL",
    "int": "INT32",
    "integer": "INT32",
    "bigint": "INT64",
    "long": "INT64",
    "float": "FLOAT",
    "double": "DOUBLE",
    "timestamp": "UNIX_TIMESTAMP",
    "date": "DATE",
}
_DECIMAL: Final = re.compile(r"(?:decimal|numeric)\s*\(\s*(\d+)\s*(?:,\s*(\d+)\s*)?\)")
_LARGEST: Final = 38
_PARTS: Final = re.compile(r"[,\n](?![^()\n]*\))")
"""Between columns, but not between a decimal's digits."""


def ddl_columns(text: str, *, where: str) -> tuple[Field, ...]:
    """The columns of a JSON format's schema, a list of `name type` as Feast's documentation has it.

    >>> [(c.name, c.dtype) for c in ddl_columns("origin string, late bigint", where="departures")]
    [('origin', 'STRING'), ('late', 'INT64')]
    >>> [c.dtype for c in ddl_columns("price decimal(10, 2), day date", where="sales")]
    ['DECIMAL(10,2)', 'DATE']
    """
    columns = []
    for part in filter(None, (part.strip() for part in _PARTS.split(text))):
        name, _, kind = part.partition(" ")
        dtype = _type_of(kind.strip().lower())
        if dtype is None:
            raise DefinitionError(
                f"source {where!r}: column {name!r} has type {kind.strip()!r}; known types: {', '.join(DDL_TYPES)}, "
                f"decimal(digits, digits behind the point) of up to {_LARGEST} digits"
            )
        columns.append(Field(name=name.strip("`"), dtype=dtype))
    return tuple(columns)


def _type_of(kind: str) -> str | None:
    if found := _DECIMAL.fullmatch(kind):
        precision, scale = int(found[1]), int(found[2] or 0)
        return f"DECIMAL({precision},{scale})" if 1 <= precision <= _LARGEST and scale <= precision else None
    return DDL_TYPES.get(kind)
