"""Which of the rows that are about to be loaded does their contract let through?

They are judged where they lie, by one DuckDB statement over the source's files: only what is set aside is ever held,
and that piece by piece. Judged are the rows of a range of event times, and those without an event time, which belong to
no range. In = accepted + quarantined.
"""

import hashlib
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import duckdb
import msgspec
import numpy as np
import pyarrow as pa

from featurestore.offline.bounds import Late, within
from featurestore.offline.connection import Limits, connection
from featurestore.offline.sources import PART_BITS, Scan
from featurestore.offline.sql_types import identifier, instant
from validation.check import ARRIVAL
from validation.compiled.batch import Fallback, Rejections, compile_batch
from validation.compiled.relation import ROW, QueriedRows
from validation.contract import Contract
from validation.files import digest_of
from validation.quarantine import Origin, QuarantineSink, rejected_rows
from validation.verdict import Verdict

PIECE: Final = 50_000
"""Rows that are set aside at a time."""


class JudgedSource(msgspec.Struct, frozen=True, kw_only=True):
    """What became of the rows of a range."""

    verdict: Verdict
    accepted: Scan
    """The source without the rows that are set aside."""
    rejections: Rejections


def judge_source(
    scan: Scan,
    contract: Contract,
    timestamp: str,
    start_us: int | None,
    end_us: int | None,
    *,
    limits: Limits,
    quarantine: Path,
    fallback: Fallback | None = None,
    late: Late | None = None,
) -> JudgedSource:
    """Judges the rows by the contract as it is kept at `source`, and stores below `quarantine` those to be set aside.

    Nothing is set aside where the verdict blocks or a quarantining rule could not be judged: nothing is loaded then.
    `late` says which rows before the range are judged too. `_arrival` is the source's own column, else when a row's
    file landed. Raises SourceError and ConfigurationError.
    """
    contract = contract.at("source")
    check = compile_batch(contract)
    with connection(limits) as session:
        session.execute("SET preserve_insertion_order = true")
        rows = _rows(session, scan, timestamp, within(scan, timestamp, start_us, end_us, late))
        verdict = check.run_query(rows, fallback=fallback)
        if verdict.stops or not any(r.mode == "quarantine" and r.unexpected for r in verdict.rules):
            return JudgedSource(verdict=verdict, accepted=scan, rejections=check.rejections_of(()))
        rejections = check.rejections(rows)
        sink = QuarantineSink(quarantine, source=contract.source, contract=contract.name, version=contract.version)
        aside = pa.table({ROW: pa.array(rejections.numbers, pa.int64())})
        session.register("rejected", aside)
        for origin, first, last, piece, reasons in _pieces(session, scan, rows, rejections, (start_us, end_us)):
            numbered = piece.column(ROW).to_numpy() & ((1 << PART_BITS) - 1)
            by_place = dict(enumerate(reasons))
            kept = [
                msgspec.structs.replace(row, offset=int(numbered[row.offset]))
                for row in rejected_rows(piece.drop_columns([ROW]), by_place)
            ]
            sink.store(origin, first, last, kept, partly=True)
        without = f"{rows.text} ANTI JOIN rejected USING ({identifier(ROW)})"
        (accepted,) = session.execute(f"SELECT count(*) FROM {without}").fetchall()[0]
        assert accepted + len(rejections) == verdict.rows, "a row was neither accepted nor set aside"
    return JudgedSource(
        verdict=verdict, accepted=msgspec.structs.replace(scan, aside=aside, files=()), rejections=rejections
    )


def _rows(session: duckdb.DuckDBPyConnection, scan: Scan, timestamp: str, meant: str) -> QueriedRows:
    ts = instant(timestamp, scan.column(timestamp, role="timestamp column"), place=scan.name)
    where = f"WHERE ({meant}) OR {ts} IS NULL"
    fields = [
        field.with_type(field.type.value_type) if pa.types.is_dictionary(field.type) else field for field in scan.schema
    ]
    arrival = ""
    if ARRIVAL not in scan.schema.names and scan.parts:
        landed = ", ".join(str(path.stat().st_mtime_ns // 1_000) for path in scan.parts)
        place = f"({identifier(ROW)} >> {PART_BITS}) + 1"
        arrival = f", make_timestamptz(list_extract([{landed}]::BIGINT[], {place})) AS {identifier(ARRIVAL)}"
        fields.append(pa.field(ARRIVAL, pa.timestamp("us", "UTC")))
    source = scan.register_numbered(session, "source")
    return QueriedRows(session, f"(SELECT *{arrival} FROM {source} {where})", pa.schema(fields))


def _pieces(
    session: duckdb.DuckDBPyConnection,
    scan: Scan,
    rows: QueriedRows,
    rejections: Rejections,
    bounds: tuple[int | None, int | None],
) -> Iterator[tuple[Origin, int, int, pa.Table, list[tuple[str, ...]]]]:
    """What is set aside: origin, first and last offset that were judged there, the rows with `ROW`, their reasons."""
    row, names = identifier(ROW), ", ".join(identifier(name) for name in scan.schema.names)
    extents = session.execute(
        f"SELECT {row} >> {PART_BITS} AS part, min({row}), max({row}) FROM {rows.text} GROUP BY part"
    ).fetchall()
    offsets = (1 << PART_BITS) - 1
    for part, first, last in sorted(extents):
        inside = (rejections.numbers >= first) & (rejections.numbers <= last)
        places = np.flatnonzero(inside)
        if not len(places):
            continue
        origin = _origin(scan, part, bounds)
        begin = first & offsets
        for start in range(0, len(places), PIECE):
            some = places[start : start + PIECE]
            low, high = int(rejections.numbers[some[0]]), int(rejections.numbers[some[-1]])
            piece = session.sql(
                f"SELECT {names}, {row} FROM {rows.text} SEMI JOIN rejected USING ({row}) "
                f"WHERE {row} BETWEEN {low} AND {high} ORDER BY {row}"
            ).to_arrow_table()
            assert piece.num_rows == len(some), "a row was set aside twice, or not at all"
            end = (last if start + PIECE >= len(places) else high) & offsets
            yield origin, begin, end, piece, [rejections.reasons[code] for code in rejections.codes[some].tolist()]
            begin = end + 1


def _origin(scan: Scan, part: int, bounds: tuple[int | None, int | None]) -> Origin:
    if scan.parts:
        return Origin(name=str(scan.parts[part]), id=digest_of(scan.parts[part]))
    # No files of ours: the rows of this reading are numbered, so the reading is the origin.
    files = sorted(getattr(scan.relation, "files", ()))
    reading = "\0".join([scan.name, *map(str, bounds), *files])
    return Origin(name=scan.name, id=hashlib.sha256(reading.encode()).hexdigest())
