"""Are rejected rows kept whole, once, and found again?"""

import tempfile
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from validation import quarantine, whole_file
from validation.compiled.batch import compile_batch
from validation.contract import Column, Contract, Rule
from validation.errors import ContractError, PlatformError
from validation.quarantine import Origin, QuarantineSink, Rejected, read_quarantine, rejected_rows, summaries

TOPIC = Origin(name="departures", id="t/1-x", partition=3)


def rejected(offset: int, *rules: str, attempt: int = 1) -> Rejected:
    """A rejected message."""
    row = b'{"n": %d}' % offset
    return Rejected(offset=offset, row=row, reason="contract", rule_ids=rules, arrival_us=offset, attempt=attempt)


def sink(folder: Path, source: str = "departures") -> QuarantineSink:
    """A sink of one contract version."""
    return QuarantineSink(folder, source=source, contract="departures", version="1.0.0")


def test_a_row_is_kept_whole_with_reason_and_origin(tmp_path: Path) -> None:
    """Message, key, rules, contract version, origin, arrival and attempt come back as they were."""
    row = Rejected(offset=7, row=b"\xff\x00", reason="malformed", detail="no UTF-8", arrival_us=5, key=b"k", attempt=2)
    path = sink(tmp_path).store(TOPIC, 5, 9, [row])
    assert path == tmp_path / "departures" / "t%2F1-x-3-5-9.parquet"
    (told,) = read_quarantine(tmp_path).to_pylist()
    assert told["arrival"].timestamp() == 5e-6
    assert (told["row"], told["key"], told["origin"]) == (b"\xff\x00", b"k", "departures")
    assert (told["reason"], told["detail"]) == ("malformed", "no UTF-8")
    assert (told["origin_id"], told["partition"]) == ("t/1-x", 3)
    assert (told["offset"], told["attempt"], told["contract"], told["contract_version"]) == (
        7,
        2,
        "departures",
        "1.0.0",
    )


def test_ranges_that_overlap_after_a_crash_are_read_once(tmp_path: Path) -> None:
    """Each (origin, partition, offset) is taken once, the latest attempt first; the same range replaces itself."""
    keeper = sink(tmp_path)
    keeper.store(TOPIC, 0, 9, [rejected(1, "a"), rejected(8, "a")])
    keeper.store(TOPIC, 5, 20, [rejected(8, "a", "b", attempt=2), rejected(20, "a")])
    keeper.store(TOPIC, 0, 9, [rejected(1, "a"), rejected(8, "a")])
    keeper.store(Origin(name="departures", id="t/1-x", partition=4), 0, 9, [rejected(1, "c")])
    rows = read_quarantine(tmp_path, "departures")
    assert rows.select(["partition", "offset", "rule_ids"]).to_pylist() == [
        {"partition": 3, "offset": 1, "rule_ids": ["a"]},
        {"partition": 3, "offset": 8, "rule_ids": ["a", "b"]},
        {"partition": 3, "offset": 20, "rule_ids": ["a"]},
        {"partition": 4, "offset": 1, "rule_ids": ["c"]},
    ]
    assert [(one.reason, one.rows, one.first_us, one.last_us) for one in summaries(rows)] == [
        *(("a", 2, 1, 20), ("a, b", 1, 8, 8), ("c", 1, 1, 1)),
    ]


def test_the_cursor_is_the_end_of_the_contiguous_ranges(tmp_path: Path) -> None:
    """A gap ends it: what lies behind one may not all be stored."""
    keeper = sink(tmp_path)
    assert keeper.next_offset(TOPIC) is None
    for first, last in ((0, 4), (5, 9), (7, 12), (20, 29)):
        keeper.store(TOPIC, first, last, [rejected(last)])
    assert keeper.next_offset(TOPIC) == 13
    assert keeper.next_offset(Origin(name="departures", id="t/1-x", partition=0)) is None


def test_nothing_rejected_leaves_no_file(tmp_path: Path) -> None:
    """And replaces what an earlier judgement of the same range kept."""
    keeper = sink(tmp_path)
    keeper.store(TOPIC, 0, 9, [rejected(1)])
    assert keeper.store(TOPIC, 0, 9, []) is None
    assert read_quarantine(tmp_path).num_rows == 0
    assert read_quarantine(tmp_path / "none").num_rows == 0


def test_a_crash_while_writing_leaves_nothing_that_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The planted fault: the disk fails halfway. No file, no torn file, and the next attempt succeeds."""

    def failing(_: int) -> None:
        raise OSError("disk full")

    with monkeypatch.context() as broken:
        broken.setattr(whole_file.os, "fsync", failing)
        with pytest.raises(OSError, match="disk full"):
            sink(tmp_path).store(TOPIC, 0, 9, [rejected(1)])
    assert list((tmp_path / "departures").iterdir()) == []
    sink(tmp_path).store(TOPIC, 0, 9, [rejected(1)])
    assert read_quarantine(tmp_path).num_rows == 1


def test_offsets_outside_the_range_are_refused(tmp_path: Path) -> None:
    """A file's name must cover its rows, each once."""
    for offsets in ([10], [1, 1]):
        with pytest.raises(ValueError, match=r"are not distinct offsets of 0\.\.9"):
            sink(tmp_path).store(TOPIC, 0, 9, [rejected(offset) for offset in offsets])


def test_an_unknown_source_and_a_torn_file_are_named(tmp_path: Path) -> None:
    """One line each: what exists, which file."""
    path = sink(tmp_path).store(TOPIC, 0, 9, [rejected(1)])
    with pytest.raises(ContractError, match="did you mean 'departures'"):
        read_quarantine(tmp_path, "departure")
    assert path is not None
    path.write_bytes(path.read_bytes()[:-9])
    with pytest.raises(PlatformError, match=r"t%2F1-x-3-0-9\.parquet: the quarantine file cannot be read"):
        read_quarantine(tmp_path)


def test_a_source_cannot_leave_the_folder(tmp_path: Path) -> None:
    """Names with separators stay one folder below the quarantine."""
    keeper = sink(tmp_path / "q", "../../etc")
    path = keeper.store(Origin(name="x", id="../y"), 0, 0, [rejected(0)])
    assert path is not None
    assert path.resolve().parent.parent == (tmp_path / "q").resolve()
    assert read_quarantine(tmp_path / "q").column("source").to_pylist() == ["../../etc"]


@settings(deadline=None, max_examples=25)
@given(st.lists(st.one_of(st.none(), st.floats()), max_size=40), st.integers(1, 7))
def test_in_is_accepted_plus_quarantined(values: list[float | None], size: int) -> None:
    """Through compile, split, sink and reader, in batches that are stored twice, no row is lost or doubled."""
    contract = Contract(
        name="c",
        version="1",
        source="s",
        columns=(Column(name="x", logical_type="number"),),
        rules=(
            Rule(
                id="range",
                expectation="expect_column_values_to_be_between",
                arguments={"column": "x", "min_value": 0},
                mode="quarantine",
            ),
        ),
    )
    check, accepted = compile_batch(contract), 0
    with tempfile.TemporaryDirectory() as folder:
        keeper, origin = QuarantineSink(Path(folder), source="s"), Origin(name="f", id="digest")
        table = pa.table({"x": pa.array(values, pa.float64())})
        for first in range(0, len(values), size):
            part = table.slice(first, size)
            kept, aside = check.split(part)
            accepted += kept.num_rows
            rows = [Rejected(offset=first + n, row=b"", reason="contract", rule_ids=ids) for n, ids in aside.items()]
            for _ in range(2):
                keeper.store(origin, first, first + part.num_rows - 1, rows)
        assert accepted + read_quarantine(Path(folder)).num_rows == len(values)


def test_a_file_row_is_kept_as_json_that_loses_nothing(tmp_path: Path) -> None:
    """NaN stays NaN, times stay readable."""
    table = pa.table({"x": [float("nan")], "t": pa.array([0], pa.timestamp("us", "UTC"))})
    (row,) = rejected_rows(table, {0: ("r",)})
    assert row.row == b'{"x": NaN, "t": "1970-01-01 00:00:00+00:00"}'
    assert pq.read_schema(sink(tmp_path).store(TOPIC, 0, 0, [row])).equals(quarantine.SCHEMA)
