"""How does one command put history into a view: into its next version, or into the state that a store has lost?"""

import logging
import os
import secrets
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

import typer

from featurestore.clock import system_clock
from featurestore.config import Settings
from featurestore.errors import StaleStore, StoreUnavailable, UsageError
from featurestore.offline.readable_history import refuse_unreadable_history
from featurestore.online.connection import connect
from featurestore.online.keys import Shard
from featurestore.plan import Plan, View
from featurestore.plan_store import PlanStore, load_plan_file, write_plan_file
from featurestore.plan_users import WORKER, PlanUsers
from featurestore.plan_versions import begun
from featurestore.signing import signer_of
from streaming.backfill import Builder, flip
from streaming.chaser import Chaser
from streaming.claim_record import ClaimRecord
from streaming.cluster import kafka_source, servers_of
from streaming.commit import NOT_YET, ShardStore, StateDamaged
from streaming.ingest import ingest
from streaming.integrity import examine_store
from streaming.log_replay import EventLogReplay, Stretch
from streaming.patience import patiently
from streaming.retire import Retirement
from streaming.run_progress import RunProgress, shown
from streaming.run_record import RunRecord, RunRecords
from streaming.settlement import settle_plan
from streaming.source.kafka import KafkaSettings, security_from
from streaming.source.peek import first_since
from streaming.source.records import TopicPartition

HAND_OVER_S = 30.0
"""How long a backfill keeps its version current where a worker runs and does not take it over."""


def records_of(settings: Settings) -> RunRecords:
    """The records of a deployment's runs."""
    return RunRecords(settings.data_dir / "backfills")


class HistoryRun:
    """The deployment's parts, put together for one command."""

    def __init__(self, settings: Settings) -> None:
        logging.getLogger("kafka.net.selector").setLevel(logging.ERROR)
        self.records = records_of(settings)
        self._settings = settings
        self._clock = system_clock(settings.clock_offset_us)
        self._client = connect(settings.online, settings.data_dir)
        self._plans = PlanStore(self._client, settings.project, signer_of(settings.data_dir))
        self._store = ShardStore(self._client, self._clock)
        self._claims = ClaimRecord(settings.event_log)

    def plan(self) -> Plan:
        """The plan in force; the file's where the store has lost it, which is then in force again."""
        if self._plans.version() is None and self._settings.plan_path.exists():
            self._plans.replace(None, load_plan_file(self._settings.plan_path))
        return self._plans.load()

    def ingest(self, view: str, files: Sequence[Path], time_column: str | None, stop: Callable[[], bool]) -> None:
        """Put the events of files into the event log of the view's topic; each file once."""
        ingest(
            self._settings,
            self.plan(),
            view,
            files,
            time_column=time_column,
            clock=self._clock,
            stop=stop,
            say=typer.echo,
            warn=_warn,
        )

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
        plan = self.plan()
        if use_log:
            refuse_unreadable_history(plan.building.get(name, plan.view(name)), self._settings.repo)
        if plan.view(name).kind == "latest":
            return self._latest("backfill", plan, plan.view(name), from_us, to_us, stop)
        if name not in plan.building and any(each.name == name for each in plan.retiring):
            return True  # it is in force already; what is left is to let the former one go
        plan = patiently(lambda: self._begun(self.plan(), name), stop=stop)
        built = plan.building[name]
        replay = self._replay(built, from_us, to_us)
        record = self._record(
            "backfill",
            built,
            from_us=from_us,
            to_us=to_us,
            files=tuple(map(str, files)),
            withheld=dict(built.withheld),
        )
        chaser = Chaser(self._settings, plan, built, store=self._store, record=self._claims, clock=self._clock)
        try:
            live = chaser.live()
            stretches = replay.stretches() if use_log else ()
            with self._building(record, plan, built, replay, stretches, from_us) as (builder, progress):
                patiently(lambda: builder.announce(live), stop=stop)
                patiently(lambda: builder.build(stretches, live, stop), stop=stop)
                if from_us is not None and not use_log:
                    kafka = KafkaSettings(servers_of(self._settings, [built]), security_from(os.environ))
                    since_us = from_us
                    patiently(lambda: builder.begin(first_since(kafka, live, since_us)), stop=stop)
                if stop():
                    return progress.told("stopped")
                progress.told("chase")
                changed = self._in_force(chaser, builder, plan, built, stop)
                if changed is None:
                    return progress.told("stopped")
                self._keep(changed)
                for line in settle_plan(self._settings, changed):
                    typer.echo(line)
                progress.told("hand-over", plan_version=changed.version)
                self._hand_over(chaser, progress, stop)
                progress.told("done")
        finally:
            chaser.close()
        typer.echo(f"view {name}: version {built.version} is read since plan version {changed.version}")
        return True

    def _hand_over(self, chaser: Chaser, progress: RunProgress, stop: Callable[[], bool]) -> None:
        """Keep the version current until a worker takes it over; where none runs, none kept the former one either."""
        users = PlanUsers(self._client, self._settings.project, system_clock())
        until_s = time.monotonic() + HAND_OVER_S

        def ended() -> bool:
            workers = [name for name in users.uses() if name.startswith(WORKER)]
            progress.waits_for(workers)
            return stop() or not workers or time.monotonic() > until_s

        chaser.hand_over(ended)

    def rebuild(self, name: str, stop: Callable[[], bool]) -> bool:
        """Make the state of the version that is read again, where the store has none; False where it was stopped."""
        plan = self.plan()
        view = plan.view(name)
        refuse_unreadable_history(view, self._settings.repo)
        topic = _topic(view)
        if view.kind == "latest":
            return self._latest("rebuild", plan, view, None, None, stop)
        replay = self._replay(view, None, None)
        self._remove_damaged(plan, view)
        source, _ = kafka_source(self._settings, plan, [view], None, beside="rebuild")
        try:
            live = source.partitions_of(topic)
        finally:
            source.close()
        stretches = replay.stretches()
        with self._building(self._record("rebuild", view), plan, view, replay, stretches, None) as (builder, progress):
            left = patiently(lambda: builder.left(stretches), stop=stop)
            patiently(lambda: builder.announce(live), stop=stop)
            patiently(lambda: builder.build(stretches, live, stop), stop=stop)
            progress.told("stopped" if stop() else "done")
        typer.echo(f"view {name}, version {view.version}: {left} offsets of the event log folded")
        return not stop()

    def _remove_damaged(self, plan: Plan, view: View) -> None:
        """Let go of shards that are not as they were written, so that they are made again from nothing.

        Where the list of shards is damaged, or of another format, nothing of the version is believed.
        """
        try:
            self._store.registered(plan.project, view.name, view.version)
        except StateDamaged as error:
            typer.echo(f"view {view.name}: {error}; all of version {view.version} is made again", err=True)
            self._store.begin_again(plan.project, view.name, view.version)
            return
        damaged: dict[Shard, str] = {}
        for found in examine_store(self._client, self._store, plan, view):
            if found.shard is not None:
                damaged.setdefault(found.shard, found.what)
        for shard, what in damaged.items():
            typer.echo(f"view {view.name}: {what}; partition {shard.partition} is made again", err=True)
            self._store.register(shard, NOT_YET)
            self._store.remove(shard.project, shard.view, shard.version, shard=shard)

    def retire(self, wait_s: float, stop: Callable[[], bool]) -> bool:
        """Let versions go that nobody needs; False where somebody still does after so long."""
        users = PlanUsers(self._client, self._settings.project, system_clock())
        retirement = Retirement(
            self._plans, users, self._store, clock=self._clock, sleep=time.sleep, published=self._keep
        )
        return retirement.complete(wait_s, stop, typer.echo, _warn)

    def _latest(
        self,
        kind: Literal["backfill", "rebuild"],
        plan: Plan,
        view: View,
        from_us: int | None,
        to_us: int | None,
        stop: Callable[[], bool],
    ) -> bool:
        """Write the latest values of a view without windows again; the online store keeps what is newer."""
        replay = self._replay(view, from_us, to_us)
        stretches = replay.stretches()
        with self._building(self._record(kind, view), plan, view, replay, stretches, from_us) as (builder, progress):
            done: dict[TopicPartition, int] = {}
            patiently(lambda: builder.build_latest(stretches, stop, done), stop=stop)
            return progress.told("stopped" if stop() else "done")

    def _begun(self, plan: Plan, name: str) -> Plan:
        """The plan that says which version is being built: in force before anything of it is written."""
        changed = begun(plan, name, now_us=self._clock())
        if changed is not plan:
            self._plans.replace(plan, changed)
            self._keep(changed)
        return changed

    def _in_force(
        self, chaser: Chaser, builder: Builder, plan: Plan, built: View, stop: Callable[[], bool]
    ) -> Plan | None:
        """The plan that makes it the version that is read, once it has passed that one; None where it was stopped."""
        while patiently(lambda: chaser.overtake(plan.views[built.name], builder, stop), stop=stop):
            try:
                return flip(self._plans, built.name, now_us=self._clock())
            except StaleStore:
                if patiently(self._plans.load, stop=stop).building.get(built.name) != built:
                    raise
            except StoreUnavailable:
                # The plan may have changed before the reply was lost or a later command was refused.
                held = patiently(self._plans.load, stop=stop)
                if held.views[built.name].version == built.version:
                    return held
        return None

    def _replay(self, view: View, from_us: int | None, to_us: int | None) -> EventLogReplay:
        return EventLogReplay(self._settings.event_log / _topic(view), view, from_us=from_us, to_us=to_us)

    def _record(self, kind: Literal["backfill", "rebuild"], view: View, **more: Any) -> RunRecord:
        now_us = self._clock()
        return RunRecord(
            kind=kind, view=view.name, version=view.version, state="log", started_us=now_us, updated_us=now_us, **more
        )

    @contextmanager
    def _building(
        self,
        record: RunRecord,
        plan: Plan,
        view: View,
        replay: EventLogReplay,
        stretches: Sequence[Stretch],
        from_us: int | None,
    ) -> Iterator[tuple[Builder, RunProgress]]:
        """A builder whose progress is shown and recorded."""
        with shown(self.records, record, self._clock) as progress:
            builder = Builder(
                plan,
                view,
                replay,
                self._store,
                self._claims,
                clock=self._clock,
                new_token=lambda: secrets.token_hex(8),
                from_us=from_us,
                progress=progress.moved,
            )
            progress.begin(patiently(lambda: builder.left(stretches)))
            yield builder, progress

    def _keep(self, plan: Plan) -> None:
        """The plan file follows the online store."""
        write_plan_file(self._settings.plan_path, plan)


def _warn(line: str) -> None:
    typer.echo(line, err=True)


def _topic(view: View) -> str:
    if view.source.topic is None:
        raise UsageError(f"view {view.name!r} has no topic: `featurestore materialize` fills it from its source")
    return view.source.topic.name
