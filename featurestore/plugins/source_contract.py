"""What does the contract of a source do to a materialization, and who hears of what written rows break?

Before a view is loaded its rows are judged, each rule in its mode at `source`: what blocks stops the view before
anything is written, what quarantines sets rows aside, and what fails is told and folded into the violations.
"""

import hashlib
import logging
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pyarrow as pa
from feast.repo_config import RepoConfig

from featurestore.clock import iso, system_clock
from featurestore.config import clock_offset_us, data_dir, events_url
from featurestore.contracts import contract_about
from featurestore.errors import ContractBroken, StaleStore
from featurestore.offline.bounds import Late
from featurestore.offline.connection import Limits
from featurestore.offline.contracted import judge_source
from featurestore.offline.sources import Scan
from featurestore.plan import Plan, View
from featurestore.plan_store import KeyValue, PlanStore
from featurestore.signing import signer_of
from featurestore.write_profiles import WriteProfiles
from featurestore.write_reports import WriteReports, WrittenRows
from validation.contract import Contract, load_contracts
from validation.fallback import great_expectations
from validation.place import place_of
from validation.profile.store import ProfileStore
from validation.reach import load_reach
from validation.report import report_of
from validation.verdict import Verdict
from validation.violations import ViolationStore

log = logging.getLogger(__name__)


class SourceContracts:
    """The contracts of one repo's sources, and where what they find is kept."""

    def __init__(self, config: RepoConfig, store: KeyValue) -> None:
        """The contracts in force are the plan's in `store`; of a repo that was never applied, its files'."""
        self._project = config.project
        self._repo = Path(config.repo_path).absolute() if config.repo_path else Path.cwd()
        self._folder = data_dir(self._repo, getattr(config.registry, "path", None))
        self._plans = PlanStore(store, config.project, signer_of(self._folder))
        url = events_url(os.environ)
        self._violations = ViolationStore((self._folder if url is None else place_of(url)) / "violations")
        self._reports = WriteReports(
            self._violations.record,
            system_clock(clock_offset_us(os.environ)),
            writer=f"sdk-{os.getpid()}",
        )
        self._profiles = WriteProfiles(
            ProfileStore(self._folder / "profiles"),
            system_clock(clock_offset_us(os.environ)),
            writer=f"sdk-{os.getpid()}-{system_clock()()}",
        )

    def of(self, view: Any) -> Contract | None:
        """The contract about the source of a Feast view; raises ContractError for files that are none."""
        try:
            contracts = self._plans.load().contracts.values()
        except StaleStore:
            contracts = load_contracts(self._repo / "contracts").values()
        return contract_about(contracts, _names(view))

    def written(self, rows: WrittenRows) -> None:
        """Gathers what rows that the SDK writes broke, and tells it when it is due; `finish` tells the rest."""
        self._reports.judged(self._plan(), rows)
        self._reports.rest()

    def profiled(self, view: View, rows: pa.Table) -> None:
        """Gathers rows that the SDK has written, and profiles them when it is due; `finish` profiles the rest."""
        self._profiles.written(self._plan(), view, rows)
        self._profiles.rest()

    @contextmanager
    def profiling(self, view: View) -> Iterator[Callable[[pa.Table], None]]:
        """Takes rows that a materialization has written, and profiles them beside it; in the end all of them are."""
        with self._profiles.beside(self._plan(), view) as take:
            yield take

    def _plan(self) -> Plan:
        try:
            return self._plans.load()
        except StaleStore:
            return Plan(project=self._project, version=0, digest="", created_us=0)

    def finish(self) -> None:
        """Tells what was gathered of written rows, and profiles them."""
        self._reports.finish()
        self._profiles.finish()

    def accepted(
        self,
        view: str,
        scan: Scan,
        contract: Contract,
        timestamp: str,
        start_us: int | None,
        end_us: int | None,
        *,
        limits: Limits,
        late: Late | None = None,
    ) -> tuple[Scan, str]:
        """The source without the rows that its contract sets aside, and what to tell of it; raises ContractBroken.

        Judged are the rows of the range and those that came late.

        In order: 1. judge; 2. store what is set aside; 3. record the violations; 4. refuse, where a rule blocks.
        """
        judged = judge_source(
            scan,
            contract,
            timestamp,
            start_us,
            end_us,
            limits=limits,
            quarantine=self._folder / "quarantine",
            fallback=great_expectations,
            late=late,
        )
        verdict, aside = judged.verdict, len(judged.rejections)
        self._record(view, scan, contract.at("source"), verdict, aside, (start_us, end_us))
        if verdict.stops:
            raise ContractBroken(f"view {view!r}: nothing was loaded", verdict, verdict.stops)
        told = [r for r in verdict.rules if r.outcome in {"failed", "broken"} and r.mode != "observe"]
        note = f", {aside} rows set aside by contract {contract.name!r}" if aside else ""
        if told:
            note += f", warned: {', '.join(r.rule_id for r in told)}"
        return judged.accepted, note + (", no data" if verdict.outcome == "no data" else "")

    def _record(
        self,
        view: str,
        scan: Scan,
        contract: Contract,
        verdict: Verdict,
        aside: int,
        bounds: tuple[int | None, int | None],
    ) -> None:
        now_us = system_clock(clock_offset_us(os.environ))()
        plan = self._folder / "plan.json"
        start_us, end_us = bounds
        window = (iso(start_us), iso(end_us)) if start_us is not None and end_us is not None else None
        # The same range read again is the same report, unless the rows are others.
        parts = [f"{path} {path.stat().st_size} {path.stat().st_mtime_ns}" for path in scan.parts]
        identity = "\0".join([view, scan.name, *map(str, bounds), str(verdict.rows), *parts])
        report = report_of(
            verdict,
            contract,
            report_id=f"{contract.name}-{contract.version}-{hashlib.sha256(identity.encode()).hexdigest()[:16]}",
            now_us=now_us,
            boundary="source",
            origin=scan.name,
            event_window=window,
            quarantined=aside,
            affected=load_reach(plan).of_verdict(verdict, contract) if plan.exists() else (),
        )
        self._violations.record(report)


def _names(view: Any) -> list[str]:
    """The names by which a contract may know a view's source: its own, its topic's, who pushes to it."""
    batch: Any = view.batch_source
    stream: Any = getattr(view, "stream_source", None)
    kind = type(stream).__name__
    topic = stream.kafka_options.topic if kind == "KafkaSource" else ""
    return [getattr(batch, "name", "") or "", topic, stream.name if kind == "PushSource" else ""]
