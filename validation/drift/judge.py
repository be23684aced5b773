"""How strong and how likely by chance is each difference of one contrast?

Every answer is computed for the observed counts and, by the same code, for hundreds of null windows of the same size.
"""

from collections.abc import Callable, Mapping
from typing import Final

import msgspec
import numpy as np

from validation.drift import measures, significance
from validation.drift.contrast import EXTRA, Contrast
from validation.drift.measures import Array

SHIFT: Final = {"normal scores": 0.5, "ks": 0.2, "cuts": 0.2, "low tail": 0.05, "high tail": 0.05}
"""Weights of the tests of numbers in the one p-value; measured, see docs/drift.md."""
MIX: Final = {"chi square": 0.5, "cells": 0.5}
MISSING_WEIGHT: Final = 0.15
_ONCE: Final = 1.5


class Minimums(msgspec.Struct, frozen=True, kw_only=True):
    """Effects below these are no drift, however significant: no model would notice."""

    wasserstein_sd: float = 0.1
    cohens_w: float = 0.1
    missing: float = 0.01
    """Difference of the shares of rows that are null; likewise of those that are not finite."""
    new: float = 0.005
    """Share of current values in categories that the reference has not seen."""


class Measured(msgspec.Struct, frozen=True, kw_only=True):
    """One measure: effect size and p-value of the difference, uncorrected."""

    name: str
    effect: float
    p: float
    minimum: float | None = None
    """The least effect that counts; None where the measure is told and does not decide."""
    noise: float | None = None
    """What 95 % of null windows of this size stay below; None where no null windows were drawn for it."""


Pair = tuple[Array, Array]


def split(contrast: Contrast, reference: Array, current: Array) -> dict[str, Pair]:
    """The counts of [..., cells + EXTRA] by what they tell: values, bins, lumped (rare ones as one)."""
    cells = contrast.cells
    values = reference[..., :cells], current[..., :cells]
    if contrast.kind == "number":
        bins: Pair = (_reduce(values[0], contrast.bins), _reduce(values[1], contrast.bins))
        return {"values": values, "bins": bins}
    return {"values": values, "bins": values, "lumped": (_lump(values[0], contrast), _lump(values[1], contrast))}


def _reduce(counts: Array, starts: np.ndarray[tuple[int], np.dtype[np.int64]]) -> Array:
    out: Array = np.add.reduceat(counts, starts, axis=-1) if len(starts) else counts
    return out


def _lump(counts: Array, contrast: Contrast) -> Array:
    if not contrast.rare.any():
        return counts
    return np.concatenate([counts[..., ~contrast.rare], counts[..., contrast.rare].sum(-1, keepdims=True)], axis=-1)


def one_p(contrast: Contrast, reference: Array, current: Array) -> Array:
    """The one p-value of a contrast: its values, what is missing, what is new."""
    parts = split(contrast, reference, current)
    found: dict[str, Array] = {}
    weights: dict[str, float] = {}
    # Without values, or with the same one throughout, only what is missing can tell.
    if contrast.cells > 1 and contrast.kind == "number":
        found, weights = _shift(*parts["values"]), dict(SHIFT)
    elif contrast.cells > 1:
        found, weights = _mix(*parts["lumped"]), dict(MIX)
        found["new"], weights["new"] = _new(*parts["values"])[1], MISSING_WEIGHT
    for place, name in ((-2, "missing"), (-1, "not finite")):
        # Asked of both sides together, so that having none of it costs nothing.
        if contrast.reference[:, place].any() or contrast.current[:, place].any():
            found[name] = _share(place, reference, current)[1]
            weights[name] = MISSING_WEIGHT
    if not found:
        return np.ones(reference.shape[:-1])
    return significance.together(list(found.values()), [weights[name] for name in found])


def _shift(reference: Array, current: Array) -> dict[str, Array]:
    ranks = significance.mid_ranks(reference + current)
    return {
        "normal scores": significance.rank_test(reference, current, significance.normal_scores(ranks)),
        "ks": significance.ks_test(reference, current),
        "cuts": significance.cut_test(reference, current),
        "low tail": significance.rank_test(reference, current, significance.low_scores(ranks)),
        "high tail": significance.rank_test(reference, current, significance.high_scores(ranks)),
    }


def _mix(reference: Array, current: Array) -> dict[str, Array]:
    return {
        "chi square": significance.chi_square(reference, current),
        "cells": significance.cell_test(reference, current),
    }


def _share(place: int, reference: Array, current: Array) -> Pair:
    """Difference of a special column's share of all rows, and its p."""
    rows = reference.sum(-1), current.sum(-1)
    hits = reference[..., place], current[..., place]
    difference = hits[1] / np.maximum(rows[1], 1) - hits[0] / np.maximum(rows[0], 1)
    return difference, significance.proportion_test(hits[0], rows[0], hits[1], rows[1])


def _new(reference: Array, current: Array) -> Pair:
    """Share of current values in categories without a reference value, and its p."""
    news = np.where(reference == 0, current, 0.0).sum(-1)
    # Counts of units are no integers: of a category that one entity has there is about one.
    once = ((reference > 0) & (reference <= _ONCE)).sum(-1)
    total = current.sum(-1)
    return news / np.maximum(total, 1), significance.new_test(once, reference.sum(-1), news, total)


def effects(contrast: Contrast, reference: Array, current: Array) -> dict[str, Array]:
    """Every effect size by name; the first is the one that decides about values."""
    parts = split(contrast, reference, current)
    found: dict[str, Array] = {}
    if contrast.kind == "number":
        found["wasserstein_sd"] = measures.wasserstein(*parts["values"], contrast.values, contrast.deviation)
        found["ks"] = measures.kolmogorov_smirnov(*parts["values"])
    else:
        found["cohens_w"] = measures.cohens_w(*parts["bins"])
        found["new"] = _new(*parts["values"])[0]
    found["psi"] = measures.psi(*parts["bins"])
    found["jensen_shannon"] = measures.jensen_shannon(*parts["bins"])
    found["chi_square"] = measures.cohens_w(*parts["bins"])
    for place, name in ((-2, "missing"), (-1, "not_finite")):
        if contrast.reference[:, place].any() or contrast.current[:, place].any():
            found[name] = _share(place, reference, current)[0]
    return found


def p_values(contrast: Contrast, reference: Array, current: Array) -> dict[str, Array]:
    """The p-value of each effect where rows are independent; Wasserstein's has no closed form and is absent."""
    parts = split(contrast, reference, current)
    found: dict[str, Array] = {}
    if contrast.kind == "number":
        found["ks"] = significance.ks_test(*parts["values"])
    else:
        found["cohens_w"] = significance.chi_square(*parts["lumped"])
        found["new"] = _new(*parts["values"])[1]
    distance = measures.jensen_shannon(*parts["bins"])
    found["psi"] = significance.psi_test(*parts["bins"])
    found["jensen_shannon"] = significance.jensen_shannon_test(*parts["bins"], distance)
    found["chi_square"] = significance.chi_square(*parts["bins"])
    for place, name in ((-2, "missing"), (-1, "not_finite")):
        if contrast.reference[:, place].any() or contrast.current[:, place].any():
            found[name] = _share(place, reference, current)[1]
    return found


def measured(contrast: Contrast, null: Pair, minimums: Minimums, *, independent: bool) -> tuple[Measured, ...]:
    """Every measure of a contrast; `null` are null windows [families, cells + EXTRA] of its size.

    Where rows are not independent, and for Wasserstein, the p-value is the rank of the effect among null windows.
    """
    observed = contrast.reference.sum(0), contrast.current.sum(0)
    seen, drawn = effects(contrast, *observed), effects(contrast, *null)
    closed: Mapping[str, Array] = p_values(contrast, *contrast.counted) if independent else {}
    least = msgspec.structs.asdict(minimums) | {"not_finite": minimums.missing}
    families = len(null[0])
    found = []
    for name, effect in seen.items():
        size: Callable[[Array], Array] = np.abs
        rank = (1 + int(np.count_nonzero(size(drawn[name]) >= size(effect) - 1e-12))) / (families + 1)
        found.append(
            Measured(
                name=name,
                effect=float(effect),
                p=float(closed[name]) if name in closed else rank,
                minimum=least.get(name),
                noise=float(np.quantile(size(drawn[name]), 0.95)),
            )
        )
    return tuple(found)


assert EXTRA == 2, "the two special columns are taken by their places from the end"
