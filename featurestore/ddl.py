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
}


def ddl_columns(text: str, *, where: str) -> tuple[Field, ...]:
    """The columns of a JSON format's schema, a list of `name type` as Feast's documentation has it.

    >>> [(c.name, c.dtype) for c in ddl_columns("origin string, late bigint", where="departures")]
    [('origin', 'STRING'), ('late', 'INT64')]
    """
    columns = []
    for part in filter(None, (part.strip() for part in re.split(r"[,\n]", text))):
        name, _, kind = part.partition(" ")
        dtype = DDL_TYPES.get(kind.strip().lower())
        if dtype is None:
            raise DefinitionError(
                f"source {where!r}: column {name!r} has type {kind.strip()!r}; known types: {', '.join(DDL_TYPES)}"
            )
        columns.append(Field(name=name.strip("`"), dtype=dtype))
    return tuple(columns)
