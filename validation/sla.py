"""Is the data as fresh, as timely and as much as was promised?

ODCS `slaProperties` of a contract:

    slaProperties:
      - {property: freshness, value: 3, unit: h, element: weather.event_timestamp}  # age of the newest row, now
      - {property: latency, value: 10, unit: m, element: weather.event_timestamp}  # arrival after event time
      - {property: volume, value: 1000, valueExt: 5000, unit: rows}  # rows, at least and at most

The custom property `per` of a volume or a latency (`1 h`) is the time of arrival, until now, that is looked at.

Freshness by `_arrival` asks whether anything came, by event time whether what came is new: a producer that sends last
week's rows again is fresh by the one and stale by the other. Facts merge, so that a stream may keep them as it goes.
"""

from typing import Any, Final, Literal, Self

import msgspec
import pyarrow as pa
import pyarrow.compute as pc

from validation.check import ARRIVAL
from validation.contract import Contract, Rule
from validation.instant import iso
from validation.promise import Promise
from validation.verdict import RuleVerdict, broken, counted, stated

_INSTANTS: Final = pa.timestamp("us", "UTC")


class Facts(msgspec.Struct, frozen=True, kw_only=True):
    """What promises about time and volume need to know of rows, however many."""

    rows: int = 0
    recent: dict[str, int] = {}
    """Promise id -> rows of its own time, where it has one (`per`)."""
    newest_us: dict[str, int] = {}
    """Column of instants -> the newest of them."""
    late: dict[str, tuple[int, int]] = {}
    """Promise id -> rows with both instants, and of these the late ones."""
    absent: frozenset[str] = frozenset()
    """Columns that rows should have had and had not."""

    def merge(self, other: Self) -> Self:
        """The facts of both, in any order.

        >>> a = Facts(rows=1, newest_us={"t": 5}, late={"l": (1, 1)})
        >>> a.merge(Facts(rows=2, newest_us={"t": 3}, late={"l": (2, 0)}))
        Facts(rows=3, recent={}, newest_us={'t': 5}, late={'l': (3, 1)}, absent=frozenset())
        """
        names = self.recent.keys() | other.recent.keys()
        recent = {name: self.recent.get(name, 0) + other.recent.get(name, 0) for name in sorted(names)}
        late = dict(self.late)
        for name, (timed, slow) in other.late.items():
            before = late.get(name, (0, 0))
            late[name] = (before[0] + timed, before[1] + slow)
        names = self.newest_us.keys() | other.newest_us.keys()
        return type(self)(
            rows=self.rows + other.rows,
            recent=recent,
            newest_us={n: max(f.newest_us[n] for f in (self, other) if n in f.newest_us) for n in sorted(names)},
            late=late,
            absent=self.absent | other.absent,
        )


def facts_of(table: pa.Table, contract: Contract, *, now_us: int) -> Facts:
    """The facts of a table that a contract's promises ask for, as of now."""
    recent: dict[str, int] = {}
    newest: dict[str, int] = {}
    late: dict[str, tuple[int, int]] = {}
    absent: set[str] = set()
    for promise in contract.sla:
        needed = needed_of(promise)
        lacking = [name for name in needed if not _is_instant(table, name)]
        absent.update(lacking)
        if lacking:
            continue
        if promise.kind == "freshness":
            found = pc.max(_us(table, promise.column)).as_py()
            if found is not None:
                newest[promise.column] = found
        elif promise.kind == "latency":
            took = pc.subtract(_us(table, ARRIVAL), _us(table, promise.column))
            if promise.per_us is not None:
                took = took.filter(_within(table, promise.per_us, now_us))
            slow = pc.sum(pc.greater(took, promise.limit_us)).as_py() or 0
            late[promise.id] = (len(took) - took.null_count, slow)
        elif promise.per_us is not None:
            recent[promise.id] = pc.sum(_within(table, promise.per_us, now_us)).as_py() or 0
    return Facts(rows=table.num_rows, recent=recent, newest_us=newest, late=late, absent=frozenset(absent))


def needed_of(promise: Promise) -> tuple[str, ...]:
    """The columns of instants without which a promise cannot be judged.

    >>> needed_of(Promise(id="v", kind="volume", least=1)), needed_of(Promise(id="v", kind="volume", least=1, per_us=5))
    ((), ('_arrival',))
    """
    own = (promise.column,) if promise.column else ()
    arrival = promise.kind == "latency" or promise.per_us is not None
    return tuple(dict.fromkeys((*own, ARRIVAL) if arrival else own))


def _within(table: pa.Table, per_us: int, now_us: int) -> pa.ChunkedArray:
    arrived = _us(table, ARRIVAL)
    return pc.fill_null(pc.and_(pc.greater(arrived, now_us - per_us), pc.less_equal(arrived, now_us)), fill_value=False)


def _is_instant(table: pa.Table, name: str) -> bool:
    return name in table.column_names and pa.types.is_timestamp(table.schema.field(name).type)


def _us(table: pa.Table, name: str) -> pa.ChunkedArray:
    return table.column(name).cast(_INSTANTS, safe=False).cast(pa.int64())


def judge_sla(contract: Contract, facts: Facts, *, now_us: int) -> tuple[RuleVerdict, ...]:
    """A verdict per promise, in their order: broken where a column is absent, no data where no row can tell.

    >>> promise = Promise(id="fresh", kind="freshness", column="t", limit_us=10)
    >>> contract = Contract(name="c", version="1", source="s", columns=(), rules=(), sla=(promise,))
    >>> [judge_sla(contract, Facts(rows=1, newest_us={"t": 5}), now_us=now)[0].outcome for now in (15, 16)]
    ['passed', 'failed']
    >>> judge_sla(contract, Facts(), now_us=0)[0].outcome
    'no data'
    """
    return tuple(_judge(promise, facts, now_us) for promise in contract.sla)


def _judge(promise: Promise, facts: Facts, now_us: int) -> RuleVerdict:
    rule = rule_of(promise)
    # When a file landed says how fresh it is, and no more.
    known = facts.newest_us if promise.kind == "freshness" else ()
    if lacking := [column for column in needed_of(promise) if column in facts.absent and column not in known]:
        return broken(rule, f"no column {lacking[0]!r} of instants: {promise.kind} cannot be told")
    if promise.kind == "volume":
        rows = facts.rows if promise.per_us is None else facts.recent.get(promise.id, 0)
        enough = promise.least is None or rows >= promise.least
        few = promise.most is None or rows <= promise.most
        # No rows where none were promised is a kept promise; elsewhere it is no data, not bad data.
        return stated(rule, success=enough and few, observed=rows, rows=None if enough else rows)
    if promise.kind == "latency":
        timed, slow = facts.late.get(promise.id, (0, 0))
        return counted(rule, rows=timed, evaluated=timed, unexpected=slow, mostly=promise.mostly)
    newest = facts.newest_us.get(promise.column)
    if newest is None:
        return stated(rule, success=False, observed=None, rows=0)
    return stated(rule, success=now_us - newest <= promise.limit_us, observed=iso(newest), rows=None)


def rule_of(promise: Promise) -> Rule:
    """The promise as a rule, for reports."""
    arguments: dict[str, Any] = {"column": promise.column} if promise.column else {}
    if promise.kind == "volume":
        arguments |= {"min_value": promise.least, "max_value": promise.most}
    else:
        arguments["limit_s"] = promise.limit_us / 1_000_000
        if promise.mostly < 1:
            arguments["mostly"] = promise.mostly
    if promise.per_us is not None:
        arguments["per_s"] = promise.per_us / 1_000_000
    dimension: Literal["coverage", "timeliness"] = "coverage" if promise.kind == "volume" else "timeliness"
    return Rule(
        id=promise.id,
        expectation=f"sla_{promise.kind}",
        arguments=arguments,
        severity=promise.severity,
        mode=promise.mode,
        dimension=dimension,
    )
