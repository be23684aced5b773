"""In which Arrow type does a feature leave the joins?

In its declared type, where this has one Arrow form: then the offline value is the value that is stored and served
(one NaN, no -0.0, 32 bits where FLOAT is declared). Maps, structs, nested lists, decimals and the like keep the type
that the source gives them.
"""

import pyarrow as pa
import pyarrow.compute as pc

from featurestore.errors import SourceError, UsageError
from featurestore.online.types import FIXED, arrow_type, item_of, to_column

_ONE_FORM = {*FIXED, "STRING", "BYTES"}


def declared_type(dtype: str, source: pa.DataType) -> pa.DataType:
    """The Arrow type of a feature declared `dtype` (a Feast value type's name) over a column of type `source`.

    >>> declared_type("INT64", pa.int32()), declared_type("MAP", pa.map_(pa.string(), pa.string()))
    (DataType(int64), MapType(map<string, string>))
    """
    item = item_of(dtype)
    if dtype in _ONE_FORM or (item in _ONE_FORM and dtype.endswith("_LIST")):
        return arrow_type(dtype)
    return source.value_type if pa.types.is_dictionary(source) else source


def as_declared(column: pa.ChunkedArray, dtype: str, target: pa.DataType, *, place: str) -> pa.ChunkedArray:
    """The column in the type that `declared_type` gave; raises SourceError where a value would lose something.

    >>> as_declared(pa.chunked_array([[1.0, None]]), "INT64", pa.int64(), place="here").to_pylist()
    [1, None]
    """
    own = dtype not in _ONE_FORM and item_of(dtype) not in _ONE_FORM
    try:
        if own:
            return column.cast(target)
        chunks = [to_column(chunk, dtype, name=place) for chunk in whole_or_null(column, dtype).chunks]
        return pa.chunked_array(chunks, target)
    except (UsageError, pa.ArrowInvalid, pa.ArrowNotImplementedError) as error:
        raise SourceError(f"{place} is declared {dtype}, its source holds {column.type}: {error}") from error


def whole_or_null(column: pa.ChunkedArray, dtype: str) -> pa.ChunkedArray:
    """The column; where whole numbers are declared, the NaN by which pandas says NULL is NULL.

    >>> whole_or_null(pa.chunked_array([[1.0, float("nan")]]), "INT64").to_pylist()
    [1.0, None]
    """
    if dtype in {"INT32", "INT64"} and pa.types.is_floating(column.type):
        return pc.if_else(pc.is_nan(column), pa.scalar(None, column.type), column)
    return column
