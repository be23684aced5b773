"""Is every accepted event read exactly once, whatever a crash left behind?"""

from collections.abc import Callable
from pathlib import Path

import msgspec
import pyarrow as pa
import pytest

from featurestore.errors import SourceError, UsageError
from featurestore.offline import event_log

DAY_US = 86_400_000_000


def events(first: int, last: int, arrival_us: int = 0) -> pa.Table:
    offsets = list(range(first, last + 1))
    return pa.table(
        {
            "origin": [f"A{offset % 3}" for offset in offsets],
            "_offset": pa.array(offsets, pa.int64()),
            "_arrival": pa.array([arrival_us + offset for offset in offsets], pa.timestamp("us", "UTC")),
        }
    )


def write(folder: Path, first: int, last: int, arrival_us: int = 0) -> tuple[Path, ...]:
    rows = events(first, last, arrival_us)
    return event_log.write_events(folder, rows, topic_id="t-1", partition=2, first=first, last=last)


def offsets(table: pa.Table) -> list[int]:
    return sorted(table["_offset"].to_pylist())


def test_written_events_come_back_with_their_provenance(tmp_path: Path) -> None:
    """A row read back carries topic id, partition, offset and arrival beside its own columns."""
    write(tmp_path, 5, 7, arrival_us=3 * DAY_US)
    table = event_log.read_events(tmp_path)
    assert table.column_names == ["origin", "_topic_id", "_partition", "_offset", "_arrival"]
    assert table.to_pylist()[0] | {"_arrival": 0} == {
        "origin": "A2",
        "_topic_id": "t-1",
        "_partition": 2,
        "_offset": 5,
        "_arrival": 0,
    }


def test_an_offset_stored_twice_is_read_once(tmp_path: Path) -> None:
    """Ranges that overlap after a crash do not duplicate events."""
    write(tmp_path, 0, 9)
    write(tmp_path, 5, 14)
    assert offsets(event_log.read_events(tmp_path)) != []
    table = event_log.read_events(tmp_path, columns=["_offset", "origin"])
    assert offsets(table) == list(range(15))
    assert table.column_names == ["_offset", "origin"]
    assert len(event_log.read_events(tmp_path, columns=["origin"])) == 15


def test_the_same_range_written_again_replaces_itself(tmp_path: Path) -> None:
    """A replayed range has the same names, so a retry leaves no second copy."""
    assert write(tmp_path, 0, 9) == write(tmp_path, 0, 9)
    assert len(list(tmp_path.rglob("*.parquet"))) == 1


def test_a_write_makes_one_part_per_day_of_arrival(tmp_path: Path) -> None:
    """Days are exact, and a range counts as stored only when all its parts are there."""
    paths = write(tmp_path, 0, 9, arrival_us=DAY_US - 5)
    assert [path.parent.name for path in paths] == ["day=1970-01-01", "day=1970-01-02"]
    assert offsets(event_log.read_events(tmp_path)) == list(range(10))
    assert event_log.next_offset(tmp_path, "t-1", 2) == 10
    paths[0].unlink()
    assert event_log.next_offset(tmp_path, "t-1", 2) is None
    write(tmp_path, 0, 9, arrival_us=DAY_US - 5)
    assert event_log.next_offset(tmp_path, "t-1", 2) == 10


def test_the_cursor_stops_at_a_gap(tmp_path: Path) -> None:
    """The next offset is the contiguous end of the ranges, not the greatest offset."""
    write(tmp_path, 3, 9)
    write(tmp_path, 8, 12)
    write(tmp_path, 20, 25)
    assert event_log.next_offset(tmp_path, "t-1", 2) == 13
    assert event_log.next_offset(tmp_path, "t-1", 0) is None


def test_a_range_covers_what_was_rejected(tmp_path: Path) -> None:
    """The cursor passes offsets whose records were not accepted."""
    event_log.write_events(tmp_path, events(3, 5), topic_id="t", partition=0, first=0, last=9)
    assert event_log.next_offset(tmp_path, "t", 0) == 10


def test_an_unfinished_file_is_never_read(tmp_path: Path) -> None:
    """What a crash leaves under a temporary name is no event."""
    (path,) = write(tmp_path, 0, 9)
    (path.parent / f".{path.name}.ab.tmp").write_bytes(b"torn")
    assert offsets(event_log.read_events(tmp_path)) == list(range(10))


def test_a_torn_file_is_named(tmp_path: Path) -> None:
    """A truncated file is an error that names it, never fewer events."""
    (path,) = write(tmp_path, 0, 9)
    path.write_bytes(path.read_bytes()[:50])
    with pytest.raises(SourceError, match=path.name):
        event_log.read_events(tmp_path)


def test_a_missing_folder_is_empty_only_with_a_schema(tmp_path: Path) -> None:
    """Without a schema a folder that does not exist is an error that says what does."""
    write(tmp_path / "departures", 0, 1)
    with pytest.raises(SourceError, match=r"arrivals holds no events; .* has departures"):
        event_log.read_events(tmp_path / "arrivals")
    schema = pa.schema([("a", pa.int64()), ("b", pa.string())])
    assert event_log.read_events(tmp_path / "arrivals", columns=["b"], schema=schema).schema.names == ["b"]


def test_an_unknown_column_is_refused(tmp_path: Path) -> None:
    """A column that no file has is named, with the nearest that exists."""
    write(tmp_path, 0, 1)
    with pytest.raises(SourceError, match="no column 'orign'; did you mean 'origin'"):
        event_log.read_events(tmp_path, columns=["orign"])


def test_a_column_that_older_files_lack_is_null_there(tmp_path: Path) -> None:
    """A topic's schema may grow."""
    write(tmp_path, 0, 1)
    wider = events(2, 3).append_column("late", pa.array([1, 0]))
    event_log.write_events(tmp_path, wider, topic_id="t-1", partition=2, first=2, last=3)
    assert event_log.read_events(tmp_path, columns=["late"])["late"].to_pylist() == [None, None, 1, 0]


def test_events_outside_their_range_are_refused(tmp_path: Path) -> None:
    """A range that does not cover its rows would move the cursor wrongly."""
    with pytest.raises(UsageError, match=r"0\.\.9 do not lie in the range 1\.\.9"):
        event_log.write_events(tmp_path, events(0, 9), topic_id="t", partition=0, first=1, last=9)
    with pytest.raises(UsageError, match="lack '_arrival'"):
        event_log.write_events(tmp_path, events(0, 1).drop("_arrival"), topic_id="t", partition=0, first=0, last=1)


def blind_to_overlaps(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(event_log, "overlaps", lambda files: False)


def parts_count_as_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    found = event_log.event_files
    monkeypatch.setattr(
        event_log,
        "event_files",
        lambda folder: tuple(msgspec.structs.replace(f, part=1, parts=1) for f in found(folder)),
    )


def gaps_are_skipped(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        event_log, "next_offset", lambda folder, *_: max(r.last for r in event_log.stored_ranges(folder)) + 1
    )


@pytest.mark.parametrize(
    ("plant", "check"),
    [
        (blind_to_overlaps, test_an_offset_stored_twice_is_read_once),
        (parts_count_as_whole, test_a_write_makes_one_part_per_day_of_arrival),
        (gaps_are_skipped, test_the_cursor_stops_at_a_gap),
    ],
)
def test_planted_fault_is_caught(
    plant: Callable[[pytest.MonkeyPatch], None],
    check: Callable[[Path], None],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Each promise of the log has a test that notices when it is broken."""
    plant(monkeypatch)
    with pytest.raises((AssertionError, ValueError)):
        check(tmp_path)
