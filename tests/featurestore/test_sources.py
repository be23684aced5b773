"""Is everything that can be wrong with a source said before any work is done?"""

from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from featurestore.errors import SourceError, UsageError
from featurestore.offline import event_log
from featurestore.offline.append import append_rows, append_to_source, put_dataset
from featurestore.offline.asof import as_of_join
from featurestore.offline.asof_view import AsOfView, Feature, Key
from featurestore.offline.connection import Limits, connection, query
from featurestore.offline.entity_rows import EntityRows
from featurestore.offline.pull import entities_between, newest_rows, rows_between
from featurestore.offline.sources import Scan, parquet_files, scan_parquet
from featurestore.plan import Field

US = pa.timestamp("us", "UTC")
ROWS = pa.table({"id": [1, 2], "ts": pa.array([0, 5], US), "f": [10, 20]})


def scan(path: Path | str, *columns: str, repo: Path = Path("/"), missing: str = "error") -> Scan:
    return scan_parquet(path, repo=repo, name="source 's'", columns=columns, missing_columns=missing)  # type: ignore[arg-type]


def read(found: Scan) -> pa.Table:
    with connection(Limits(threads=1)) as session:
        return session.sql(f"SELECT * FROM {found.register(session, 'x')}").to_arrow_table()


def write(path: Path, table: pa.Table = ROWS) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(table, path)
    return path


def test_a_path_is_relative_to_the_repo(tmp_path: Path) -> None:
    """A file, a folder and a file URI; whatever the current directory is."""
    write(tmp_path / "data" / "a.parquet")
    assert len(read(scan("data/a.parquet", repo=tmp_path))) == 2
    assert len(read(scan("data", repo=tmp_path))) == 2
    assert len(read(scan(f"file://{tmp_path}/data/a.parquet"))) == 2


def test_names_that_look_like_patterns_are_names(tmp_path: Path) -> None:
    """Brackets, stars and quotes in folder names are read as they stand."""
    write(tmp_path / "it's [1]*" / "a.parquet")
    write(tmp_path / "it's 1" / "a.parquet")
    assert len(read(scan("it's [1]*", repo=tmp_path))) == 2


def test_a_path_may_be_a_pattern(tmp_path: Path) -> None:
    """Where nothing of that very name exists; partition folders still give their columns."""
    for day in ("a", "b"):
        write(tmp_path / "d" / f"day={day}" / "x.parquet")
        write(tmp_path / "d" / f"day={day}" / "y.parquet")
    assert sorted(read(scan("d/*/x.parquet", repo=tmp_path))["day"].to_pylist()) == ["a", "a", "b", "b"]
    assert len(read(scan("d/**/*.parquet", repo=tmp_path))) == 8
    assert len(read(scan("d/day=a/[x].parquet", repo=tmp_path))) == 2
    with pytest.raises(SourceError, match="does not exist"):
        scan("d/*/z.parquet", repo=tmp_path)


def test_a_hive_folder_gives_its_keys_as_columns(tmp_path: Path) -> None:
    """Values come from folder names; unfinished and hidden files are left out."""
    write(tmp_path / "origin=EWR" / "day=2026-01-31" / "a.parquet")
    write(tmp_path / "origin=JFK" / "day=2026-02-01" / "a.parquet")
    (tmp_path / "origin=JFK" / "day=2026-02-01" / ".b.parquet").write_bytes(b"torn")
    found = scan(tmp_path, "id", "origin")
    assert found.schema.field("origin").type == pa.string()
    assert sorted(read(found)["origin"].to_pylist()) == ["EWR", "EWR", "JFK", "JFK"]


def test_a_files_own_column_wins_over_its_folders_name(tmp_path: Path) -> None:
    """A folder named like a column does not overwrite the column."""
    write(tmp_path / "id=99" / "a.parquet")
    assert read(scan(tmp_path))["id"].to_pylist() == [1, 2]


def test_a_missing_source_says_what_is_there(tmp_path: Path) -> None:
    """One line with the nearest name."""
    write(tmp_path / "weather.parquet")
    with pytest.raises(SourceError, match=r"wether\.parquet does not exist; did you mean 'weather\.parquet'\?"):
        scan("wether.parquet", repo=tmp_path)
    (tmp_path / "empty").mkdir()
    with pytest.raises(SourceError, match="holds no Parquet files"):
        scan("empty", repo=tmp_path)


def test_a_torn_or_foreign_file_is_named(tmp_path: Path) -> None:
    """Zero bytes, half a file, and text are no Parquet; the file is named, even among many."""
    good = write(tmp_path / "d" / "a.parquet").read_bytes()
    for torn in (b"", good[: len(good) // 2], b"id,ts\n1,2\n"):
        (tmp_path / "d" / "b.parquet").write_bytes(torn)
        with pytest.raises(SourceError, match=r"b\.parquet cannot be read as Parquet"):
            scan("d", repo=tmp_path)


def test_damage_behind_a_sound_footer_is_an_error_too(tmp_path: Path) -> None:
    """A page that cannot be read ends the join with one line, never with fewer rows."""
    path = write(
        tmp_path / "a.parquet",
        pa.table({"id": list(range(10_000)), "ts": pa.array(range(10_000), US), "f": [1.5] * 10_000}),
    )
    data = bytearray(path.read_bytes())
    data[4:4_000] = b"\xff" * 3_996
    path.write_bytes(data)
    view = AsOfView(
        name="v",
        scan=scan(path),
        keys=(Key("id", "id", "INT64"),),
        timestamp="ts",
        features=(Feature("f", "f", "DOUBLE"),),
    )
    with pytest.raises(SourceError, match="cannot be read"):
        as_of_join(EntityRows(pa.table({"id": [1], "t": pa.array([9], US)}), "t"), [view])


def test_a_lost_column_is_named(tmp_path: Path) -> None:
    """In a single file, in one file of many, and allowed only where the configuration says so."""
    write(tmp_path / "d" / "a.parquet")
    with pytest.raises(SourceError, match=r"source 's' has no column 'g'; what exists: f, id, ts"):
        scan("d", "g", repo=tmp_path)
    write(tmp_path / "d" / "b.parquet", ROWS.drop("f"))
    with pytest.raises(SourceError, match=r"b\.parquet has no column 'f', 1 of 2 do"):
        scan("d", "f", repo=tmp_path)
    assert read(scan("d", "f", repo=tmp_path, missing="null"))["f"].null_count == 2


def test_columns_that_differ_in_case_only_are_refused(tmp_path: Path) -> None:
    """SQL could not tell them apart."""
    write(tmp_path / "a.parquet", pa.table({"Fare": [1], "fare": [2]}))
    with pytest.raises(SourceError, match="differ from 'fare' only in upper and lower case"):
        scan("a.parquet", "fare", repo=tmp_path)


def test_an_event_log_is_read_once_per_offset_and_may_grow(tmp_path: Path) -> None:
    """Overlapping ranges do not double events; a column that older files lack is NULL there."""

    def events(first: int, last: int, **more: pa.Array) -> None:
        offsets = pa.array(range(first, last + 1), pa.int64())
        rows = pa.table({"f": offsets, "_offset": offsets, "_arrival": offsets.cast(US), **more})
        event_log.write_events(tmp_path, rows, topic_id="t", partition=0, first=first, last=last)

    events(0, 5)
    events(3, 8, late=pa.array([1] * 6))
    found = read(scan(tmp_path, "f", "late"))
    assert sorted(found["_offset"].to_pylist()) == list(range(9))
    assert found["late"].null_count in {3, 6}


def test_user_sql_is_relative_to_the_repo_and_its_errors_are_usage(tmp_path: Path) -> None:
    """Entity rows by SQL name files of the repo; a mistake is said in one line."""
    write(tmp_path / "d" / "a.parquet")
    with query("SELECT id FROM 'd/a.parquet'", search_path=tmp_path, limits=Limits()) as found:
        assert found.read_all().num_rows == 2
    late = "SELECT CASE WHEN i = 2500000 THEN error('late') ELSE i END FROM range(3000000) t(i)"
    for wrong in ("SELEC 1", late):
        with (
            pytest.raises(UsageError, match="the entity rows' SQL cannot be run"),
            query(wrong, search_path=tmp_path, limits=Limits()) as found,
        ):
            found.read_all()


def test_rows_between_include_both_bounds(tmp_path: Path) -> None:
    """And keep the order of the file."""
    rows = pa.table({"id": [3, 1, 2, 4], "ts": pa.array([5, 1, 9, 10], US)})
    found = rows_between(scan(write(tmp_path / "a.parquet", rows)), ["id"], "ts", 1, 9, limits=Limits())
    assert found["id"].to_pylist() == [3, 1, 2]


def test_newest_rows_break_ties_by_created_then_bytes(tmp_path: Path) -> None:
    """One row a key; NULL created is lowest; rows of a NULL key are nobody's; exact duplicates are counted."""
    rows = pa.table(
        {
            "id": [1, 1, 1, 2, 2, 3, 3, None],
            "ts": pa.array([1, 2, 2, 2, 2, 2, 2, 9], US),
            "made": pa.array([9, 3, 2, None, -5, 1, 1, 1], US),
            "f": [0, 1, 2, 3, 4, 5, 6, 7],
        }
    )
    source = scan(write(tmp_path / "a.parquet", rows))
    fields = {"f": Field(name="f", dtype="INT64")}
    found, differing = newest_rows(source, ["id"], ["f"], "ts", "made", None, 8, fields=fields, limits=Limits())
    assert sorted(zip(found["id"].to_pylist(), found["f"].to_pylist(), strict=True)) == [(1, 1), (2, 4), (3, 6)]
    assert differing == 1
    everybody, _ = newest_rows(source, [], ["f"], "ts", "made", None, 1, fields=fields, limits=Limits())
    assert everybody["f"].to_pylist() == [0]


def test_appending_never_rewrites(tmp_path: Path) -> None:
    """New rows are new files in the partitions they belong to; readers that pinned their files see none of them."""
    for origin in ("EWR", "JFK"):
        write(tmp_path / f"origin={origin}" / "a.parquet")
    before = scan(tmp_path)
    stamps = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*.parquet")}
    more = pa.table(
        {"origin": ["LGA", "EWR"], "f": [1, 2], "id": pa.array([7, 8], pa.int32()), "ts": pa.array([1, 1], US)}
    )
    paths = append_to_source(tmp_path, more, name="source 's'")
    assert sorted(path.parent.name for path in paths) == ["origin=EWR", "origin=LGA"]
    assert {path: path.stat().st_mtime_ns for path in stamps} == stamps
    assert len(read(before)) == 4
    assert sorted(read(scan(tmp_path, "id", "origin"))["id"].to_pylist()) == [1, 1, 2, 2, 7, 8]


def test_appending_refuses_what_it_could_not_keep(tmp_path: Path) -> None:
    """A single file, an event log, wrong columns and values that do not fit."""
    file = write(tmp_path / "a.parquet")
    with pytest.raises(UsageError, match="is a single file, which is never rewritten; make it a folder"):
        append_to_source(file, ROWS, name="source 's'")
    folder = write(tmp_path / "d" / "a.parquet").parent
    with pytest.raises(UsageError, match=r"lack the columns \['f'\] and have \['g'\] too many"):
        append_to_source(folder, ROWS.rename_columns(["id", "ts", "g"]), name="source 's'")
    with pytest.raises(UsageError, match="do not fit the columns"):
        append_to_source(folder, ROWS.set_column(2, "f", pa.array([1.5, 2.5])), name="source 's'")
    events = pa.table({"_offset": [0], "_arrival": pa.array([0], US)})
    event_log.write_events(tmp_path / "log", events, topic_id="t", partition=0, first=0, last=0)
    with pytest.raises(UsageError, match="is an event log"):
        append_to_source(tmp_path / "log", ROWS, name="source 's'")


def test_a_new_folder_begins_with_its_first_rows(tmp_path: Path) -> None:
    """NULL and odd values of partition columns come back; no rows, no file."""
    rows = pa.table({"p": ["a/b", None], "f": [1, 2]})
    append_rows(tmp_path / "x", rows, partition_by=["p"])
    found = read(scan(tmp_path / "x"))
    assert sorted(zip(found["f"].to_pylist(), found["p"].to_pylist(), strict=True)) == [(1, "a/b"), (2, None)]
    assert append_rows(tmp_path / "y", rows.slice(0, 0), partition_by=[]) == ()


def test_readers_never_see_half_a_write(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """While a file is written, and after its writer died on the way, readers find what was there before."""
    folder = tmp_path / "d"
    write(folder / "a.parquet")
    seen: list[tuple[Path, ...]] = []
    true = pq.ParquetWriter.write_table

    def dies(self: pq.ParquetWriter, table: pa.Table, *more: Any) -> None:
        true(self, table, *more)
        seen.append(parquet_files(folder, name="s"))
        raise OSError("no space left")

    monkeypatch.setattr(pq.ParquetWriter, "write_table", dies)
    with pytest.raises(OSError, match="no space left"):
        append_to_source(folder, ROWS, name="s")
    monkeypatch.undo()
    assert seen == [(folder / "a.parquet",)]
    assert list(folder.iterdir()) == [folder / "a.parquet"]
    append_to_source(folder, ROWS, name="s")
    assert len(parquet_files(folder, name="s")) == 2


def test_a_saved_dataset_is_replaced_whole(tmp_path: Path) -> None:
    """As a file or as a folder; nothing unfinished stays behind."""
    for name in ("a.parquet", "folder"):
        put_dataset(tmp_path / name, [ROWS.slice(0, 1), ROWS.slice(1)], ROWS.schema)
        put_dataset(tmp_path / name, [ROWS.slice(0, 1)], ROWS.schema)
        assert pq.read_table(tmp_path / name).num_rows == 1
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.parquet", "folder"]


def test_a_nan_key_of_a_file_is_nobody(tmp_path: Path) -> None:
    """DuckDB takes isnan() for false where a file's statistics name a least and a greatest: these leave NaN out."""
    at = pa.array([1, 2, 3], pa.timestamp("us", "UTC"))
    pq.write_table(pa.table({"id": [1.0, float("nan"), 3.0], "ts": at}), tmp_path / "rows.parquet")
    scan = scan_parquet("rows.parquet", repo=tmp_path, name="rows")
    found = entities_between(scan, [Key("id", "driver", "INT64")], "ts", None, None, limits=Limits())
    assert sorted(found["driver"].to_pylist(), key=str) == [1, 3, None]
