"""How do a repo's definitions come into force?

Feast parses the repo and keeps its registry; we compile the Plan first, so that what cannot be honoured is refused
before anything changes.
"""

import importlib.util
import logging
import sys
from contextlib import suppress
from functools import partial
from pathlib import Path

import msgspec
from feast import FeatureStore
from feast.errors import FeastError
from feast.feature_view import DUMMY_ENTITY
from feast.repo_contents import RepoContents
from feast.repo_operations import extract_objects_for_apply_delete, get_repo_files, parse_repo

from featurestore.changes import Change, Settle, changes
from featurestore.clock import Clock, system_clock
from featurestore.compile import Definitions, compile_plan
from featurestore.config import Settings
from featurestore.errors import ConfigurationError, DefinitionError, StoreUnavailable
from featurestore.feast_repo import damaged_registry, in_repo, open_store, quiet, stumbles_over_registry, without_repo
from featurestore.offline.readable_history import unreadable_history
from featurestore.online.connection import connect
from featurestore.online.keys import shards_key
from featurestore.plan import Plan, View
from featurestore.plan_lease import plan_lease
from featurestore.plan_store import PlanStore, load_plan_file, load_unsigned_plan, write_plan_file
from featurestore.private_files import make_private
from featurestore.signing import signer_of
from validation.contract import load_contract_files

log = logging.getLogger(__name__)
_CREDIBLE_DIGITS = 12
"""Of a version that a Plan which cannot be trusted claims."""


class Applied(msgspec.Struct, frozen=True):
    """What `apply` did: the Plan in force, and what changed against the one before."""

    plan: Plan
    changes: list[Change]
    settled: tuple[str, ...] = ()
    """From when on events are judged by the Plan, topic by topic, where that changes."""


def preview(settings: Settings, clock: Clock | None = None) -> list[Change]:
    """What `apply` would change; reads, never writes."""
    before = in_force(settings)
    with in_repo(settings):
        _, _, plan = _desired(settings, before, clock or system_clock(settings.clock_offset_us))
    return _changes(settings, before, plan)


def _changes(settings: Settings, before: Plan | None, after: Plan) -> list[Change]:
    """All changes, and which of the changed views cannot read the events that their logs hold."""
    found = changes(before, after)
    for name, view in sorted({**after.views, **after.building}.items()):
        known = None if before is None else before.building.get(name, before.views.get(name))
        if view != known and (why := unreadable_history(view, settings.repo)):
            found.append(Change(kind="view", name=name, what=why, breaks="its history: training sets and backfill"))
    return found


def apply(
    settings: Settings,
    clock: Clock | None = None,
    *,
    settle: Settle = lambda settings, plan: (),  # noqa: ARG005 - a process without a broker leaves it to workers
) -> Applied:
    """Puts the definitions of the repo in force.

    One `apply` of a project runs at a time, on whatever machine; another one waits. A Plan that is torn, or signed with
    another key, is replaced.

    1. Definitions are parsed and compiled; whatever cannot be honoured raises DefinitionError and changes nothing.
    2. The online store must answer (StoreUnavailable); an embedded one is started where none is alive.
    3. Feast's registry is updated.
    4. The Plan is signed and published to the online store, where the lease is still ours; from here on serving and
       streaming processes switch to it. A crash before this step leaves the old Plan in force: run apply again.
       StaleStore where a backfill put another Plan in force meanwhile.
    5. The Plan's file is written, last: it never holds what is not in force. A crash before leaves the former file;
       the store's Plan counts, and the next apply writes it.
    6. `settle` says from which offsets on events are judged by it: what arrives after `apply` returned. A crash before
       this step leaves it to the next worker, or to the next `apply`.

    A windowed view that is live and whose state would differ stays in force as it is; its next version is built by
    `featurestore backfill`.
    """
    client, signer = connect(settings.online, settings.data_dir), signer_of(settings.data_dir)
    plans = PlanStore(client, settings.project, signer)
    with plan_lease(client, settings.project) as lease:
        published = plans.raw()  # the store must answer before anything changes
        known = known_plans(settings, plans)
        with in_repo(settings):
            store, contents, plan = _desired(settings, known.plan, clock or system_clock(settings.clock_offset_us))
            plan = msgspec.structs.replace(plan, version=max(plan.version, known.next_version))
            _register(settings, store, contents)
        plans.replace_raw(published, plan, lease=lease)
        write_plan_file(settings.plan_path, plan, signer)
    before = known.plan
    for refused in known.refused:
        log.warning("%s (it was replaced)", refused)
    return Applied(plan=plan, changes=_changes(settings, before, plan), settled=tuple(settle(settings, plan)))


def _register(settings: Settings, store: FeatureStore, contents: RepoContents) -> None:
    with quiet():
        try:
            to_apply, to_delete, _, _ = extract_objects_for_apply_delete(settings.project, store.registry, contents)
            store.apply(to_apply, objects_to_delete=to_delete, partial=False)
        except (FeastError, ValueError, TypeError, LookupError, AttributeError) as error:
            # The definitions passed `store.plan`: what Feast stumbles over is what the registry holds.
            raise damaged_registry(store, error) from error


def _desired(settings: Settings, before: Plan | None, clock: Clock) -> tuple[FeatureStore, RepoContents, Plan]:
    contents = _parse(settings)
    make_private(settings.data_dir)
    with quiet():
        store = open_store(settings)
        try:
            store.plan(contents)  # validates and infers types in place; writes nothing
        except Exception as error:  # Feast calls the repo's own functions, which may raise anything
            if stumbles_over_registry(store, contents):
                raise damaged_registry(store, error) from error
            raise DefinitionError(f"{settings.repo}: Feast refuses the definitions: {error}") from error
    definitions = Definitions(
        entities=[*contents.entities, DUMMY_ENTITY],
        views=[*contents.feature_views, *contents.stream_feature_views],
        on_demand=contents.on_demand_feature_views,
        services=contents.feature_services,
        permissions=contents.permissions,
    )
    files = load_contract_files(settings.repo / "contracts")
    contracts = [contract for file in files for contract in file]
    plan = compile_plan(
        settings.project,
        definitions,
        contracts,
        previous=before,
        now_us=clock(),
        live=partial(_is_live, settings),
        together=[[contract.source for contract in file] for file in files],
    )
    for contract in contracts:
        if contract.name not in plan.contracts:
            log.warning(
                "contract %r is left out: %r is no source of a view, no view and no service, as others of its file are",
                contract.name,
                contract.source,
            )
    return store, contents, plan


def _parse(settings: Settings) -> RepoContents:
    for path in get_repo_files(settings.repo):
        _check_module_name(path, settings.repo)
    try:
        with quiet():
            contents = parse_repo(settings.repo)
    except (ImportError, SyntaxError, NameError, TypeError, ValueError, AttributeError, FeastError) as error:
        raise DefinitionError(f"{settings.repo}: the definitions cannot be imported: {error}") from error
    if not (contents.feature_views or contents.stream_feature_views or contents.on_demand_feature_views):
        files = ", ".join(path.name for path in get_repo_files(settings.repo)) or "no Python files"
        raise DefinitionError(f"{settings.repo} defines no feature views; looked in {files}")
    return contents


def _check_module_name(path: Path, repo: Path) -> None:
    """Feast imports repo files as top-level modules: one named like an installed module would be skipped silently."""
    name = path.relative_to(repo).parts[0].removesuffix(".py")
    loaded = sys.modules.get(name)
    origin = getattr(loaded, "__file__", None)
    taken = loaded is not None
    if not taken:
        with without_repo(repo):
            spec = importlib.util.find_spec(name)
        taken, origin = spec is not None, spec.origin if spec else None
    if taken and not (origin and Path(origin).is_relative_to(repo)):
        raise DefinitionError(
            f"{path} is named like the module {name!r} ({origin or 'built in'}); Feast would import that one and lose"
            " the definitions; rename the file"
        )


class KnownPlans(msgspec.Struct, frozen=True):
    """What is known of the Plan in force: the latest that can be trusted, and why others are not."""

    plan: Plan | None
    refused: tuple[str, ...] = ()
    next_version: int = 0
    """What the next Plan is at least, where one that cannot be trusted claims a version: watchers must see a change."""


def in_force(settings: Settings) -> Plan | None:
    """The Plan in force: the online store's or the file's, whichever is later; None before the first `apply`.

    A backfill puts Plans in force too, maybe on a machine with another file; a store may have lost its Plan.
    """
    with suppress(StoreUnavailable):
        client = connect(settings.online, settings.data_dir, start=False)
        return known_plans(settings, PlanStore(client, settings.project, signer_of(settings.data_dir))).plan
    return known_plans(settings, None).plan


def known_plans(settings: Settings, plans: PlanStore | None) -> KnownPlans:
    """The latest Plan of file and store that can be trusted; one that cannot is left out, so that `apply` repairs it.

    Where neither can, it is the latest of those that the store remembers; where nothing is signed, as after an upgrade,
    the file's: the data folder holds the registry, which is trusted likewise. The store's alone never is.
    """
    known: list[Plan] = []
    refused: list[str] = []
    claimed = 0
    if settings.plan_path.exists():
        try:
            known.append(load_plan_file(settings.plan_path, signer_of(settings.data_dir)))
        except ConfigurationError as error:
            refused.append(str(error))
    if plans is not None:
        try:
            published = plans.held()
            known += [] if published is None else [published]
        except ConfigurationError as error:
            refused.append(str(error))
            head = plans.raw().partition(b"\n")[0]
            claimed = int(head) + 1 if head.isdigit() and len(head) <= _CREDIBLE_DIGITS else 0
        if not known and (remembered := plans.latest_remembered()) is not None:
            known.append(remembered)
    if not known and (unsigned := load_unsigned_plan(settings.plan_path)) is not None:
        known.append(unsigned)
    return KnownPlans(max(known, key=lambda plan: plan.version, default=None), tuple(refused), claimed)


def _is_live(settings: Settings, view: View) -> bool:
    """Whether a version of a view has state in the online store; the embedded one is started to tell."""
    client = connect(settings.online, settings.data_dir)
    return bool(client.exists(shards_key(settings.project, view.name, view.version)))
