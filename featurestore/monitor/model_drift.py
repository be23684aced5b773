"""Do services still see what their models were trained on?

Reference is the newest training set of a service, pinned by its manifest; current are the sampled answers of the last
hours. Tags of the service: `drift_window_h` (24), `drift_block_h` (rows within so many hours may depend on each other),
`drift_segments` (entity columns, comma separated), `drift_family_rate` (0.05), `drift_alarm` (informative, critical).
"""

from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Final, cast
from urllib.parse import quote

import msgspec
import pyarrow as pa
import pyarrow.compute as pc

from featurestore.clock import Clock
from featurestore.dataset.manifest import Manifest
from featurestore.errors import DefinitionError, SourceError
from featurestore.monitor import profiles
from featurestore.monitor.alerts import Finding, Severity
from featurestore.monitor.kept_profiles import AT, by_segment
from featurestore.monitor.served import HOUR_US
from featurestore.plan import Service
from featurestore.segments import declared_segments
from validation.drift.compare import DriftReport, compare
from validation.drift.repeats import most_repeated
from validation.profile.baseline import Baseline, baseline_of, unprofiled_of
from validation.profile.build import profile_table
from validation.profile.entities import EVERY
from validation.profile.profile import Profile
from validation.profile.store import ProfileStore
from validation.whole_file import replace_file

SCOPE: Final = "drift:"
LATE_US: Final = 3 * HOUR_US
"""So long after an hour files of its answers may come."""
_SEED: Final = 0


class Checked(msgspec.Struct, frozen=True, kw_only=True):
    """The last comparison of a service."""

    service: str
    dataset: str
    checked_us: int
    rows: int
    """Answers of the current window."""
    report: DriftReport


class ModelDrift:
    """Compares what services serve with what their models were trained on."""

    def __init__(self, folder: Path, store: ProfileStore, log: Path, datasets: Path, clock: Clock) -> None:
        self._folder = folder
        self._store = store
        self._log = log
        self._datasets = datasets
        self._clock = clock

    def check(self, service: Service, sets: Sequence[Manifest], personal: Collection[str] = ()) -> Checked | None:
        """One service against the newest of its training sets; None without a set, or without answers.

        Features of the views that are `personal` (names that they go by in the service) are left out, and with them the
        service's cohorts: profiles and findings hold values.
        Raises DefinitionError for tags that make no sense, DriftError for a torn set.
        """
        options = _options(service)
        if personal:
            options = msgspec.structs.replace(options, segments=())
        if not sets:
            return None
        manifest = max(sets, key=lambda each: each.created_us)
        now_us = self._clock()
        start_us = now_us - round(options.window_h * HOUR_US)
        # Profiles are kept of whole hours, also of the one in which the window begins, and of those that files come
        # late to.
        first_us = min(start_us, now_us - LATE_US) // HOUR_US * HOUR_US
        answers = profiles.served_rows(self._log, service.name, first_us, now_us, options.segments)
        if answers is None:
            return None
        whole = answers.table
        options = msgspec.structs.replace(
            options, segments=tuple(name for name in options.segments if name not in answers.left_out)
        )
        keys = profiles.service_keys(whole)
        trained = profiles.training_rows(self._datasets / manifest.name, manifest, service, options.segments, keys)
        features = [
            name
            for name in trained.column_names
            if name in whole.column_names and ":" in name and name.partition(":")[0] not in personal
        ]
        if not features:
            return None
        baseline = baseline_of(trained.select(features))
        owners = profiles.owner_columns(trained)
        kept = by_segment(trained, baseline, "training", options.segments, entities=owners)
        self._store.put(manifest.name, kept, boundary="training", baseline=baseline)
        profiles.put_served(self._store, service.name, whole, baseline, options.segments)
        served = whole.filter(pc.greater_equal(whole[AT].cast(pa.int64()), start_us))
        if not len(served):
            return None
        entities = most_repeated(served, owners)
        sides = [_side(table, baseline, options, entities) for table in (trained, served)]
        report = compare(
            sides[0],
            sides[1],
            baseline,
            seed=_SEED,
            block_hours=options.block_h,
            family_rate=options.family_rate,
            left_out=[*answers.reasons, *unprofiled_of(trained.select(features))],
            names=(f"training set {manifest.name}", f"answers of the last {options.window_h:g} h"),
        )
        checked = Checked(
            service=service.name,
            dataset=manifest.name,
            checked_us=now_us,
            rows=served.num_rows,
            report=report,
        )
        replace_file(_path(self._folder, service.name), msgspec.json.encode(checked))
        return checked


def last_check(folder: Path, service: str) -> Checked | None:
    """The last comparison that was made of a service; raises SourceError for a torn file."""
    path = _path(folder, service)
    try:
        return msgspec.json.decode(path.read_bytes(), type=Checked)
    except FileNotFoundError:
        return None
    except (OSError, msgspec.MsgspecError) as error:
        raise SourceError(f"{path}: the last drift check cannot be read: {error}; remove it") from error


def findings(checked: Checked, service: Service) -> list[Finding]:
    """One finding a feature that drifted."""
    severity = _options(service).alarm
    found = []
    for each in checked.report.alarms:
        view, _, feature = each.feature.partition(":")
        names = {one.name: one.view for one in service.projections}
        size = next((one.effect for one in each.measures if one.name == each.effect), 0.0)
        found.append(
            Finding(
                key=f"{SCOPE}{service.name}:{each.feature}:{each.segment}",
                severity=severity,
                title=f"{each.feature} is not what the model of service {service.name} was trained on",
                detail=f"{each.effect} {size:.3g}, q {each.q:.2g}, {each.rows_current} answers "
                f"(which tell as much as {each.counted_current:.0f} of entities of their own) against "
                f"{each.rows_reference} rows of {checked.dataset}"
                + (f"; new: {', '.join(each.new)}" if each.new else ""),
                owner=service.owner,
                service=service.name,
                view=names.get(view, view),
                feature=feature,
                evidence=f"monitor/drift/{quote(service.name, safe='')}.json in the data folder",
            )
        )
    return found


def _path(folder: Path, service: str) -> Path:
    return folder / f"{quote(service, safe='')}.json"


def _side(table: pa.Table, baseline: Baseline, options: "_Options", entities: Sequence[str]) -> list[Profile]:
    return profile_table(
        table,
        baseline,
        segments=options.segments,
        time_column=None if options.block_h is None else AT,
        span_us=HOUR_US if options.block_h is None else round(options.block_h * HOUR_US),
        entities=entities,
        most_entities=EVERY,
    )


class _Options(msgspec.Struct, frozen=True, kw_only=True):
    window_h: float
    block_h: float | None
    family_rate: float
    segments: tuple[str, ...]
    alarm: Severity


def _options(service: Service) -> _Options:
    alarm = service.tags.get("drift_alarm", "informative")
    if alarm not in ("informative", "critical"):
        raise DefinitionError(f"service {service.name!r}: tag drift_alarm is {alarm!r}; expected informative, critical")
    return _Options(
        window_h=number_of(service, "drift_window_h", 24.0),
        block_h=number_of(service, "drift_block_h") if "drift_block_h" in service.tags else None,
        family_rate=number_of(service, "drift_family_rate", 0.05),
        segments=declared_segments(service.tags),
        alarm=cast("Severity", alarm),
    )


def number_of(service: Service, tag: str, default: float = 0.0) -> float:
    """A number above 0 in a service's tag; raises DefinitionError where it is none, and no default is."""
    text = service.tags.get(tag)
    try:
        number = default if text is None else float(text)
    except ValueError:
        number = 0.0
    if not number > 0:
        raise DefinitionError(f"service {service.name!r}: tag {tag} is {text!r}; give a number above 0")
    return number
