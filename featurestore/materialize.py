"""Materialization of offline values: Feast's own, by our engine, with one line for each view."""

from collections.abc import Iterator, Sequence
from datetime import UTC, datetime

from feast.infra.common.materialization_job import MaterializationTask

from featurestore.clock import parse_instant, system_clock
from featurestore.config import Settings
from featurestore.errors import ContractBroken, UnknownName, UsageError, failing, failure_of
from featurestore.feast_repo import in_repo, open_store, quiet
from validation.errors import PlatformError

EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


def materialize(
    settings: Settings, names: Sequence[str], start: str | None, end: str | None, *, incremental: bool = False
) -> Iterator[str]:
    """Loads the latest values of views into the online store, yielding a line per view when it is done.

    No name is every batch view that is online; windowed views are said to be skipped. `start` and `end` are ISO 8601,
    by default all of history up to the clock's now; `incremental` starts each view where its last run ended, and loads
    what came late since. May be repeated or broken off at any point: the newest row of a key wins whatever is written
    again. A view that cannot be loaded, because its contract blocks or its source cannot be read, is left as it was
    and told at once; when the others are done, ViewsFailed says which and why (ContractBroken, where a contract blocks
    and nothing else failed).
    Raises UnknownName, UsageError, StoreUnavailable.
    """
    now_us = system_clock(settings.clock_offset_us)()
    if incremental and start is not None:
        raise UsageError(
            "an incremental run starts where the last one ended: give no start, or leave out --incremental"
        )
    first = EPOCH if start is None else _instant(parse_instant(start))
    last = _instant(now_us if end is None else parse_instant(end))
    if first >= last:
        raise UsageError(f"nothing lies between {first.isoformat()} and {last.isoformat()}; start comes before end")
    with in_repo(settings):
        with quiet():
            store = open_store(settings)
            registered = [*store.list_batch_feature_views(), *store.list_stream_feature_views()]
        views = {view.name: view for view in registered if view.online}
        for name in names:
            if name not in views:
                raise UnknownName("online feature view", name, views)
        chosen = {name: views[name] for name in names} or views
        failed: dict[str, PlatformError] = {}
        for name, view in chosen.items():
            since = (view.most_recent_end_time or first) if incremental else first
            task = MaterializationTask(project=settings.project, feature_view=view, start_time=since, end_time=last)
            note = ""
            with failing(name, failed):
                with quiet():
                    (job,) = store.provider.batch_engine.materialize(store.registry, task)
                    # A run may have been asked for more than its clock allowed: what it left lies before its end.
                    store.registry.apply_materialization(view, settings.project, min(since, last), last)
                note = job.note
            if name in failed:
                note = f"{'blocked' if isinstance(failed[name], ContractBroken) else 'failed'}: {name}: {failed[name]}"
            yield note
        if failed:
            raise failure_of("loaded", failed, len(chosen))


def _instant(instant_us: int) -> datetime:
    return datetime.fromtimestamp(instant_us / 1_000_000, UTC)
