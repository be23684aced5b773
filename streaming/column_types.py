"""As what is a column of an event read from a message, and as what does Arrow hold it?"""

import datetime as dt
import decimal
from collections.abc import Mapping
from typing import Annotated, Any, Final

import msgspec
import pyarrow as pa

from featurestore.aggregation.values import decimal_of
from featurestore.errors import DefinitionError
from featurestore.plan import Field
from validation.errors import did_you_mean
from validation.instant import EARLIEST_US, LATEST_US

INT64 = Annotated[int, msgspec.Meta(ge=-(2**63), le=2**63 - 1)]
_INSTANT = Annotated[int, msgspec.Meta(ge=EARLIEST_US, le=LATEST_US)]
_INT32 = Annotated[int, msgspec.Meta(ge=-(2**31), le=2**31 - 1)]
_SCALARS: Final[Mapping[str, tuple[Any, pa.DataType]]] = {
    "INT32": (_INT32, pa.int32()),
    "INT64": (INT64, pa.int64()),
    "FLOAT": (float, pa.float32()),
    "DOUBLE": (float, pa.float64()),
    "STRING": (str, pa.string()),
    "BOOL": (bool, pa.bool_()),
    "BYTES": (bytes, pa.binary()),
    "UNIX_TIMESTAMP": (dt.datetime | _INSTANT, pa.timestamp("us", "UTC")),
    "DATE": (dt.date, pa.date32()),
}
_TYPES: Final[Mapping[str, tuple[Any, pa.DataType]]] = {
    **_SCALARS,
    **{
        f"{name}_LIST": (list[kind | None], pa.list_(arrow))  # type: ignore[valid-type]  # read by msgspec alone
        for name, (kind, arrow) in _SCALARS.items()
        if name not in ("UNIX_TIMESTAMP", "DATE")
    },
}


def type_of(field: Field) -> tuple[Any, pa.DataType]:
    """What the decoder reads and what Arrow holds. Raises DefinitionError for what messages cannot carry."""
    if (digits := decimal_of(field.dtype)) is not None:
        return decimal.Decimal, pa.decimal128(*digits)
    if field.dtype not in _TYPES:
        raise DefinitionError(
            f"event column {field.name!r} is declared {field.dtype}, which messages cannot carry; "
            + did_you_mean(field.dtype, _TYPES)
        )
    return _TYPES[field.dtype]


def arrow_type(dtype: str) -> pa.DataType:
    """The type of an event column that is declared with a Feast type.

    >>> arrow_type("INT64")
    DataType(int64)
    """
    return type_of(Field(name="", dtype=dtype))[1]


def is_instant(micros: int) -> bool:
    """Whether an arrival or event time can be an instant at all.

    >>> is_instant(0), is_instant(2**63 - 1)
    (True, False)
    """
    return EARLIEST_US <= micros <= LATEST_US
