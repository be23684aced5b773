"""What do a source's promises of time and volume need to know of its rows? One statement over files of any size."""

import pyarrow as pa

from featurestore.offline.connection import Limits, connection
from featurestore.offline.sources import Scan
from featurestore.offline.sql_types import instant
from validation.check import ARRIVAL
from validation.contract import Contract
from validation.sla import Facts, needed_of


def facts_of_source(scan: Scan, contract: Contract, *, now_us: int, limits: Limits) -> Facts:
    """The facts as of now, the same as `validation.sla.facts_of` gives for the rows as a table.

    Of files that do not say when their rows arrived, `_arrival` is when the file landed: only freshness can be told by
    it. Raises SourceError.
    """
    asked = ["count(*)"]
    answers: list[tuple[str, str]] = [("rows", "")]
    absent: set[str] = set()
    newest: dict[str, int] = {}
    for promise in contract.sla:
        lacking = [name for name in needed_of(promise) if not _is_instant(scan, name)]
        if lacking == [ARRIVAL] and promise.kind == "freshness" and scan.parts:
            newest[ARRIVAL] = max(part.stat().st_mtime_ns for part in scan.parts) // 1000
            continue
        absent.update(lacking)
        if lacking:
            continue
        recent = ""
        if promise.per_us is not None:
            arrived = _us(scan, ARRIVAL)
            recent = f" FILTER (WHERE {arrived} > {now_us - promise.per_us} AND {arrived} <= {now_us})"
        if promise.kind == "freshness":
            asked.append(f"max({_us(scan, promise.column)})")
            answers.append(("newest", promise.column))
        elif promise.kind == "latency":
            took = f"({_us(scan, ARRIVAL)} - {_us(scan, promise.column)})"
            asked += [f"count({took}){recent}", f"sum(({took} > {promise.limit_us})::BIGINT){recent}"]
            answers += [("timed", promise.id), ("slow", promise.id)]
        elif recent:
            asked.append(f"count(*){recent}")
            answers.append(("recent", promise.id))
    with connection(limits) as session:
        columns = [f"{expression} AS c{number}" for number, expression in enumerate(asked)]
        source = scan.register(session, "source")
        found: pa.Table = session.sql(f"SELECT {', '.join(columns)} FROM {source}").to_arrow_table()
    values = [column[0].as_py() for column in found.columns]
    told = {answer: int(value) for answer, value in zip(answers, values, strict=True) if value is not None}
    return Facts(
        rows=told["rows", ""],
        recent={name: value for (kind, name), value in told.items() if kind == "recent"},
        newest_us=newest | {name: value for (kind, name), value in told.items() if kind == "newest"},
        late={name: (value, told.get(("slow", name), 0)) for (kind, name), value in told.items() if kind == "timed"},
        absent=frozenset(absent),
    )


def _us(scan: Scan, column: str) -> str:
    return instant(column, scan.schema.field(column).type, place=scan.name)


def _is_instant(scan: Scan, column: str) -> bool:
    index: int = scan.schema.get_field_index(column)
    return index >= 0 and bool(pa.types.is_timestamp(scan.schema.field(index).type))
