"""Has anything drifted? Every feature and segment of two sets of profiles, or of two tables, in one family of tests.

An alarm needs both: a corrected p-value at most the calibrated threshold, and an effect that matters.
"""

import itertools
from collections.abc import Iterator, Sequence
from typing import Final, Literal

import msgspec
import numpy as np
import pyarrow as pa

from validation.drift.contrast import Contrast, borderline, contrast_of
from validation.drift.decision import Calibration, benjamini_hochberg, calibrate, ranked, too_small
from validation.drift.dependence import warned
from validation.drift.judge import Measured, Minimums, measured, one_p
from validation.drift.measures import Array
from validation.drift.null import Deals, redrawn
from validation.drift.repeats import OWNER, with_owners
from validation.errors import PlatformError, did_you_mean
from validation.profile.baseline import Baseline, FeatureBaseline, baseline_of, unprofiled_of
from validation.profile.build import HOUR_US, profile_table
from validation.profile.entities import EVERY, repeats_of
from validation.profile.profile import Profile, merge, top_of

Verdict = Literal["drift", "too small", "none", "cannot tell", "no data"]
FAMILIES: Final = 400
MOST_FAMILIES: Final = 9_999
FAMILY_RATE: Final = 0.05
FREQUENT: Final = 0.005
"""A number that makes so large a share of values, and at least twice the reference's, is told by name."""
LEAST_COUNTED: Final = 5.0
"""With less than so many entities a side, where entities repeat, nothing can be told."""
_NAMED: Final = 10


class DriftError(PlatformError):
    """A comparison that cannot be made as asked."""

    exit_code = 2


class Bar(msgspec.Struct, frozen=True, kw_only=True):
    """One bin or category of both sides, as shares of values."""

    label: str
    reference: float
    current: float


class Finding(msgspec.Struct, frozen=True, kw_only=True):
    """What became of one feature in one segment."""

    feature: str
    segment: str
    kind: str
    verdict: Verdict
    """drift: significant, and the effect matters; too small: significant only; cannot tell: too few blocks of time
    for any p-value to be significant; no data: one side has no rows."""
    p: float
    q: float
    """p corrected by Benjamini and Hochberg over all features and segments."""
    effect: str
    """The measure that decides: of those significant by themselves the largest in units of its minimum."""
    strength: float
    """The effect in units of its minimum: what findings are ranked by."""
    measures: tuple[Measured, ...] = ()
    rows_reference: int = 0
    rows_current: int = 0
    mean_reference: float | None = None
    mean_current: float | None = None
    counted_reference: float = 0.0
    counted_current: float = 0.0
    """How many rows of entities of their own would tell as much; as many as there are where no entity repeats."""
    new: tuple[str, ...] = ()
    """Categories of the current side that the reference has not seen; of numbers that drift those that became frequent
    (see FREQUENT). The most frequent first, at most 10."""
    bars: tuple[Bar, ...] = ()


class DriftReport(msgspec.Struct, frozen=True, kw_only=True):
    """Every finding, the strongest first, and how often such a comparison alarms under no drift."""

    reference: str
    current: str
    drifted: bool
    findings: tuple[Finding, ...]
    calibration: Calibration | None
    """None where nothing could be compared."""
    tests: int
    seed: int
    block_hours: float | None
    """Rows within so many hours may depend on each other; None: rows are taken as independent."""
    blocks_reference: int = 0
    blocks_current: int = 0
    entities: bool = False
    """Whether both sides' profiles say whose each row is, so that rows of one entity are taken together."""
    left_out: tuple[str, ...] = ()
    """Columns that were not compared, each with the reason."""
    warnings: tuple[str, ...] = ()
    """What makes the stated rate of false alarms too low."""

    @property
    def alarms(self) -> tuple[Finding, ...]:
        """The findings that are drift."""
        return tuple(finding for finding in self.findings if finding.verdict == "drift")

    def encode(self) -> bytes:
        """The report as JSON, indented."""
        return msgspec.json.format(msgspec.json.encode(self), indent=2)


def compare(
    reference: Sequence[Profile],
    current: Sequence[Profile],
    baseline: Baseline,
    *,
    seed: int,
    family_rate: float = FAMILY_RATE,
    minimums: Minimums | None = None,
    block_hours: float | None = None,
    families: int | None = None,
    names: tuple[str, str] = ("reference", "current"),
    left_out: Sequence[str] = (),
) -> DriftReport:
    """The comparison of two sets of profiles on one baseline.

    Where profiles say whose rows are, those of one entity are taken together. With `block_hours`, rows of the same so
    many hours are dealt out together, so that what depends on time (weather, a bad day) is not taken for thousands of
    independent rows. The same arguments give the same report.
    """
    minimums = minimums or Minimums()
    if not 0 < family_rate < 1:
        raise DriftError(f"family rate {family_rate}: expected a share between 0 and 1")
    block_us = None if block_hours is None else round(block_hours * HOUR_US)
    contrasts, empty = _contrasts(reference, current, baseline, block_us)
    report = DriftReport(
        reference=names[0],
        current=names[1],
        drifted=False,
        findings=tuple(empty),
        calibration=None,
        tests=len(contrasts),
        seed=seed,
        block_hours=block_hours,
        entities=bool(contrasts) and all(one.known for one in contrasts),
        left_out=tuple(left_out),
        warnings=tuple(warned(contrasts, reference, current, block_us, seed)),
    )
    if not contrasts:
        return report
    deals: Deals | None = None
    if block_hours is not None:
        # A p-value by rank is at least 1 / (families + 1), and one drifting feature must pass the whole correction.
        enough = max(families or 0, 1_999, min(MOST_FAMILIES, round(2 * len(contrasts) / family_rate)))
        deals = Deals(contrasts, enough, seed)
    windows = [deals.windows(one) if deals else redrawn(one, families or FAMILIES, seed) for one in contrasts]
    parts = [deals.rows_a_block(one) if deals else 1.0 for one in contrasts]
    observed = np.array(
        [float(one_p(one, *(side / part for side in one.counted))) for one, part in zip(contrasts, parts, strict=True)]
    )
    null = np.stack(
        [
            one_p(one, window[0] / part, window[1] / part)
            for one, window, part in zip(contrasts, windows, parts, strict=True)
        ],
        axis=1,
    )
    if deals is not None:
        observed, null = ranked(observed, null)
    else:
        for place, one in enumerate(contrasts):
            if too_small(null[:, place], family_rate / len(contrasts)):
                # By itself, so that one column's p-values do not lower the threshold of all others.
                more = max(len(null), 1_999, min(MOST_FAMILIES, round(2 * len(contrasts) / family_rate)))
                drawn = np.concatenate([one_p(one, *part) for part in _redrawn_in_parts(one, more, seed)])
                own, of_null = ranked(observed[place : place + 1], drawn[:, None])
                observed[place], null[:, place] = own[0], of_null[: len(null), 0]
    calibration = calibrate(null, family_rate)
    q = benjamini_hochberg(observed)
    few = [min(float(side.sum()) for side in one.counted) < LEAST_COUNTED and max(one.repeats) > 1 for one in contrasts]
    blind = deals is not None and deals.least_p > calibration.threshold
    findings = [
        _finding(
            one,
            measured(one, window, minimums, independent=deals is None),
            p=float(observed[place]),
            q=float(q[place]),
            calibration=calibration,
            blind=blind or few[place],
        )
        for place, (one, window) in enumerate(zip(contrasts, windows, strict=True))
    ]
    findings = [
        msgspec.structs.replace(one, new=_became_frequent(one, reference, current, baseline))
        if one.verdict == "drift" and one.kind == "number"
        else one
        for one in findings
    ]
    order: dict[Verdict, int] = {"drift": 0, "too small": 1, "none": 2, "cannot tell": 2, "no data": 3}
    ranked_findings = sorted([*findings, *empty], key=lambda f: (order[f.verdict], -f.strength, f.feature, f.segment))
    return msgspec.structs.replace(
        report,
        drifted=any(finding.verdict == "drift" for finding in findings),
        findings=tuple(ranked_findings),
        calibration=calibration,
        blocks_reference=deals.reference_blocks if deals else 0,
        blocks_current=deals.current_blocks if deals else 0,
    )


def _redrawn_in_parts(contrast: Contrast, families: int, seed: int) -> Iterator[tuple[Array, Array]]:
    """Null windows, as many at a time as memory is bounded with."""
    for number, first in enumerate(range(0, families, FAMILIES)):
        yield redrawn(contrast, min(FAMILIES, families - first), seed + number)


def _contrasts(
    reference: Sequence[Profile], current: Sequence[Profile], baseline: Baseline, block_us: int | None
) -> tuple[list[Contrast], list[Finding]]:
    sides: list[dict[tuple[str, str], list[Profile]]] = [{}, {}]
    for side, profiles in zip(sides, (reference, current), strict=True):
        for profile in profiles:
            if profile.baseline != baseline.id:
                raise DriftError(
                    f"a profile of {profile.feature!r} is on baseline {profile.baseline}, not {baseline.id}: "
                    "profile both sides on one baseline"
                )
            side.setdefault((profile.feature, profile.segment), []).append(profile)
    contrasts, empty = [], []
    unnamed: dict[str, frozenset[int]] = {}
    for key in sorted({*sides[0], *sides[1]}):
        found = [side.get(key, []) for side in sides]
        rows = [merge(side).rows if side else 0 for side in found]
        if not all(rows):
            empty.append(_nothing(*key, baseline.feature(key[0]).kind, rows))
            continue
        feature = baseline.feature(key[0])
        if key[0] not in unnamed:
            whole = [merge(side.get((key[0], ""), mine)) for side, mine in zip(sides, found, strict=True)]
            unnamed[key[0]] = borderline(whole[0], whole[1], feature, _repeats(whole, feature))
        # Whole blocks are dealt with what is in them; entities that are in several are warned of.
        repeats = (1.0, 1.0) if block_us is not None else _repeats([merge(side) for side in found], feature)
        contrasts.append(
            contrast_of(found[0], found[1], feature, block_us=block_us, unnamed=unnamed[key[0]], repeats=repeats)
        )
    return contrasts, empty


def _repeats(sides: Sequence[Profile], feature: FeatureBaseline) -> tuple[float, float]:
    found = [repeats_of(side.entities, side.values, number=feature.kind == "number") for side in sides]
    return found[0], found[1]


def _became_frequent(
    finding: Finding, reference: Sequence[Profile], current: Sequence[Profile], baseline: Baseline
) -> tuple[str, ...]:
    feature, place = baseline.feature(finding.feature), (finding.feature, finding.segment)
    before, now = (merge(one for one in side if (one.feature, one.segment) == place) for side in (reference, current))
    known, rest = top_of(before, 1_024, feature)
    counts = dict(known)
    found = [
        text
        for text, count in top_of(now, _NAMED, feature)[0]
        if count >= FREQUENT * now.values and count / now.values >= 2 * counts.get(text, rest) / max(before.values, 1)
    ]
    return tuple(found)


def _nothing(feature: str, segment: str, kind: str, rows: Sequence[int]) -> Finding:
    return Finding(
        feature=feature,
        segment=segment,
        kind=kind,
        verdict="no data",
        p=1.0,
        q=1.0,
        effect="",
        strength=0.0,
        rows_reference=rows[0],
        rows_current=rows[1],
    )


def _finding(
    contrast: Contrast, told: tuple[Measured, ...], *, p: float, q: float, calibration: Calibration, blind: bool
) -> Finding:
    deciding = [one for one in told if one.minimum is not None]
    strengths = {one.name: abs(one.effect) / one.minimum for one in deciding if one.minimum}
    significant = [one.name for one in deciding if one.p <= calibration.asked]
    counted = [float(side.sum()) for side in contrast.counted]
    best = max(significant or strengths, key=lambda name: strengths[name], default="")
    verdict: Verdict = "cannot tell" if blind else "none"
    if q <= calibration.threshold and not blind:
        verdict = "drift" if significant and strengths[best] >= 1 else "too small"
    reference, current = contrast.reference.sum(0), contrast.current.sum(0)
    return Finding(
        feature=contrast.feature,
        segment=contrast.segment,
        kind=contrast.kind,
        verdict=verdict,
        p=p,
        q=q,
        effect=best,
        strength=strengths.get(best, 0.0),
        measures=told,
        rows_reference=int(reference.sum()),
        rows_current=int(current.sum()),
        mean_reference=contrast.reference_mean,
        mean_current=contrast.current_mean,
        counted_reference=counted[0],
        counted_current=counted[1],
        new=_new(contrast),
        bars=_bars(contrast),
    )


def _new(contrast: Contrast) -> tuple[str, ...]:
    if contrast.kind != "category":
        return ()
    reference, current = (side.sum(0)[: contrast.cells] for side in (contrast.reference, contrast.current))
    fresh = [place for place in np.argsort(-current, kind="stable") if reference[place] == 0 and current[place] > 0]
    return tuple(contrast.labels[place] for place in fresh[:_NAMED])


def _bars(contrast: Contrast, most: int = 24) -> tuple[Bar, ...]:
    cells = contrast.cells
    sides = [side.sum(0)[:cells] for side in (contrast.reference, contrast.current)]
    if contrast.kind == "number" and cells:
        sides = [np.add.reduceat(side, contrast.bins) for side in sides]
    shares = [side / max(side.sum(), 1.0) for side in sides]
    chosen = list(range(len(contrast.labels)))
    if contrast.kind == "category":
        chosen = sorted(chosen, key=lambda place: -max(shares[0][place], shares[1][place]))[:most]
    return tuple(
        Bar(label=contrast.labels[place], reference=float(shares[0][place]), current=float(shares[1][place]))
        for place in chosen
    )


def compare_tables(
    reference: pa.Table,
    current: pa.Table,
    *,
    seed: int,
    features: Sequence[str] | None = None,
    categorical: Sequence[str] = (),
    segments: Sequence[str] = (),
    time_column: str | None = None,
    entities: Sequence[str] = (),
    block_hours: float | None = None,
    family_rate: float = FAMILY_RATE,
    minimums: Minimums | None = None,
    families: int | None = None,
    names: tuple[str, str] = ("reference", "current"),
    left_out: Sequence[str] = (),
) -> DriftReport:
    """The comparison of two tables; the baseline is the reference's. Segment, time and entity columns are no features.

    Rows of one entity are taken together; without `entities`, rows that are equal where they repeat (see `repeats`).

    >>> rng = np.random.default_rng(0)
    >>> tables = [pa.table({"x": rng.standard_normal(500) + shift}) for shift in (0, 0, 1)]
    >>> [compare_tables(tables[0], table, seed=1).drifted for table in tables[1:]]
    [False, True]
    """
    if block_hours is not None and time_column is None:
        raise DriftError("blocks of time need a time column")
    known = {*segments, time_column, *(() if features else entities)}
    kept = [name for name in reference.column_names if name not in known]
    baseline = baseline_of(reference.select(kept), features=features, categorical=categorical)
    unprofiled = [] if features is not None else unprofiled_of(reference.select(kept))
    chosen = [feature.name for feature in baseline.features]
    for name, side in itertools.product(entities, (reference, current)):
        if name not in side.column_names:
            raise DriftError(f"no column {name!r}, which says whose a row is; {did_you_mean(name, side.column_names)}")
    repeated = False
    if all(name in current.column_names for name in chosen):
        reference, current, repeated = with_owners(reference, current, entities=entities, features=baseline.features)
    span_us = None if block_hours is None else round(block_hours * HOUR_US)
    sides = [
        profile_table(
            table,
            baseline,
            segments=segments,
            time_column=time_column if span_us else None,
            span_us=span_us or HOUR_US,
            entities=[name for name in (OWNER,) if name in table.column_names],
            most_entities=EVERY,
        )
        for table in (reference, current)
    ]
    report = compare(
        sides[0],
        sides[1],
        baseline,
        seed=seed,
        family_rate=family_rate,
        minimums=minimums,
        block_hours=block_hours,
        families=families,
        names=names,
        left_out=[*left_out, *unprofiled],
    )
    if not repeated:
        return report
    told = "equal rows repeat and were taken for one entity each; name the columns of the entity"
    return msgspec.structs.replace(report, warnings=(*report.warnings, told))
