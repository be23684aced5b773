"""What does the function of a Feast stream view take and make?

A function in mode `python` takes a dict of lists and returns one; in mode `pandas` a frame for a frame; rows for rows.
It is given every column that the topic declares. What it makes is said by the view:

    transform.columns: "fare_eur double, far boolean"      tag of a windowed view: the columns that it aggregates
    the view's schema                                      of a view without aggregations

Without the tag the function of a windowed view makes the aggregated columns that the topic declares, in their place.
"""

from collections.abc import Sequence
from typing import Any, Final, Literal, cast

from featurestore.ddl import ddl_columns
from featurestore.errors import DefinitionError
from featurestore.function_source import extract_source
from featurestore.plan import Field, Transform
from featurestore.plugins.definitions import feature_fields, is_windowed

TAG: Final = "transform.columns"
_NO_OUTPUT: Final = ("DATE", "DECIMAL")


def transform_of(view: Any, declared: Sequence[Field], untouched: Sequence[str]) -> Transform | None:
    """The view's function; None without one. `untouched` are its keys and timestamps, which no function may make.

    Raises DefinitionError for another mode, for a topic that declares no columns, and for what no function can make.
    """
    udf = getattr(view, "udf", None)
    if udf is None:
        return None
    mode = str(getattr(view.mode, "value", view.mode))
    if mode not in ("python", "pandas"):
        raise DefinitionError(f"stream view {view.name!r}: mode {mode!r}; its function can run as 'python' or 'pandas'")
    if not declared:
        raise DefinitionError(
            f"stream view {view.name!r} has a function, and its topic declares no columns to give it; "
            "list them in the message format's schema"
        )
    outputs = _outputs(view, declared)
    for field in outputs:
        if field.name in untouched or field.dtype.startswith(_NO_OUTPUT):
            what = "is a key or a timestamp" if field.name in untouched else f"is {field.dtype}"
            raise DefinitionError(
                f"stream view {view.name!r}: no function can make column {field.name!r}, which {what}"
            )
    return Transform(
        function=extract_source(udf),
        mode=cast('Literal["python", "pandas"]', mode),
        inputs=tuple(declared),
        outputs=outputs,
    )


def _outputs(view: Any, declared: Sequence[Field]) -> tuple[Field, ...]:
    if not is_windowed(view):
        return tuple(Field(name=field.name, dtype=field.dtype.to_value_type().name) for field in feature_fields(view))
    text = (view.tags or {}).get(TAG)
    if text is not None:
        return ddl_columns(text, where=f"{view.name}, tag {TAG}")
    aggregated = {each.column for each in view.aggregations}
    return tuple(field for field in declared if field.name in aggregated)
