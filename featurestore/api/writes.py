"""What does a write through the API do? Rows from JSON to the online store, to the offline source, or to both.

Feast's requests and answers' statuses; the counts in the answer are an addition. Windowed views are refused: their
values come from events.
"""

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Protocol

import msgspec
import pyarrow as pa

from featurestore.api.faults import Refused
from featurestore.api.limits import Limits
from featurestore.api.rows import columns_of, rows_for
from featurestore.clock import Clock
from featurestore.errors import UnknownName, UsageError
from featurestore.online.materialize import timestamp_names
from featurestore.online.types import to_python
from featurestore.online.writer import WriteResult
from featurestore.plan import Plan, View
from featurestore.view_rules import ViewRules, rules_of
from featurestore.write_reports import WrittenRows

MODES = ("online", "offline", "online_and_offline")


class PushRequest(msgspec.Struct, frozen=True):
    """The body of /push, as Feast's clients send it; fields that it does not know are ignored."""

    push_source_name: str
    df: dict[str, Any]
    """Columns: name -> list of values, or name -> {index: value}."""
    to: str = "online"
    """online, offline or online_and_offline."""


class WriteRequest(msgspec.Struct, frozen=True):
    """The body of /write-to-online-store, as Feast's clients send it; fields that it does not know are ignored."""

    feature_view_name: str
    df: dict[str, Any]


class Writer(Protocol):
    """What writes rows of one view to the online store."""

    def write(
        self,
        table: pa.Table,
        *,
        event_timestamp: str,
        created: str | None = None,
        became: Callable[[pa.Table], object] | None = None,
    ) -> WriteResult:
        """Writes the rows; the greatest (event time, created time) of a key stays, and `became` is given those."""
        ...


Append = Callable[[View, pa.Table], object]
"""Appends rows, named as the source names its columns, to the source of a view."""


class Writes:
    """Writes rows by one plan. Every write may be repeated: online the greatest row stays, offline equal rows are one.

    In order: 1. every row of every view is checked, and a wrong one refuses all; 2. offline sources are appended to;
    3. online rows are written. A crash in between leaves rows offline that `materialize` brings online.
    """

    def __init__(
        self,
        plan: Plan,
        writer: Callable[[View], Writer],
        append: Append,
        clock: Clock,
        limits: Limits,
        judged: Callable[[Plan, WrittenRows], None] = lambda _plan, _rows: None,
        written: Callable[[Plan, View, pa.Table], None] = lambda _plan, _view, _rows: None,
    ) -> None:
        """`judged` hears of rows that a contract was asked about, `written` of those that became their key's value."""
        self._plan = plan
        self._make = writer
        self._append = append
        self._clock = clock
        self._limits = limits
        self._judged = judged
        self._written = written
        self._writers: dict[str, Writer] = {}
        self._rules: dict[str, ViewRules | None] = {}

    def pushed_views(self, source: str) -> list[View]:
        """The views that a push source feeds; raises UnknownName."""
        found = [view for view in self._plan.views.values() if view.source.push == source]
        if not found:
            known = {view.source.push for view in self._plan.views.values()} - {""}
            raise UnknownName("push source", source, known)
        return found

    def push(self, request: PushRequest) -> dict[str, int]:
        """Writes to every view that the push source feeds; raises UsageError, StoreUnavailable, SourceError."""
        if request.to not in MODES:
            raise UsageError(f"to is {request.to!r}; expected {', '.join(MODES)}")
        return self._write(
            self.pushed_views(request.push_source_name),
            request.df,
            online=request.to != "offline",
            offline=request.to != "online",
        )

    def write(self, request: WriteRequest) -> dict[str, int]:
        """Writes to one view, online; raises UsageError, StoreUnavailable."""
        return self._write([self._plan.view(request.feature_view_name)], request.df, online=True, offline=False)

    def _write(self, views: Sequence[View], df: Mapping[str, Any], *, online: bool, offline: bool) -> dict[str, int]:
        for view in views:
            _refuse_windowed(view)
        if online and not any(view.online for view in views):
            raise UsageError(f"view {views[0].name!r} is not kept online (online=False); push it offline")
        now_us = self._clock()
        columns = columns_of(df)
        tables = {view.name: rows_for(view, columns, now_us, self._limits) for view in views}
        for view in views:
            self._judge(view, tables[view.name], now_us)
        counts = {"rows": next(iter(tables.values())).num_rows}
        if offline:
            for view, table in _by_source(views, tables):
                self._append(view, table)
        if online:
            results = [self._write_online(view, tables[view.name]) for view in views if view.online]
            counts["written"] = sum(result.written for result in results)
            counts["superseded"] = sum(result.superseded for result in results)
        return counts

    def _write_online(self, view: View, table: pa.Table) -> WriteResult:
        writer = self._writers.get(view.name)
        if writer is None:
            writer = self._writers[view.name] = self._make(view)
        event, created = timestamp_names(view.source)
        became = partial(self._written, self._plan, view)
        return writer.write(table, event_timestamp=event, created=created, became=became)

    def _judge(self, view: View, table: pa.Table, now_us: int) -> None:
        """Raises Refused (422) where a row breaks a rule of the source's contract that sets rows aside or blocks.

        What is broken of other rules is told, and the rows are written.
        """
        back = {inner: outer for outer, inner in view.source.field_mapping.items()}
        names = [back.get(name, name) for name in table.column_names]
        if view.name not in self._rules:
            self._rules[view.name] = rules_of(self._plan, view, names)
        rules = self._rules[view.name]
        if rules is None:
            return
        types = {key.name: key.dtype for key in view.join_keys} | {field.name: field.dtype for field in view.features}
        values = [
            to_python(table[name].combine_chunks(), types.get(name, "UNIX_TIMESTAMP")) for name in table.column_names
        ]
        rows = [dict(zip(names, row, strict=True)) for row in zip(*values, strict=True)]
        masks = rules.check.check(rows, [now_us] * len(rows))
        event = names[table.column_names.index(timestamp_names(view.source)[0])]
        refusal = rules.refusal(view.name, masks)
        broken = list(map(rules.check.ids, masks))
        self._judged(self._plan, WrittenRows(view, rules.contract, rows, broken, event, refused=refusal is not None))
        if refusal is not None:
            raise Refused(422, "contract_broken", refusal)


def _refuse_windowed(view: View) -> None:
    if view.kind == "windowed":
        topic = view.source.topic
        raise UsageError(
            f"view {view.name!r} is windowed: its values are computed from events, so rows cannot be written to it; "
            + (f"produce events to the topic {topic.name!r}" if topic else "produce events to its topic")
        )


def _by_source(views: Sequence[View], tables: Mapping[str, pa.Table]) -> list[tuple[View, pa.Table]]:
    """One table per source, with the columns of all views over it: rows pushed to two views are appended once."""
    merged: dict[str, tuple[View, dict[str, pa.Array]]] = {}
    for view in views:
        back = {inner: outer for outer, inner in view.source.field_mapping.items()}
        _, columns = merged.setdefault(view.source.path, (view, {}))
        table = tables[view.name]
        columns.update({back.get(name, name): table[name] for name in table.column_names})
    return [(view, pa.table(columns)) for view, columns in merged.values()]


def appender(repo: Path) -> Append:
    """What appends to the sources of a feature repo, as one new Parquet file each time."""

    def append(view: View, table: pa.Table) -> object:
        # Only here: DuckDB, which the offline room needs, would cost every worker memory and a slower start.
        from featurestore.offline.append import append_to_source
        from featurestore.offline.sources import local_path

        return append_to_source(local_path(view.source.path, repo), table, name=view.source.name)

    return append
