"""A stream view sees no column that is classified beyond its clearance, on any path."""

import hashlib

import msgspec
import pyarrow as pa
import pytest

from featurestore.clearance import withheld_of, withhold
from featurestore.errors import DefinitionError
from featurestore.offline.connection import Limits, connection
from featurestore.offline.sources import scan_table
from featurestore.offline.stored import withheld_scan
from featurestore.plan import Aggregation, Field, Function, JoinKey, Source, Topic, Transform, View
from validation.contract import Column, Contract

HOUR_US = 3_600_000_000


def counted(column: str, dtype: str, function: str = "count_distinct", **params: float) -> Aggregation:
    return Aggregation(
        feature=f"{column}_{function}", column=column, column_dtype=dtype, function=function, dtype="INT64",
        window_us=HOUR_US, hop_us=HOUR_US, params=params,
    )  # fmt: skip


def view(*aggregations: Aggregation, **changes: object) -> View:
    made = View(
        name="taps", version=1, kind="windowed", ttl_us=0, tags={"clearance": "internal"},
        join_keys=(JoinKey(entity="card", name="card", dtype="STRING"),), aggregations=aggregations,
        features=tuple(Field(name=each.feature, dtype="INT64") for each in aggregations),
        source=Source(
            name="taps_log", path="taps", timestamp_field="ts", field_mapping={"raw_name": "name"},
            topic=Topic(name="taps", bootstrap_servers="b:1", message_format="json"),
        ),
    )  # fmt: skip
    return msgspec.structs.replace(made, **changes)


def contract(**classes: str) -> Contract:
    columns = tuple(Column(name=name, logical_type="string", classification=given) for name, given in classes.items())
    return Contract(name="taps", version="1", source="taps", columns=columns, rules=())


WHOLE = contract(raw_name="pii", fare="confidential", place="internal", stop="public")


def test_what_is_beyond_is_dropped_and_the_rest_stays() -> None:
    """By the source's names; a classification that is not known counts as the highest."""
    fares, names = counted("fare", "DOUBLE", "sum"), counted("name", "STRING")
    places = counted("place", "STRING")
    assert withheld_of(view(fares, names, places), WHOLE) == {"fare": "dropped", "raw_name": "dropped"}
    assert withheld_of(view(places), WHOLE) == {}
    assert withheld_of(view(fares, names, tags={}), WHOLE) == {}
    assert withheld_of(view(names, tags={"clearance": "restricted"}), WHOLE) == {}


def test_text_may_be_masked() -> None:
    """Numbers have no mask: they are dropped."""
    tags = {"clearance": "public", "beyond_clearance": "mask"}
    found = withheld_of(view(counted("fare", "DOUBLE", "sum"), counted("name", "STRING"), tags=tags), WHOLE)
    assert found == {"fare": "dropped", "raw_name": "masked"}


@pytest.mark.parametrize(
    ("changes", "given", "message"),
    [
        ({"tags": {"clearance": "secretive"}}, WHOLE, "secretive"),
        ({"tags": {"clearance": "public", "beyond_clearance": "hide"}}, WHOLE, "hide"),
        ({}, None, "write a contract"),
        ({}, contract(card="pii"), "'card'"),
        ({}, contract(ts="restricted"), "'ts'"),
        ({"source": Source(name="s", path="p", timestamp_field="ts")}, WHOLE, "views of a topic"),
        ({"transform": Transform(function=Function(name="f", source=""), mode="python", inputs=(), outputs=())}, WHOLE,
         "no function"),
    ],
)  # fmt: skip
def test_a_clearance_that_cannot_be_kept_is_refused(
    changes: dict[str, object], given: Contract | None, message: str
) -> None:
    """When the repo is applied, with the view's name."""
    with pytest.raises(DefinitionError, match=f"view 'taps'.*{message}"):
        withheld_of(view(counted("name", "STRING"), **changes), given)


def test_a_mask_must_fit_what_is_kept() -> None:
    """The newest of a masked text needs 64 characters."""
    tags = {"clearance": "public", "beyond_clearance": "mask"}
    with pytest.raises(DefinitionError, match="max_bytes"):
        withheld_of(view(counted("name", "STRING", "last", max_bytes=9.0), tags=tags), WHOLE)
    assert withheld_of(view(counted("name", "STRING", "last", max_bytes=64.0), tags=tags), WHOLE)


def test_sql_withholds_what_arrow_does() -> None:
    """Types, nulls and digests alike: the stream and the joins see the same."""
    rows = pa.table(
        {
            "name": ["a", None, "é", "a"],
            "fare": [1.5, None, 2.5, 3.5],
            "day": pa.array([1, 2, None, 4], pa.date32()),
            "x": [1, 2, 3, 4],
        }
    )
    withheld = {"name": "masked", "fare": "dropped", "day": "dropped"}
    scan = withheld_scan(scan_table(rows, name="rows"), withheld)
    with connection(Limits()) as session:
        found = session.sql(f"SELECT * FROM {scan.register(session, 'rows')}").to_arrow_table()
    assert found.equals(withhold(rows, withheld))
    assert found["name"].to_pylist()[2] == hashlib.sha256("é".encode()).hexdigest()
    assert found.schema == rows.schema
