"""Does plain Feast say which windowed features a view has?"""

from datetime import timedelta
from types import SimpleNamespace
from typing import Any

import pytest

from featurestore.errors import DefinitionError
from featurestore.plugins.definitions import is_windowed, resolve_aggregations

MINUTE_US, HOUR_US, DAY_US = 60_000_000, 3_600_000_000, 86_400_000_000


def view_of(fields: dict[str, str], *aggregations: Any, tags: dict[str, str] | None = None) -> Any:
    features = [
        SimpleNamespace(name=name, dtype=SimpleNamespace(to_value_type=lambda d=dtype: SimpleNamespace(name=d)))
        for name, dtype in fields.items()
    ]
    return SimpleNamespace(name="taps", features=features, aggregations=list(aggregations), tags=tags or {})


def over(hours: float | None, **rest: Any) -> Any:
    from feast.aggregation import Aggregation

    window = None if hours is None else timedelta(hours=hours)
    return Aggregation(**({"column": "fare", "function": "sum", "time_window": window} | rest))


TYPES = {"fare": "DOUBLE", "city": "STRING"}


def test_the_schema_field_of_an_aggregations_name_is_its_feature() -> None:
    """By explicit name, by function_column_seconds, or by function_column; in the order of the schema."""
    view = view_of(
        {"mine": "DOUBLE", "sum_fare_3600s": "DOUBLE", "mean_fare": "DOUBLE"},
        over(1),
        over(None, function="mean"),
        over(24, name="mine"),
    )
    found = resolve_aggregations(view, TYPES)
    assert [(a.feature, a.function, a.window_us, a.hop_us) for a in found] == [
        ("mine", "sum", DAY_US, HOUR_US),
        ("sum_fare_3600s", "sum", HOUR_US, 5 * MINUTE_US),
        ("mean_fare", "mean", None, None),
    ]
    assert is_windowed(view)
    assert not is_windowed(SimpleNamespace(aggregations=[]))


def test_a_slide_interval_is_the_hop_and_tags_say_the_rest() -> None:
    """Feast stores the window where no slide_interval is said: only a tag makes a window tumble."""
    fields = {"a": "DOUBLE", "b": "DOUBLE", "c": "DOUBLE"}
    view = view_of(
        fields,
        over(1, name="a", slide_interval=timedelta(minutes=1)),
        over(1, name="b"),
        over(1, name="c"),
        tags={"tumbling": "b", "c.cap": "10", "c.max_bytes": "64"},
    )
    found = {a.feature: a for a in resolve_aggregations(view, TYPES)}
    assert [found[name].hop_us for name in fields] == [MINUTE_US, HOUR_US, 5 * MINUTE_US]
    assert found["c"].params == {"cap": 10.0, "max_bytes": 64.0}


@pytest.mark.parametrize(
    ("fields", "aggregations", "message"),
    [
        ({"other": "DOUBLE"}, [{}], "sum of 'fare' makes sum_fare_3600s or sum_fare, and the schema has no field"),
        ({"sum_fare": "DOUBLE", "x": "DOUBLE"}, [{}], "no aggregation makes its feature 'x'"),
        ({"sum_fare": "DOUBLE"}, [{}, {}], "two aggregations are named 'sum_fare'"),
        (
            {"n": "DOUBLE"},
            [{"name": "n", "column": "fair"}],
            "column 'fair', which its events do not have; did you mean",
        ),
        ({"n": "DOUBLE"}, [{"name": "n", "slide_interval": timedelta(minutes=7)}], "does not divide its window"),
        ({"n": "DOUBLE"}, [{"name": "n", "function": "median"}], "no such function"),
        ({"n": "DOUBLE"}, [{"name": "n", "column": "city"}], "view 'taps': feature 'n'"),
    ],
)
def test_what_cannot_be_honoured_is_refused(
    fields: dict[str, str], aggregations: list[dict[str, Any]], message: str
) -> None:
    """By name, with what exists."""
    with pytest.raises(DefinitionError, match=message):
        resolve_aggregations(view_of(fields, *(over(1, **a) for a in aggregations)), TYPES)
