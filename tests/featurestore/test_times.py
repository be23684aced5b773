"""One value is one instant, on every path and in every format; what is none is refused by all of them."""

import json
from datetime import UTC, date, datetime
from pathlib import Path
from typing import Any

import msgspec
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from featurestore.api.request import from_json, instant_of
from featurestore.clock import parse_instant
from featurestore.coercion import coerce
from featurestore.errors import PlatformError
from featurestore.offline.connection import Limits, connection
from featurestore.offline.entity_rows import EntityRows
from featurestore.offline.sources import scan_parquet, scan_table
from featurestore.offline.sql_types import instant
from featurestore.offline.time_columns import units_of, with_instants
from featurestore.online.types import as_instants
from featurestore.plan import Source, Topic, View
from streaming.decode import Decoder
from streaming.source.file import FileSource as EventFile
from validation.contract import Column, Contract
from validation.files import read_data
from validation.instant import number_us, text_us
from validation.instant_columns import column_us

NOON = 1_710_072_000_000_000
"""2024-03-10T12:00:00Z."""
TEXTS = {
    "2024-03-10T12:00:00Z": NOON,
    "2024-03-10t12:00:00z": NOON,
    "2024-03-10 12:00:00": NOON,
    "2024-03-10T12:00": NOON,
    "2024-03-10 12:00:00+00": NOON,
    "2024-03-10T13:30:00+0130": NOON,
    "2024-03-10T04:00:00-08:00": NOON,
    "2024-03-10": NOON - 43_200_000_000,
    "2024-03-10T12:00:00.5Z": NOON + 500_000,
    "2024-03-10T12:00:00,5": NOON + 500_000,
    "2024-03-10T12:00:00.9999999999Z": NOON + 999_999,
    "1969-12-31T23:59:59.999999Z": -1,
    "1969-12-31T23:59:59.9999999": -1,
    "0001-01-01": -62_135_596_800_000_000,
    "9999-12-31T23:59:59.999999Z": 253_402_300_799_999_999,
}
NO_TEXTS = ["", "NA", "yesterday", "2024-02-30", "2024-03-10T24:00", "2024-03-10T12:60", "20240310", "2024-W10-7",
            "10.03.2024", "03/10/2024", "1710072000", "2024-03-10T12:00:00 Europe/Berlin", " 2024-03-10"]  # fmt: skip
NUMBERS = {NOON // 1_000_000: NOON, NOON // 1_000: NOON, NOON: NOON, NOON * 1_000 + 999: NOON}
NO_NUMBERS = [0, -1, 20240310, 99_999_999_999, 1 << 62]


def by_sql(column: pa.Array, unit: str = "") -> list[int | None]:
    scan = with_instants(scan_table(pa.table({"ts": column}), name="rows"), ["ts"], unit=unit)
    read = instant("ts", scan.column("ts", role="timestamp column"), place="rows")
    with connection(Limits(threads=1)) as session:
        found = session.sql(f"SELECT {read} AS us FROM {scan.register(session, 'rows')}").to_arrow_table()["us"]
    us: list[int | None] = found.to_pylist()
    return us


def by_entity_rows(column: pa.Array) -> list[int | None]:
    asked = EntityRows(pa.table({"ts": column}), "ts")
    return [int(t) if known else None for t, known in zip(asked.t_us, asked.has_t, strict=True)]


def arrow_readers(column: pa.Array) -> dict[str, list[int | None]]:
    return {
        "arrow": column_us(column).to_pylist(),
        "sql": by_sql(column),
        "entity rows": by_entity_rows(column),
        "writes": as_instants(column).cast(pa.int64()).to_pylist(),
    }


class Message(msgspec.Struct):
    value: bytes
    key: bytes | None = None


class Arrived(Message):
    timestamp_us: int = 0


def decoder(unit: Any = "", columns: tuple[Any, ...] = ()) -> Decoder:
    topic = Topic(name="clicks", bootstrap_servers="", message_format="json", schema_text="seen timestamp")
    source = Source(name="clicks", path="clicks", timestamp_field="ts", topic=topic, time_unit=unit)
    return Decoder(
        [View(name="v", version=1, kind="windowed", join_keys=(), features=columns, ttl_us=0, source=source)]
    )


@pytest.mark.parametrize(("text", "us"), TEXTS.items())
def test_a_text_is_one_instant_for_every_reader(text: str, us: int) -> None:
    """SQL, Arrow, entity rows, messages, requests and arguments read by one pattern."""
    found = arrow_readers(pa.array([text, None]))
    assert found == {reader: [us, None] for reader in found}
    assert arrow_readers(pa.array([text], pa.string()).dictionary_encode())["sql"] == [us]
    assert parse_instant(text) == instant_of(text) == text_us(text) == us
    decoded = decoder().decode([Message(json.dumps({"ts": text, "seen": text}).encode())])
    assert decoded.ts_us.tolist() == [us], decoded.malformed
    assert decoder().table(decoded.rows)["seen"].cast(pa.int64()).to_pylist() == [us]
    [sent] = coerce([from_json(text, "UNIX_TIMESTAMP")], "UNIX_TIMESTAMP")
    assert column_us(pa.array([sent], pa.timestamp("us", "UTC"))).to_pylist() == [us]


@pytest.mark.parametrize("text", NO_TEXTS)
def test_a_text_that_is_no_instant_is_one_for_no_reader(text: str) -> None:
    """What one parser takes and another does not (basic dates, week dates, zone names) nobody takes."""
    column = pa.array([text])
    for read in (column_us, by_sql, by_entity_rows, as_instants):
        with pytest.raises((ValueError, PlatformError, pa.ArrowException)):
            read(column)
    for single in (parse_instant, instant_of, text_us):
        with pytest.raises((ValueError, PlatformError)):
            single(text)
    assert [bad.reason for bad in decoder().decode([Message(json.dumps({"ts": text}).encode())]).malformed] == [
        "wrong_type"
    ]


@pytest.mark.parametrize(("number", "us"), NUMBERS.items())
@pytest.mark.parametrize("kind", [pa.int64(), pa.float64()])
def test_a_number_is_an_instant_in_the_unit_that_its_magnitude_says(number: int, us: int, kind: pa.DataType) -> None:
    """Seconds, milliseconds, microseconds and nanoseconds from 1990 to 2100 cannot be taken for each other."""
    if kind == pa.float64() and number > 1 << 53:
        return
    found = arrow_readers(pa.array([number, None], kind))
    assert found == {reader: [us, None] for reader in found}


@pytest.mark.parametrize("number", NO_NUMBERS)
def test_a_number_that_is_a_time_in_no_unit_is_refused(number: int) -> None:
    """1970, dates written as numbers, the far future: never in silence."""
    for read in (column_us, by_sql, by_entity_rows, as_instants):
        with pytest.raises((ValueError, PlatformError, pa.ArrowException), match="1990 to 2100"):
            read(pa.array([number]))
    with pytest.raises(PlatformError):
        coerce([number], "UNIX_TIMESTAMP")


@pytest.mark.parametrize(("unit", "factor"), [("s", 1), ("ms", 1_000), ("us", 1_000_000), ("ns", 1_000_000_000)])
@pytest.mark.parametrize("seconds", [0, -1, 5, 1_710_072_000])
def test_a_declared_unit_holds_for_every_number(unit: Any, factor: int, seconds: int) -> None:
    """The years before 1990 are times too, once somebody says the unit."""
    us, number = seconds * 1_000_000, seconds * factor
    assert number_us(number, unit) == us
    assert by_sql(pa.array([number]), unit) == column_us(pa.array([number]), unit).to_pylist() == [us]
    assert column_us(pa.array([from_json(number, "UNIX_TIMESTAMP", unit)])).to_pylist() == [us]
    arrived = Arrived(json.dumps({"ts": number, "seen": number}).encode())
    found = decoder(unit).decode([arrived])
    assert found.ts_us.tolist() == [us]
    assert decoder(unit).table(found.rows)["seen"].cast(pa.int64()).to_pylist() == [us]


@pytest.mark.parametrize("dtype", [pa.date32(), pa.date64(), pa.timestamp("s"), pa.timestamp("ns", "Asia/Tokyo")])
def test_dates_and_timestamps_of_every_unit_are_instants(dtype: pa.DataType) -> None:
    """A date is its midnight in UTC."""
    midnight = NOON - 43_200_000_000
    column = pa.array([date(2024, 3, 10) if pa.types.is_date(dtype) else datetime(2024, 3, 10, tzinfo=UTC)], dtype)
    found = arrow_readers(column)
    assert found == {reader: [midnight] for reader in found}


def test_messages_in_another_unit_are_set_aside_with_what_to_declare() -> None:
    """Milliseconds of JavaScript, seconds of Python: neither becomes January 1970."""
    values = [NOON // 1_000, NOON // 1_000_000, NOON / 1_000_000, True, NOON * 1_000, 20240310]
    found = decoder().decode([Message(json.dumps({"ts": value}).encode()) for value in values])
    assert found.ts_us.tolist() == []
    told = [bad.detail for bad in found.malformed]
    assert "time_unit: ms" in told[0]
    assert "time_unit: s" in told[1]
    assert "time_unit: s" in told[2]
    assert "time_unit: ns" in told[4]


def test_many_messages_together_are_read_as_one_by_one() -> None:
    """The fast way lets nothing through that the other would not."""
    sound = [Arrived(json.dumps({"ts": NOON + each}).encode(), None, NOON) for each in range(300)]
    assert decoder().decode(sound).ts_us.tolist() == [NOON + each for each in range(300)]
    mixed = [*sound, Arrived(b'{"ts": 1710072000}', None, NOON)]
    found = decoder().decode(mixed)
    assert len(found.rows) == 300
    assert [bad.index for bad in found.malformed] == [300]


def test_the_unit_that_apply_shows_is_the_one_that_is_read() -> None:
    """A column of several units has no name."""
    rows = pa.table({"ts": [NOON // 1_000], "made": [NOON], "mixed": pa.array([NOON], pa.int64())})
    scan = scan_table(pa.concat_tables([rows, rows.set_column(2, "mixed", [pa.array([NOON // 1_000])])]), name="rows")
    told = [(each.column, each.unit) for each in units_of(scan, ["ts", "made", "mixed", None])]
    assert told == [("ts", "ms"), ("made", "us"), ("mixed", "")]


def test_rows_of_a_file_keep_their_numbers_after_their_times_are_read(tmp_path: Path) -> None:
    """A rejected row is still found in its file."""
    pq.write_table(pa.table({"ts": ["2024-03-10", "2024-03-11"]}), tmp_path / "a.parquet")
    scan = with_instants(scan_parquet(tmp_path / "a.parquet", repo=tmp_path, name="f", columns=["ts"]), ["ts"])
    assert scan.parts
    with connection(Limits(threads=1)) as session:
        found = session.sql(f"SELECT * FROM {scan.register_numbered(session, 'f')}").to_arrow_table()
    assert pa.types.is_timestamp(found.schema.field("ts").type)
    assert found.num_columns == 2


ROWS = [
    {"code": "007", "word": "NA", "n": 100_000, "flag": True, "at": "2024-03-10 12:00:00", "said": "a"},
    {"code": "1e5", "word": "null", "n": 5, "flag": False, "at": "2024-03-10T12:00:00.5Z", "said": ""},
    {"code": "true", "word": "NaN", "n": None, "flag": None, "at": None, "said": None},
]
TYPES = {"code": "string", "word": "string", "n": "integer", "flag": "boolean", "at": "timestamp", "said": "string"}
CSV = (
    "code,word,n,flag,at,said\n"
    '007,NA,100000,True,2024-03-10 12:00:00,"a"\n'
    '1e5,null,5,false,2024-03-10T12:00:00.5Z,""\n'
    "true,NaN,,,,\n"
)


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig"])
def test_csv_json_lines_and_parquet_of_the_same_rows_are_the_same_rows(tmp_path: Path, encoding: str) -> None:
    """Words stay words, zeros stay in front, an empty text in quotes is no null; a byte order mark is no data."""
    columns = tuple(Column(name=name, logical_type=logical) for name, logical in TYPES.items())
    contract = Contract(name="c", version="1", source="s", columns=columns, rules=())
    (tmp_path / "rows.csv").write_bytes(CSV.encode(encoding))
    (tmp_path / "rows.jsonl").write_bytes("\n".join(map(json.dumps, ROWS)).encode(encoding))
    at = pa.array([NOON, NOON + 500_000, None], pa.timestamp("us", "UTC"))
    pq.write_table(pa.Table.from_pylist(ROWS).drop_columns(["at"]).append_column("at", at), tmp_path / "rows.parquet")
    tables = [
        read_data(tmp_path / f"rows.{kind}", contract).select(list(TYPES)) for kind in ("csv", "jsonl", "parquet")
    ]
    assert tables[0].to_pylist() == tables[1].to_pylist() == tables[2].to_pylist()
    assert tables[0]["said"].to_pylist() == ["a", "", None]


def test_a_byte_order_mark_is_no_part_of_a_files_first_event(tmp_path: Path) -> None:
    """Else the first line would be set aside as no JSON."""
    (tmp_path / "e.jsonl").write_bytes(b'\xef\xbb\xbf{"ts": "2024-03-10"}\n{"ts": 1710072000000}\n')
    source = EventFile(tmp_path / "e.jsonl", topic="t", arrival_us=5, timestamp="ts")
    source.seek(source.partition, 0)
    [batch] = source.poll(0)
    assert [record.value for record in batch.records] == [b'{"ts": "2024-03-10"}', b'{"ts": 1710072000000}']
    assert [record.timestamp_us for record in batch.records] == [NOON - 43_200_000_000, NOON]
