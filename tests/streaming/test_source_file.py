"""A file reads as a topic of one partition, by the same promises as Kafka."""

from datetime import UTC, datetime
from pathlib import Path

import orjson
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from featurestore.errors import SourceError, UnknownName
from featurestore.plan import Field, JoinKey, Topic, View
from featurestore.plan import Source as PlanSource
from streaming.pipeline import TopicPipeline
from streaming.source.file import FileSource, digest_of
from streaming.source.records import NotAssigned, OffsetGone, Record, TopicPartition, UnknownColumn

ARRIVAL_US = 1_700_000_000_000_000


@pytest.fixture
def parquet(tmp_path: Path) -> Path:
    path = tmp_path / "events.parquet"
    rows = {
        "id": list(range(10)),
        "who": ["a", None] * 5,
        "ts": [datetime(2024, 1, 1, 0, 0, second, tzinfo=UTC) for second in range(10)],
    }
    pq.write_table(pa.table(rows), path, row_group_size=4)
    return path


@pytest.fixture
def lines(tmp_path: Path) -> Path:
    path = tmp_path / "events.jsonl"
    path.write_bytes(b'{"who":"a","ts":"2024-01-01T00:00:00Z"}\r\n\n{"who":\n{"who":7,"ts":"soon"}')
    return path


def everything(source: FileSource, offset: int = 0) -> list[Record]:
    [assigned] = source.drain_rebalances()
    source.seek(assigned.partitions[0], offset)
    records, position = [], offset
    while batches := source.poll(0):
        assert batches[0].position_before == position
        position = batches[0].position_after
        records += batches[0].records
    return records


def open_file(path: Path, **settings: object) -> FileSource:
    return FileSource(path, topic="t", arrival_us=ARRIVAL_US, **settings)  # type: ignore[arg-type]


@pytest.mark.parametrize("max_records", [1, 3, 100])
@pytest.mark.parametrize("offset", [0, 3, 4, 9, 10])
def test_rows_come_in_order_from_any_offset(parquet: Path, max_records: int, offset: int) -> None:
    """Row groups and polls cut where they like; rows and offsets agree."""
    records = everything(open_file(parquet, key="who", timestamp="ts", max_records=max_records), offset)
    assert [orjson.loads(record.value or b"")["id"] for record in records] == list(range(offset, 10))
    assert [record.offset for record in records] == list(range(offset, 10))


def test_key_and_time_come_from_columns(parquet: Path) -> None:
    """A null key is no key; the time is in microseconds."""
    first, second, *_ = everything(open_file(parquet, key="who", timestamp="ts"))
    assert (first.key, first.timestamp_us) == (b"a", 1_704_067_200_000_000)
    assert second.key is None


def test_without_a_time_column_the_landing_counts(parquet: Path) -> None:
    """Arrival is the file's."""
    assert {record.timestamp_us for record in everything(open_file(parquet))} == {ARRIVAL_US}


def test_the_digest_is_the_topic_id(parquet: Path, tmp_path: Path) -> None:
    """The same bytes elsewhere are the same topic; other bytes are another."""
    copy = tmp_path / "copy.parquet"
    copy.write_bytes(parquet.read_bytes())
    assert open_file(copy).partition == open_file(parquet).partition
    copy.write_bytes(parquet.read_bytes() + b"x")
    assert digest_of(copy) != digest_of(parquet)


def test_lines_are_handed_over_as_they_stand(lines: Path) -> None:
    """Broken and empty ones too, each with its row number: the decoder isolates them."""
    records = everything(open_file(lines, key="who", timestamp="ts"))
    assert [record.value for record in records] == [
        b'{"who":"a","ts":"2024-01-01T00:00:00Z"}',
        b"",
        b'{"who":',
        b'{"who":7,"ts":"soon"}',
    ]
    assert [record.key for record in records] == [b"a", None, None, b"7"]
    assert [record.timestamp_us for record in records] == [1_704_067_200_000_000, *[ARRIVAL_US] * 3]


def test_an_empty_file_has_no_rows(tmp_path: Path) -> None:
    """And that is not an error."""
    path = tmp_path / "empty.jsonl"
    path.touch()
    source = open_file(path)
    assert everything(source) == []
    assert source.end_offsets([source.partition]) == {source.partition: 0}


def test_nothing_is_delivered_before_the_first_seek_or_while_paused(parquet: Path) -> None:
    """As in every source."""
    source = open_file(parquet)
    assert source.poll(0) == []
    source.seek(source.partition, 0)
    source.pause([source.partition])
    assert source.poll(0) == []
    source.resume([source.partition])
    assert len(source.poll(0)) == 1


def test_an_offset_beyond_the_rows_is_named(parquet: Path) -> None:
    """A stored offset of another file is not taken for the end of this one."""
    source = open_file(parquet)
    source.seek(source.partition, 11)
    with pytest.raises(OffsetGone, match="no offset 11: it holds 0 to 10"):
        source.poll(0)


def test_other_partitions_and_topics_are_refused(parquet: Path) -> None:
    """A file is one partition of one topic."""
    source = open_file(parquet)
    with pytest.raises(NotAssigned):
        source.seek(TopicPartition("t", "another file", 0), 0)
    with pytest.raises(UnknownName, match="what exists: t"):
        source.partitions_of("x")


def test_missing_torn_and_foreign_files_are_named(parquet: Path, tmp_path: Path) -> None:
    """One line each: what was found where."""
    torn = tmp_path / "torn.parquet"
    torn.write_bytes(parquet.read_bytes()[:-10])
    with pytest.raises(SourceError, match=r"torn\.parquet is not a whole Parquet file"):
        open_file(torn)
    with pytest.raises(SourceError, match="there is no file"):
        open_file(tmp_path / "none.parquet")
    (tmp_path / "x.csv").touch()
    with pytest.raises(SourceError, match=r"end in \.parquet"):
        open_file(tmp_path / "x.csv")


def test_unknown_columns_are_named(parquet: Path) -> None:
    """With what the file has; a time must be a timestamp."""
    with pytest.raises(UnknownColumn, match="no column 'whom'; it has id, who, ts"):
        open_file(parquet, key="whom")
    wrong = parquet.with_name("wrong.parquet")
    pq.write_table(pa.table({"flag": [True]}), wrong)
    with pytest.raises(UnknownColumn, match=r"'flag' of .*: bool was found"):
        open_file(wrong, timestamp="flag")


def test_a_row_without_a_time_is_refused(tmp_path: Path) -> None:
    """A record needs one; zero would be 1970."""
    path = tmp_path / "gaps.parquet"
    pq.write_table(pa.table({"ts": pa.array([1, None], pa.timestamp("us"))}), path)
    with pytest.raises(SourceError, match=r"1 rows of .* have no 'ts'"):
        everything(open_file(path, timestamp="ts"))


@pytest.mark.parametrize(
    ("column", "accepted", "aside"),
    [
        (pa.array([2**60 + 1, 2**60 + 2, None]), [2**60 + 1, 2**60 + 2, None], 0),
        (pa.array([2**63 + 1, 5], pa.uint64()), [5], 1),
        (pa.array([2.0**60, 5.5, None]), [None], 2),
        (pa.array(["5", None]), [None], 1),
    ],
    ids=["int64", "uint64", "double", "text"],
)
def test_each_file_keeps_its_integers_or_sets_rows_aside(
    tmp_path: Path, column: pa.Array, accepted: list[int | None], aside: int
) -> None:
    """Files of one topic whose column differs in type: no value is rounded; a row of another type is set aside."""
    path = tmp_path / "rows.parquet"
    times = pa.array([ARRIVAL_US] * len(column), pa.timestamp("us", "UTC"))
    pq.write_table(pa.table({"user": range(len(column)), "x": column, "ts": times}), path)
    view = View(
        name="v", version=1, kind="latest", join_keys=(JoinKey(entity="user", name="user", dtype="INT64"),),
        features=(Field(name="x", dtype="INT64"),), ttl_us=0,
        source=PlanSource(
            name="t", path="log", timestamp_field="ts",
            topic=Topic(name="t", bootstrap_servers="", message_format="json"),
        ),
    )  # fmt: skip
    source = FileSource(path, topic="t", arrival_us=ARRIVAL_US, key="user", timestamp="ts")
    source.seek(source.partition, 0)
    [batch] = source.poll(0)
    judged = TopicPipeline([view]).judge(batch)
    assert judged.events["x"].to_pylist() == accepted
    assert [bool(each.reason) for each in judged.rejected] == [True] * aside
