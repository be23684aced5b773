"""Tables whose columns differ in type become one table without rounding an integer."""

from decimal import Decimal
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from validation.drift.columns import chosen_columns, refuse_differing
from validation.drift.compare import DriftError
from validation.drift.rows import rows_of
from validation.profile.concatenate import concatenate

ODD = 2**60 + 1
INEXACT = {
    "int64 and double": (pa.array([ODD]), pa.array([0.5])),
    "int64 and float": (pa.array([ODD]), pa.array([0.5], pa.float32())),
    "int64 and uint64": (pa.array([-1]), pa.array([2**63 + 1], pa.uint64())),
    "decimal and double": (pa.array([Decimal(ODD)]), pa.array([0.5])),
    "lists": (pa.array([[ODD]]), pa.array([[0.5]])),
    "structs": (pa.array([{"a": ODD}]), pa.array([{"a": 0.5}])),
    "number and text": (pa.array([1]), pa.array(["a"])),
    "naive and zoned": (pa.array([1], pa.timestamp("us")), pa.array([1], pa.timestamp("us", "UTC"))),
}
EXACT = {
    "int32 and float": (pa.array([2**24 + 1], pa.int32()), pa.array([0.5], pa.float32()), [2**24 + 1, 0.5]),
    "int64 and decimal": (pa.array([ODD]), pa.array([Decimal(ODD)]), [ODD, ODD]),
    "small int64 and double": (pa.array([5]), pa.array([0.5]), [5.0, 0.5]),
    "dictionary and text": (pa.array(["a"]).dictionary_encode(), pa.array(["b"]), ["a", "b"]),
    "dictionary and null": (pa.array(["a"]).dictionary_encode(), pa.nulls(1), ["a", None]),
}


@pytest.mark.parametrize("parts", INEXACT.values(), ids=INEXACT.keys())
def test_a_column_without_an_exact_common_type_is_left_out_and_named(parts: tuple[pa.Array, pa.Array]) -> None:
    """The other columns are all there."""
    rows = concatenate([pa.table({"x": part, "y": [place]}) for place, part in enumerate(parts)])
    assert rows.table.to_pydict() == {"y": [0, 1]}
    assert rows.left_out == {"x": f"{parts[0].type} and {parts[1].type} have no exact common type"}


@pytest.mark.parametrize("case", EXACT.values(), ids=EXACT.keys())
def test_a_column_with_an_exact_common_type_keeps_each_value(case: tuple[pa.Array, pa.Array, list[object]]) -> None:
    """Types that differ and values that do not change."""
    first, second, values = case
    rows = concatenate([pa.table({"x": first}), pa.table({"x": second})])
    assert (rows.table["x"].to_pylist(), rows.left_out) == (values, {})


def test_a_permissive_promotion_of_decimals_would_be_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    """Planted fault: decimals become doubles unchecked, as Arrow promotes them."""
    monkeypatch.setattr("validation.profile.concatenate._refuse_large_decimals", lambda _: None)
    with pytest.raises(AssertionError):
        test_a_column_without_an_exact_common_type_is_left_out_and_named(INEXACT["decimal and double"])


def test_a_folder_of_a_drift_check_is_read_without_the_column_that_differs(tmp_path: Path) -> None:
    """The column is among those left out with its reason, and is refused where it is asked for by name."""
    pq.write_table(pa.table({"id": [ODD], "x": [1.0]}), tmp_path / "0.parquet")
    pq.write_table(pa.table({"id": [0.5], "x": [2.0]}), tmp_path / "1.parquet")
    rows = rows_of(tmp_path)
    assert rows.table.to_pydict() == {"x": [1.0, 2.0]}
    chosen = chosen_columns((rows,), {}, (), None, time=None, segments=())
    assert chosen.reasons == ("id (int64 and double have no exact common type)",)
    with pytest.raises(DriftError, match="files disagree about column 'id': int64 and double"):
        refuse_differing((rows,), ["id"])
