"""Columns that files store in several types: integers never pass through doubles, what is not read breaks nothing."""

from collections.abc import Mapping
from decimal import Decimal
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.fs
import pyarrow.parquet as pq
import pytest

from featurestore.dataset.digest import multiset_digest
from featurestore.dataset.rebuild import read_entity_rows
from featurestore.errors import SourceError, UsageError
from featurestore.offline import sources
from featurestore.offline.column_types import concatenated
from featurestore.offline.compaction import compact
from featurestore.offline.connection import Limits, connection
from featurestore.offline.entity_rows import coerce_key, without_index
from featurestore.offline.event_log import ARRIVAL, OFFSET, OffsetRange, event_files, read_events, write_events
from featurestore.offline.sources import Scan, scan_parquet
from featurestore.plugins.entity_df import entity_table
from featurestore.plugins.retrieval_job import _exact_frame

US = pa.timestamp("us", "UTC")
ODD = 2**53 + 1
"""The least integer that no double holds."""
DISK = pyarrow.fs.LocalFileSystem()


def scanned(
    folder: Path, *columns: pa.Array, declared: str | None = None, wanted: str = "x", remote: bool = False
) -> Scan:
    """A folder of files, each with one of the columns as `x` and its number as `n`."""
    for number, column in enumerate(columns):
        table = pa.table({"x": column, "n": [number] * len(column)})
        pq.write_table(table, folder / f"{number}.parquet", row_group_size=2)
    types = {"x": declared} if declared else None
    where = DISK if remote else None
    return scan_parquet(folder, repo=folder, name="source 's'", columns=[wanted], declared=types, filesystem=where)


def read(scan: Scan, column: str = "x", *, numbered: bool = False) -> list[Any]:
    with connection(Limits(threads=1)) as session:
        source = (scan.register_numbered if numbered else scan.register)(session, "held")
        return session.sql(f"SELECT {column} FROM {source} ORDER BY n").to_arrow_table()[column].to_pylist()


EXACT = [
    ("INT64", pa.array([ODD, ODD + 1]), pa.array([5.0, None, float("nan")]), [ODD, ODD + 1, 5, None, None]),
    ("INT64", pa.array([2**60 + 1]), pa.array([5.0], pa.float32()), [2**60 + 1, 5]),
    ("INT64", pa.array([2**63 - 1], pa.uint64()), pa.array([-1], pa.int8()), [2**63 - 1, -1]),
    ("INT64", pa.array([Decimal("5.00")]), pa.array([ODD]), [5, ODD]),
    ("INT64", pa.array(["12"]), pa.array([ODD]), [12, ODD]),
    ("INT64_LIST", pa.array([[ODD, None]]), pa.array([[1.0], None]), [[ODD, None], [1], None]),
    ("DOUBLE", pa.array([3]), pa.array([1.5]), [3.0, 1.5]),
    ("STRING", pa.array(["a"]), pa.array([ODD]), ["a", str(ODD)]),
    (None, pa.array([2**64 - 1], pa.uint64()), pa.array([1], pa.uint8()), [2**64 - 1, 1]),
    (None, pa.array([Decimal("12345678901234567890.12")]), pa.array([7]), [Decimal("12345678901234567890.12"), 7]),
    (None, pa.nulls(1), pa.array([{"a": ODD}]), [None, {"a": ODD}]),
    (None, pa.array([{"a": ODD}]), pa.array([{"b": "z"}, None]), [{"a": ODD, "b": None}, {"a": None, "b": "z"}, None]),
    (None, pa.array(["a"]).dictionary_encode(), pa.array(["b"], pa.large_string()), ["a", "b"]),
]


@pytest.mark.parametrize("remote", [False, True], ids=["disk", "store"])
@pytest.mark.parametrize(("declared", "first", "second", "right"), EXACT)
def test_each_file_is_read_in_the_declared_type(
    tmp_path: Path, declared: str | None, first: pa.Array, second: pa.Array, right: list[Any], remote: bool
) -> None:
    """Every value of every file arrives as it was written."""
    scan = scanned(tmp_path, first, second, declared=declared, remote=remote)
    assert read(scan) == right
    assert read(scan, numbered=True) == right


INEXACT = [
    ("INT64", pa.array([1]), pa.array([2.0**60])),
    ("INT64", pa.array([1]), pa.array([2.0**24], pa.float32())),
    ("INT64", pa.array([1]), pa.array([1.5])),
    ("INT64", pa.array([1]), pa.array([2**63], pa.uint64())),
    ("INT64", pa.array([1]), pa.array([Decimal("5.50")])),
    ("INT64", pa.array([1]), pa.array(["012"])),
    ("INT64_LIST", pa.array([[1]]), pa.array([[2.0**60]])),
    ("DOUBLE", pa.array([1.5]), pa.array([ODD])),
    (None, pa.array([1.5]), pa.array([ODD])),
    (None, pa.array([{"a": 1.5}]), pa.array([{"a": ODD}])),
]


@pytest.mark.parametrize("remote", [False, True], ids=["disk", "store"])
@pytest.mark.parametrize(("declared", "first", "second"), INEXACT)
def test_a_value_that_a_cast_would_change_names_its_file(
    tmp_path: Path, declared: str | None, first: pa.Array, second: pa.Array, remote: bool
) -> None:
    """A neighbour is never served in the place of a value."""
    scan = scanned(tmp_path, first, second, declared=declared, remote=remote)
    with pytest.raises(SourceError, match=r"column 'x' of .*1\.parquet is"):
        read(scan)


@pytest.mark.parametrize("remote", [False, True], ids=["disk", "store"])
def test_a_permissive_merge_would_be_seen(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, remote: bool) -> None:
    """Planted fault: files are merged as Arrow promotes them, so integers pass through doubles."""

    def permissive(schemas: Mapping[str, pa.Schema], declared: object = None) -> tuple[pa.Schema, dict[str, str]]:
        return pa.unify_schemas(list(schemas.values()), promote_options="permissive"), {}

    def promoted(schema: pa.Schema, wanted: pa.Schema, *, place: str, name: str) -> str:
        return ", ".join(
            f"{field.name}::{'DOUBLE' if field.name == 'x' else 'BIGINT'} AS {field.name}" for field in wanted
        )

    monkeypatch.setattr(sources, "unified", permissive)
    monkeypatch.setattr(sources, "exact_select", promoted)
    with pytest.raises(AssertionError):
        test_each_file_is_read_in_the_declared_type(
            tmp_path, "INT64", pa.array([ODD, ODD + 1]), pa.array([5.0]), [ODD, ODD + 1, 5], remote
        )


@pytest.mark.parametrize("remote", [False, True], ids=["disk", "store"])
def test_a_column_that_is_not_read_may_differ(tmp_path: Path, remote: bool) -> None:
    """Files that disagree about another column are read; the column itself is refused with both files' types."""
    scan = scanned(tmp_path, pa.array([5]), pa.array(["five"]), wanted="n", remote=remote)
    assert read(scan, "n") == [0, 1]
    with pytest.raises(SourceError, match=r"int64 in .*0\.parquet, string in .*1\.parquet"):
        scan.column("x", role="column")


@pytest.mark.parametrize("column", [pa.array([2.0**53, None]), pa.array([2.0**60]), pa.array([2.0**24], pa.float32())])
def test_a_float_key_that_may_be_rounded_is_refused(column: pa.Array) -> None:
    """From 2^53 on (float32: 2^24) a float stands for several keys."""
    with pytest.raises(UsageError, match="rounded form of another integer"):
        coerce_key(pa.chunked_array([column]), "INT64", place="here")


def test_a_float_key_below_two_to_the_53_is_its_integer() -> None:
    """What pandas makes of small keys beside a null still joins."""
    column = pa.chunked_array([[2.0**53 - 1, None, -5.0]])
    assert coerce_key(column, "INT64", place="here").to_pylist() == [2**53 - 1, None, -5]


@pytest.mark.parametrize(
    "column",
    [
        pa.array([[ODD, None], [ODD], None]),
        pa.array([{"a": ODD}, {"a": None}, None]),
        pa.array([[{"a": ODD}, {"a": None}], None]),
        pa.array([[[ODD, None]], [[1]]]),
        pa.array([[("k", ODD), ("j", None)], None], pa.map_(pa.string(), pa.int64())),
        pa.array([2**63 + 1, None], pa.uint64()),
    ],
)
def test_nested_integers_beside_nulls_stay_integers_in_pandas(column: pa.Array) -> None:
    """A DataFrame holds the very integers that Arrow has."""
    found = _exact_frame(pa.table({"x": column}))["x"].tolist()
    assert [_plain(value) for value in found] == column.to_pylist()


def _plain(value: Any) -> Any:
    if value is pd.NA:
        return None
    if isinstance(value, np.ndarray):
        return [_plain(item) for item in value]
    return value


def _log(folder: Path) -> None:
    """Three ranges of a topic whose column `ref` became text in the second, and `amount` a double in the third."""
    columns: list[dict[str, Any]] = [
        {"ref": [7], "amount": [ODD]},
        {"ref": ["seven"], "amount": [ODD + 1]},
        {"ref": ["eight"], "amount": [3.0]},
    ]
    for offset, values in enumerate(columns):
        events = pa.table({**values, OFFSET: [offset], ARRIVAL: pa.array([offset], US)})
        write_events(folder, events, topic_id="t", partition=0, first=offset, last=offset)


def test_compaction_changes_no_value_and_no_type(tmp_path: Path) -> None:
    """Ranges that differ in a column's type become one range; each part keeps the types it had."""
    _log(tmp_path)
    compact(tmp_path, fan_in=2, grace_s=0)
    files = event_files(tmp_path)
    assert {file.range for file in files} == {OffsetRange("t", 0, 0, 2)}
    kept = [row for file in files for row in pq.read_table(file.path, partitioning=None).to_pylist()]
    by_offset = {row[OFFSET]: (row["ref"], row["amount"], type(row["amount"])) for row in kept}
    assert by_offset == {0: (7, ODD, int), 1: ("seven", ODD + 1, int), 2: ("eight", 3.0, float)}


def test_compaction_takes_an_offset_once_whatever_its_types(tmp_path: Path) -> None:
    """Ranges that overlap and differ in a column's type hold each offset once afterwards."""
    _log(tmp_path)
    events = pa.table({"ref": ["x", "eight"], "amount": [1, 2], OFFSET: [1, 2], ARRIVAL: pa.array([1, 2], US)})
    write_events(tmp_path, events, topic_id="t", partition=0, first=1, last=2)
    compact(tmp_path, fan_in=2, grace_s=0)
    offsets = [pq.read_table(file.path, partitioning=None)[OFFSET].to_pylist() for file in event_files(tmp_path)]
    assert sorted(offset for part in offsets for offset in part) == [0, 1, 2]


def test_pinned_events_are_the_same_after_a_column_changed_its_type(tmp_path: Path) -> None:
    """What was appended or compacted since does not change the digest of a training set's events."""
    events = pa.table({"ref": [7], OFFSET: [0], ARRIVAL: pa.array([0], US)})
    write_events(tmp_path, events, topic_id="t", partition=0, first=0, last=0)
    before = multiset_digest(read_events(tmp_path))
    events = pa.table({"ref": ["seven"], OFFSET: [1], ARRIVAL: pa.array([1], US)})
    write_events(tmp_path, events, topic_id="t", partition=0, first=1, last=1)
    within = [OffsetRange("t", 0, 0, 0)]
    assert multiset_digest(read_events(tmp_path, within=within)) == before
    compact(tmp_path, fan_in=2, grace_s=0)
    assert multiset_digest(read_events(tmp_path, within=within)) == before


def test_tables_are_put_together_without_loss() -> None:
    """Rows in memory follow the same rule as files."""
    tables = {"a": pa.table({"x": [ODD]}), "b": pa.table({"x": [5.0, None]})}
    assert concatenated(tables, name="rows", declared={"x": "INT64"})["x"].to_pylist() == [ODD, 5, None]
    with pytest.raises(SourceError, match="column 'x' of a is int64"):
        concatenated(tables, name="rows")


FRAME = pd.DataFrame({"id": [1, 2, 3], "label": [0, 1, 0]})
INDEXES = [
    FRAME[FRAME["id"] > 1],
    FRAME.set_index(pd.Index([7, 8, 9], name="row")),
    FRAME.set_index(pd.MultiIndex.from_tuples([(1, 2), (3, 4), (5, 6)])),
    FRAME.set_index(pd.MultiIndex.from_tuples([(1, 2), (3, 4), (5, 6)], names=["a", None])),
]


@pytest.mark.parametrize("frame", INDEXES, ids=["filtered", "named", "unnamed levels", "some levels named"])
@pytest.mark.parametrize("form", ["frame", "arrow", "sql", "file", "folder"])
def test_a_pandas_index_is_no_column_of_a_training_set(tmp_path: Path, frame: pd.DataFrame, form: str) -> None:
    """Entity rows have the columns of the frame, never its index."""
    (tmp_path / "rows").mkdir()
    file = tmp_path / "rows" / "rows.parquet"
    frame.to_parquet(file)
    needed = {"id", "event_timestamp"}
    if form in ("file", "folder"):
        found = read_entity_rows(file if form == "file" else file.parent, needed=needed)
    else:
        given = {"frame": frame, "arrow": pa.Table.from_pandas(frame), "sql": f"SELECT * FROM '{file}'"}[form]
        found = entity_table(given, tmp_path, Limits(), needed)
    named = [name for name in frame.index.names if name] if form == "sql" else []
    assert sorted(found.column_names) == sorted(["id", "label", *named])


@pytest.mark.parametrize("form", ["frame", "arrow", "file"])
def test_a_join_key_may_be_the_index(tmp_path: Path, form: str) -> None:
    """An index that names a key which the views need is that column."""
    frame, file = FRAME.set_index("id"), tmp_path / "rows.parquet"
    frame.to_parquet(file)
    if form == "file":
        found = read_entity_rows(file, needed={"id"})
    else:
        given = {"frame": frame, "arrow": pa.Table.from_pandas(frame)}[form]
        found = entity_table(given, tmp_path, Limits(), {"id"})
    assert found.select(["id", "label"]).to_pydict() == FRAME.to_dict("list")


def test_partition_folders_of_entity_rows_are_no_columns(tmp_path: Path) -> None:
    """Where rows lie is no feature; a join key that only the folders tell is read from them."""
    for part in (1, 2):
        (tmp_path / f"part={part}").mkdir()
        pq.write_table(pa.table({"id": [part]}), tmp_path / f"part={part}" / "rows.parquet")
    assert read_entity_rows(tmp_path, needed={"id"}).to_pydict() == {"id": [1, 2]}
    assert read_entity_rows(tmp_path, needed={"id", "part"})["part"].to_pylist() == [1, 2]


def test_without_index_keeps_what_has_no_notes() -> None:
    """A table that pandas did not write is as it was."""
    table = pa.table({"row": [1], "x": [2]})
    assert without_index(table, ()).equals(table)
