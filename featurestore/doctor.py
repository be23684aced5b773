"""Is this deployment set up, reachable and healthy, and what is to be done where it is not?"""

import secrets
import socket
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import msgspec

from featurestore.config import EVENTS_URL, Settings, load_settings
from featurestore.errors import ConfigurationError, FeatureStoreError
from featurestore.offline.sources import place_at
from featurestore.online.connection import StoreClient, connect
from featurestore.plan import Plan
from featurestore.plan_store import PlanStore, load_plan_file
from featurestore.private_files import open_to_others
from featurestore.signing import signer_of
from validation.place import ObjectPath, is_address, place_of
from validation.redaction import redacted_url

DIAL_TIMEOUT_S = 2.0


class Check(msgspec.Struct, frozen=True, kw_only=True):
    """One thing that was looked at; `remedy` says what could be done, and is empty where nothing needs to be."""

    name: str
    ok: bool
    found: str
    remedy: str = ""


Looks = Callable[[Settings, Plan], Iterable[Check]]


def examine(repo: Path, environ: Mapping[str, str], more: Sequence[Looks] = ()) -> list[Check]:
    """Looks at configuration, data folder, plan, online store and brokers, in this order; what it finds never raises.

    `more` are looks of other packages, which know what this one does not.

    What cannot be looked at because something before it is broken is left out.
    """
    try:
        settings = load_settings(repo, environ)
    except ConfigurationError as error:
        return [Check(name="configuration", ok=False, found=str(error), remedy="mend feature_store.yaml")]
    checks = [Check(name="configuration", ok=True, found=f"project {settings.project} in {settings.repo}")]
    checks += _data_dir(settings)
    checks += _object_store(settings)
    plan = _plan(settings, checks)
    checks += _online(settings, plan)
    if plan is not None:
        checks += _sources(settings, plan)
        checks += _brokers(settings, plan)
        for look in more:
            checks += look(settings, plan)
    return checks


def _data_dir(settings: Settings) -> Iterator[Check]:
    folder = settings.data_dir
    if folder.is_dir():
        yield Check(name="data folder", ok=True, found=str(folder))
        found = open_to_others(folder)
        yield Check(
            name="data folder's modes",
            ok=not found,
            found=f"{len(found)} that other users may open, {found[0]} first" if found else "nobody else's",
            remedy=f"chmod -R go= {folder}" if found else "",
        )
    else:
        remedy = "`featurestore apply` makes it"
        yield Check(name="data folder", ok=False, found=f"{folder} is not there", remedy=remedy)


def _object_store(settings: Settings) -> Iterator[Check]:
    """Whether a store of events keeps what everything there rests on; what is put for it is deleted again."""
    if settings.events_url is None:
        return
    name, place = "object store", place_of(settings.events_url) / f"doctor-{secrets.token_hex(8)}"
    assert isinstance(place, ObjectPath)  # events_url is an address
    try:
        try:
            broken = _conditions_ignored(place)
        finally:
            place.unlink(missing_ok=True)
    except OSError as error:
        remedy = "see to address, credentials (AWS_…) and rights: to read, put, list and delete"
        yield Check(name=name, ok=False, found=str(error), remedy=remedy)
        return
    remedy = "choose a store that does: here two workers could both be the first, and undo each other's changes"
    found = (
        f"{settings.events_url} does not honour {broken}" if broken else f"{settings.events_url} keeps its conditions"
    )
    yield Check(name=name, ok=not broken, found=found, remedy=remedy if broken else "")


def _conditions_ignored(place: ObjectPath) -> str:
    place.put_first(b"1")
    first = place.read_version()
    if place.put_first(b"2") or first is None or place.read_bytes() != b"1":
        return "If-None-Match (an object is made where there is none)"
    if not place.put_over(b"3", first.version) or place.put_over(b"4", first.version) or place.read_bytes() != b"3":
        return "If-Match (an object is put over the version that was read)"
    return "" if place in {*place.parent.iterdir()} else "that what was put is listed"


def _plan(settings: Settings, checks: list[Check]) -> Plan | None:
    try:
        plan = load_plan_file(settings.plan_path, signer_of(settings.data_dir))
    except FeatureStoreError as error:
        checks.append(Check(name="plan", ok=False, found=str(error), remedy="run `featurestore apply`"))
        return None
    found = f"version {plan.version}: {len(plan.views)} views, {len(plan.services)} services"
    checks.append(Check(name="plan", ok=True, found=found))
    return plan


def _online(settings: Settings, plan: Plan | None) -> Iterator[Check]:
    address = redacted_url(settings.online.url)
    try:
        client = connect(settings.online, settings.data_dir, start=False, timeout_s=DIAL_TIMEOUT_S)
        client.ping()
    except FeatureStoreError as error:
        yield Check(name="online store", ok=False, found=str(error), remedy=f"start the server at {address}")
        return
    yield Check(name="online store", ok=True, found=f"{client.address} answers")
    yield from _eviction(client)
    if plan is None:
        return
    try:
        held = PlanStore(client, settings.project, signer_of(settings.data_dir)).held()
    except FeatureStoreError as error:
        yield Check(name="plan in the online store", ok=False, found=str(error), remedy="run `featurestore apply`")
        return
    same = held is not None and held.version == plan.version
    yield Check(
        name="plan in the online store",
        ok=same,
        found="none" if held is None else f"version {held.version}",
        remedy="" if same else f"the file has version {plan.version}; run `featurestore apply`",
    )


def _eviction(client: StoreClient) -> Iterator[Check]:
    answer: Any = client.info("memory")  # allowed where CONFIG is not, as on managed servers
    policy = answer.get("maxmemory_policy", "")
    ok = policy == "noeviction"
    remedy = "" if ok else "set maxmemory-policy noeviction: an evicted tile is a wrong answer"
    yield Check(name="eviction policy", ok=ok, found=policy or "unknown", remedy=remedy)


def _sources(settings: Settings, plan: Plan) -> Iterator[Check]:
    yield from _event_logs(settings, plan)
    for source in {view.source.name: view.source for view in plan.views.values()}.values():
        path = settings.repo / source.path
        if "://" in source.path or path.exists():
            continue
        remedy = (
            "start `featurestore stream run`, which writes it" if source.topic else "land the data, or mend the path"
        )
        yield Check(name=f"source {source.name}", ok=False, found=f"nothing at {path}", remedy=remedy)


def _event_logs(settings: Settings, plan: Plan) -> Iterator[Check]:
    """Of topics, where either side lies in an object store: whether what is read is what workers write."""
    for source in {view.source.name: view.source for view in plan.views.values()}.values():
        if source.topic is None or (settings.events_url is None and not is_address(source.path)):
            continue
        written, read = settings.event_log / source.topic.name, place_at(source.path, settings.repo)
        remedy = f"workers write {written}; set {EVENTS_URL}, or the batch source's path, so that both agree"
        ok = str(written) == str(read)
        yield Check(name=f"event log of {source.name}", ok=ok, found=str(read), remedy="" if ok else remedy)


def _brokers(settings: Settings, plan: Plan) -> Iterator[Check]:
    declared = {view.source.topic.bootstrap_servers for view in plan.views.values() if view.source.topic}
    servers = {settings.bootstrap_servers} if settings.bootstrap_servers else declared
    for each in sorted(filter(None, servers)):
        answering = [address for address in each.split(",") if _dials(address)]
        yield Check(
            name="kafka",
            ok=bool(answering),
            found=f"{', '.join(answering)} answers" if answering else f"nobody answers at {each}",
            remedy=""
            if answering
            else "start the broker (`featurestore stream broker` on a laptop) or set KAFKA_BOOTSTRAP_SERVERS",
        )


def _dials(address: str) -> bool:
    host, _, port = address.strip().rpartition(":")
    try:
        with socket.create_connection((host or "localhost", int(port)), DIAL_TIMEOUT_S):
            return True
    except (OSError, ValueError):
        return False
