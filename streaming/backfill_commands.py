"""How is history put into a view, into a lost store, and out of use, on the command line?

`backfill`, and of the group `stream` the commands `rebuild` and `drop`.
"""

import fcntl
import logging
import os
import secrets
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from featurestore.cli.settings import HERE, Repo, settings_of
from featurestore.clock import iso, parse_instant
from featurestore.errors import FeatureStoreError, StaleStore, UsageError
from streaming.options import SCHEMA_REGISTRY
from streaming.stop_signals import stop_on_signals

if TYPE_CHECKING:
    from featurestore.config import Settings
    from featurestore.plan import Plan, View
    from streaming.backfill import Builder
    from streaming.log_replay import EventLogReplay, Stretch
    from streaming.run_record import RunRecord, RunRecords, State
    from streaming.source.records import Source

_DROP_PATIENCE_S = 120.0
_HAND_OVER_S = 30.0
"""How long a backfill keeps its version current where no worker takes it over."""


def add_to(app: typer.Typer, stream: typer.Typer) -> None:
    """Register the commands."""
    app.command()(backfill)
    stream.command()(rebuild)
    stream.command()(drop)


def backfill(
    view: Annotated[str | None, typer.Argument(help="The view to build; not needed with --list.")] = None,
    *,
    repo: Repo = HERE,
    since: Annotated[
        str | None, typer.Option("--from", metavar="INSTANT", help="Leave out what arrived before; windows say so.")
    ] = None,
    until: Annotated[
        str | None,
        typer.Option(
            "--to", metavar="INSTANT", help="Take from the event log what arrived before, the rest from Kafka."
        ),
    ] = None,
    file: Annotated[
        list[Path] | None,
        typer.Option(help="Parquet or JSON-lines file of events that the topic never had; repeatable."),
    ] = None,
    file_time: Annotated[
        str | None, typer.Option(metavar="COLUMN", help="Column of the files that says when an event arrived.")
    ] = None,
    kafka: Annotated[
        bool, typer.Option("--kafka", help="Read everything from Kafka, to its end; nothing from the event log.")
    ] = False,
    wait_s: Annotated[
        float, typer.Option(help="How long to wait for readers and workers to go over, once it is in force.")
    ] = _DROP_PATIENCE_S,
    list_runs: Annotated[bool, typer.Option("--list", help="List the runs and how far they are.")] = False,
) -> None:
    """Build the next version of a view from history, then let readers go over to it, without a gap.

    An interrupted run goes on where it was when the command is given again.
    """
    from streaming.run_record import RunRecords

    settings = settings_of(repo)
    records = RunRecords(settings.data_dir / "backfills")
    if list_runs:
        _list(records)
        return
    if view is None:
        raise UsageError("which view? `featurestore backfill VIEW`; `--list` shows the runs so far")
    if kafka and file:
        raise UsageError("--kafka reads the topic alone: --file is about the event log")
    if kafka and until:
        raise UsageError(
            "--kafka reads to the end: readers go over to the next version once it has passed the one that is read. "
            "--to says where Kafka follows on the event log, of which --kafka takes nothing"
        )
    run = _Run(settings, records)
    with stop_on_signals() as stop, run.alone(view):
        run.ingest(view, tuple(file or ()), file_time, stop)
        done = run.backfill(
            view,
            from_us=None if since is None else parse_instant(since),
            to_us=None if until is None else parse_instant(until),
            files=tuple(file or ()),
            use_log=not kafka,
            stop=stop,
        )
        if done:
            run.retire(wait_s, stop)
    if not done:
        typer.echo("stopped; the same command goes on from here", err=True)
        raise typer.Exit(1)


def rebuild(
    views: Annotated[list[str] | None, typer.Argument(help="Views to rebuild; all stream views if none.")] = None,
    *,
    repo: Repo = HERE,
) -> None:
    """Make the state of stream views again from the event log, where the online store lost it.

    What the store still has is not touched. Start `featurestore stream run` afterwards: it goes on where the log ends.
    """
    from streaming.run_record import RunRecords
    from streaming.streamed import stream_views

    settings = settings_of(repo)
    run = _Run(settings, RunRecords(settings.data_dir / "backfills"))
    with stop_on_signals() as stop:
        for name in views or sorted({view.name for view in stream_views(run.plan(), [])}):
            with run.alone(name):
                if not run.rebuild(name, stop):
                    typer.echo("stopped; the same command goes on from here", err=True)
                    raise typer.Exit(1)


def drop(
    *,
    repo: Repo = HERE,
    wait_s: Annotated[float, typer.Option(help="How long to wait for readers that use them.")] = _DROP_PATIENCE_S,
) -> None:
    """Remove versions of views that no reader uses any more. Exit code 1 where somebody still does."""
    from streaming.run_record import RunRecords

    settings = settings_of(repo)
    with stop_on_signals() as stop:
        if not _Run(settings, RunRecords(settings.data_dir / "backfills")).retire(wait_s, stop):
            raise typer.Exit(1)


class _Run:
    """The deployment's parts, put together for one command."""

    def __init__(self, settings: "Settings", records: "RunRecords") -> None:
        from featurestore.clock import system_clock
        from featurestore.online.connection import connect
        from featurestore.plan_store import PlanStore
        from streaming.claim_record import ClaimRecord
        from streaming.commit import ShardStore

        logging.getLogger("kafka.net.selector").setLevel(logging.ERROR)
        self.settings = settings
        self.records = records
        self.clock = system_clock(settings.clock_offset_us)
        self.client = connect(settings.online, settings.data_dir)
        self.plans = PlanStore(self.client, settings.project)
        self.store = ShardStore(self.client, self.clock)
        self.claims = ClaimRecord(settings.event_log)

    def plan(self) -> "Plan":
        """The plan in force; the file's where the store has lost it, which is then in force again."""
        from featurestore.plan_store import load_plan_file

        if self.plans.version() is None and self.settings.plan_path.exists():
            self.plans.replace(None, load_plan_file(self.settings.plan_path))
        return self.plans.load()

    @contextmanager
    def alone(self, view: str) -> Iterator[None]:
        """One run over a view at a time, on this machine: two would fence each other for ever."""
        self.records.folder.mkdir(parents=True, exist_ok=True)
        with (self.records.folder / f".{view}.lock").open("w") as lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise UsageError(f"a backfill or rebuild of view {view!r} is running already") from None
            yield

    def ingest(self, view: str, files: Sequence[Path], time_column: str | None, stop: Callable[[], bool]) -> None:
        """Put the events of files into the event log, by the steps that all events go through; each file once."""
        from streaming.assembly import build_sinks
        from streaming.in_force import definitions_of
        from streaming.source.file import FileSource
        from streaming.streamed import stream_views
        from streaming.verdicts import Verdicts

        plan = self.plan()
        topic = plan.view(view).source.topic
        if not files or topic is None:
            return
        if topic.message_format != "json":
            raise UsageError(f"files are read as JSON, messages of topic {topic.name!r} are {topic.message_format}")
        readers = [each for each in stream_views(plan, [topic.name]) if each not in plan.retiring]
        sinks = build_sinks(self.settings, plan, readers, clock=self.clock, flush_s=5.0, flush_rows=100_000)
        verdicts = Verdicts(self.settings.event_log, topic.name)
        verdicts.propose(definitions_of(plan, readers)[topic.name], only_first=True)
        for path in files:
            landed_us = path.stat().st_mtime_ns // 1000 if path.exists() else 0
            source = FileSource(
                path, topic=topic.name, arrival_us=landed_us, key=topic.key_column, timestamp=time_column
            )
            partition = source.partition
            verdicts.pin(partition.topic_id)
            source.seek(partition, min(sink.open(partition, 0) for sink in sinks))
            end = source.end_offsets([partition])[partition]
            taken = set_aside = 0
            while (batches := source.poll(0)) and not stop():
                for batch in batches:
                    for [judged], _ in verdicts.judge([batch]):
                        for sink in sinks:
                            sink.add(judged)
                        taken, set_aside = taken + len(judged.events), set_aside + len(judged.rejected)
                for sink in sinks:
                    sink.flush_due()
            for sink in sinks:
                sink.flush(partition)
                sink.close(partition)
            typer.echo(f"{path}: {end} events, now {taken} accepted and {set_aside} set aside")
        others = sorted(each.name for each in readers if each.name != view and each.kind == "windowed")
        if others:
            typer.echo(f"the same events are missing in {', '.join(others)}: backfill these too", err=True)

    def backfill(
        self,
        name: str,
        *,
        from_us: int | None,
        to_us: int | None,
        files: Sequence[Path],
        use_log: bool,
        stop: Callable[[], bool],
    ) -> bool:
        """Build and put in force; False where it was stopped before."""
        from featurestore.plan_versions import begun
        from streaming.backfill import chase, flip, hand_over, standings
        from streaming.cluster import kafka_source, servers_of
        from streaming.run_record import RunRecord
        from streaming.schema_registry import registry_of
        from streaming.source.kafka import KafkaSettings, security_from
        from streaming.source.peek import first_since
        from streaming.worker import Worker

        plan = self.plan()
        if plan.view(name).kind == "latest":
            return self._latest("backfill", plan, plan.view(name), from_us, to_us, stop)
        if name not in plan.building and any(each.name == name for each in plan.retiring):
            return True  # it is in force already; what is left is to let the former one go
        begun_plan = begun(plan, name, now_us=self.clock())
        if begun_plan is not plan:
            self.plans.replace(plan, begun_plan)
            self._keep(begun_plan)
            plan = begun_plan
        built, read = plan.building[name], plan.views[name]
        replay = self._replay(built, from_us, to_us)
        record = RunRecord(
            kind="backfill",
            view=name,
            version=built.version,
            state="log",
            started_us=self.clock(),
            updated_us=self.clock(),
            from_us=from_us,
            to_us=to_us,
            files=tuple(map(str, files)),
            withheld=dict(built.withheld),
        )

        def reading() -> "tuple[Source, Callable[[], bool], Worker]":
            source, appeared = kafka_source(
                self.settings, plan, [built], None, beside=f"backfill-{name}-{built.version}"
            )
            chaser = Worker(
                source,
                self.store,
                (),
                plan,
                views=(built,),
                record=self.claims,
                clock=self.clock,
                new_token=lambda: secrets.token_hex(8),
                decides=False,
                registry=registry_of(os.environ.get(SCHEMA_REGISTRY), self.settings.schemas),
            )
            return source, appeared, chaser

        source, appeared, chaser = reading()
        try:
            live = source.partitions_of(_topic(built))
            stretches = replay.stretches() if use_log else ()
            with self._told(record, plan, built, replay, stretches, from_us) as (builder, told):
                builder.announce(live)
                builder.build(stretches, live, stop)
                if from_us is not None and not use_log:
                    kafka = KafkaSettings(servers_of(self.settings, [built]), security_from(os.environ))
                    builder.begin(first_since(kafka, live, from_us))
                if stop():
                    return told("stopped")
                told("chase")
                while True:
                    if not chase(chaser, partial(standings, self.store, source, plan, built, read), stop):
                        chaser.leave()
                        return told("stopped")
                    if appeared():
                        # A first event was replayed: its partitions are part of what is read, and are to be of this.
                        chaser.leave()
                        source, appeared, chaser = reading()
                        builder.announce(source.partitions_of(_topic(built)))
                        continue
                    try:
                        changed = flip(self.plans, name, now_us=self.clock())
                        break
                    except StaleStore:
                        if self.plans.load().building.get(name) != built:
                            raise
                self._keep(changed)
                told("hand-over", plan_version=changed.version)
                patience = time.monotonic() + _HAND_OVER_S
                hand_over(chaser, lambda: stop() or time.monotonic() > patience)
                told("done")
        finally:
            source.close()
        typer.echo(f"view {name}: version {built.version} is read since plan version {changed.version}")
        return True

    def rebuild(self, name: str, stop: Callable[[], bool]) -> bool:
        """Make the state of the version that is read again, where the store has none; False where it was stopped."""
        from streaming.cluster import kafka_source
        from streaming.run_record import RunRecord

        plan = self.plan()
        view = plan.view(name)
        if view.source.topic is None:
            raise UsageError(f"view {name!r} has no topic: `featurestore materialize` fills it from its source")
        if view.kind == "latest":
            return self._latest("rebuild", plan, view, None, None, stop)
        replay = self._replay(view, None, None)
        source, _ = kafka_source(self.settings, plan, [view], None, beside="rebuild")
        try:
            live = source.partitions_of(_topic(view))
        finally:
            source.close()
        stretches = replay.stretches()
        now_us = self.clock()
        record = RunRecord(
            kind="rebuild", view=name, version=view.version, state="log", started_us=now_us, updated_us=now_us
        )
        with self._told(record, plan, view, replay, stretches, None) as (builder, told):
            left = builder.left(stretches)
            builder.announce(live)
            builder.build(stretches, live, stop)
            told("stopped" if stop() else "done")
        typer.echo(f"view {name}, version {view.version}: {left} offsets of the event log folded")
        return not stop()

    def retire(self, wait_s: float, stop: Callable[[], bool]) -> bool:
        """Let versions go that nobody needs; False where somebody still does after so long."""
        from featurestore.clock import system_clock
        from featurestore.plan_users import PlanUsers
        from streaming.retire import Retirement

        users = PlanUsers(self.client, self.settings.project, system_clock())
        retirement = Retirement(self.plans, users, self.store, clock=self.clock, sleep=time.sleep, published=self._keep)
        until = time.monotonic() + wait_s
        while not stop():
            with suppress(StaleStore):  # somebody else put a plan in force: look again
                done = retirement.step()
                if done is not None:
                    for gone in done:
                        typer.echo(f"view {gone.view}: version {gone.version} dropped, {gone.keys} keys")
                    return True
                if (waiting := retirement.waits_for()) and time.monotonic() > until:
                    typer.echo(
                        f"still used by {', '.join(waiting)}; `featurestore stream drop` goes on with it", err=True
                    )
                    return False
            time.sleep(0.5)
        return False

    def _latest(
        self,
        kind: Literal["backfill", "rebuild"],
        plan: "Plan",
        view: "View",
        from_us: int | None,
        to_us: int | None,
        stop: Callable[[], bool],
    ) -> bool:
        from streaming.run_record import RunRecord

        if view.source.topic is None:
            raise UsageError(f"view {view.name!r} has no topic: `featurestore materialize` fills it from its source")
        replay = self._replay(view, from_us, to_us)
        stretches = replay.stretches()
        now_us = self.clock()
        record = RunRecord(
            kind=kind, view=view.name, version=view.version, state="log", started_us=now_us, updated_us=now_us
        )
        with self._told(record, plan, view, replay, stretches, from_us) as (builder, told):
            builder.build_latest(stretches, stop, {})
            return told("stopped" if stop() else "done")

    def _replay(self, view: "View", from_us: int | None, to_us: int | None) -> "EventLogReplay":
        from streaming.log_replay import EventLogReplay

        return EventLogReplay(self.settings.event_log / _topic(view), view, from_us=from_us, to_us=to_us)

    @contextmanager
    def _told(
        self,
        record: "RunRecord",
        plan: "Plan",
        view: "View",
        replay: "EventLogReplay",
        stretches: "Sequence[Stretch]",
        from_us: int | None,
    ) -> "Iterator[tuple[Builder, Callable[..., bool]]]":
        """A builder whose progress is shown and recorded; what ends it badly is recorded too."""
        import msgspec
        from rich.console import Console
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

        from streaming.backfill import Builder

        columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
        written = [0.0]

        def put(**changes: Any) -> None:
            nonlocal record
            record = msgspec.structs.replace(record, updated_us=self.clock(), **changes)
            self.records.write(record)
            written[0] = time.monotonic()

        def told(state: "State", **changes: Any) -> bool:
            put(state=state, **changes)
            bar.update(task, description=f"{record.view} version {record.version}: {state}")
            return state == "done"

        def moved(offsets: int, events: int) -> None:
            nonlocal record
            record = msgspec.structs.replace(
                record, offsets_left=record.offsets_left - offsets, events=record.events + events
            )
            bar.advance(task, offsets)
            if time.monotonic() - written[0] > 1:
                put()

        with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
            builder = Builder(
                plan,
                view,
                replay,
                self.store,
                self.claims,
                clock=self.clock,
                new_token=lambda: secrets.token_hex(8),
                from_us=from_us,
                progress=moved,
            )
            left = builder.left(stretches)
            task = bar.add_task(f"{record.view} version {record.version}: log", total=left)
            put(offsets=left, offsets_left=left)
            try:
                yield builder, told
            except FeatureStoreError as error:
                told("failed", message=str(error))
                raise

    def _keep(self, plan: "Plan") -> None:
        """The plan file follows the online store."""
        from featurestore.plan_store import write_plan_file

        write_plan_file(self.settings.plan_path, plan)


def _topic(view: "View") -> str:
    assert view.source.topic is not None  # asked only of stream views
    return view.source.topic.name


def _list(records: "RunRecords") -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table("view", "version", "run", "state", "begun", "events", "left", "ETA", "withheld", "message")
    for each in records.all():
        eta_s = each.eta_s if each.state == "log" else None
        table.add_row(
            each.view,
            str(each.version),
            each.kind,
            each.state,
            iso(each.started_us),
            str(each.events),
            str(each.offsets_left),
            "-" if eta_s is None else f"{eta_s:.0f} s",
            ", ".join(f"{name} {how}" for name, how in each.withheld.items()) or "-",
            each.message or "-",
        )
    Console().print(table)
