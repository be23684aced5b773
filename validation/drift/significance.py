"""Could chance alone have made this difference? p-values over counts on the same ordered cells.

All are functions of ranks or of counts, so that they hold for any distribution of the values; none assumes a shape. The
variances of the rank tests are those of a random division of the pooled values, exact at any window size and with ties.
`reference` and `current` have shape [..., cells] as in `validation.drift.measures`. No value on one side: p is 1.
"""

from collections.abc import Sequence
from typing import Final

import numpy as np
from scipy import special

from validation.drift.measures import Array, kolmogorov_smirnov, psi

_LEAST: Final = 1e-300


def rank_test(reference: Array, current: Array, scores: Array) -> Array:
    """Two-sided p of the sum of the current side's scores (a linear rank test); scores per cell, maybe per pair."""
    n, m = current.sum(-1), reference.sum(-1)
    pooled, size = reference + current, n + m
    safe = np.maximum(size, 2.0)
    mean = (pooled * scores).sum(-1) / safe
    away = scores - mean[..., None]
    squares = (pooled * away**2).sum(-1)
    variance = n * m / (safe * (safe - 1)) * squares
    moved = (current * away).sum(-1)
    # The mean of one score is rounded: what is left of it over no variance is rounding too, and no evidence.
    told = ((pooled > 0).sum(-1) > 1) & (n > 0) & (m > 0) & (variance > 0)
    p = 2 * special.ndtr(-np.abs(moved) / np.sqrt(np.where(told, variance, 1.0)))
    out: Array = np.where(told, p, 1.0)
    return out


def mid_ranks(pooled: Array) -> Array:
    """The mid-rank of each cell as a share between 0 and 1."""
    size = np.maximum(pooled.sum(-1, keepdims=True), 1.0)
    out: Array = np.clip((np.cumsum(pooled, -1) - pooled / 2) / size, 1e-12, 1 - 1e-12)
    return out


def normal_scores(ranks: Array) -> Array:
    """Van der Waerden's scores: against a shift, as good as Student's test on normal values and better on others."""
    out: Array = special.ndtri(ranks)
    return out


def low_scores(ranks: Array) -> Array:
    """Savage's scores of the lower tail."""
    out: Array = np.log(ranks)
    return out


def high_scores(ranks: Array) -> Array:
    """Savage's scores of the upper tail."""
    out: Array = -np.log1p(-ranks)
    return out


def ks_test(reference: Array, current: Array) -> Array:
    """p of the greatest distance of the cumulative distributions: Kolmogorov's limit, with Stephens' correction."""
    n, m = current.sum(-1), reference.sum(-1)
    root = np.sqrt(n * m / np.maximum(n + m, 1.0))
    p = special.kolmogorov((root + 0.12 + 0.11 / np.maximum(root, 0.1)) * kolmogorov_smirnov(reference, current))
    out: Array = np.where((n > 0) & (m > 0), p, 1.0)
    return out


def chi_square(reference: Array, current: Array) -> Array:
    """p of Pearson's test on the contingency table of two rows; cells that are empty on both sides do not count."""
    return special.chdtrc(*_chi_square(reference, current))  # type: ignore[no-any-return]  # untyped library


def _chi_square(reference: Array, current: Array) -> tuple[Array, Array]:
    n, m = current.sum(-1, keepdims=True), reference.sum(-1, keepdims=True)
    pooled = reference + current
    size = np.maximum(n + m, 1.0)
    # Of a table of two rows both rows differ from their expectation by the same number.
    weight = size * size / np.maximum(n * m, _LEAST) / np.where(pooled > 0, pooled, 1.0)
    statistic = ((current - pooled * n / size) ** 2 * weight).sum(-1)
    freedom = np.maximum((pooled > 0).sum(-1) - 1, 1)
    usable = (n[..., 0] > 0) & (m[..., 0] > 0)
    return freedom.astype(np.float64), np.where(usable, statistic, 0.0)


def psi_test(reference: Array, current: Array) -> Array:
    """p of a PSI: under no drift it is (1/n + 1/m) times a chi-square variable (Yurdakul 2018)."""
    n, m = current.sum(-1), reference.sum(-1)
    freedom = np.maximum(((reference + current) > 0).sum(-1) - 1, 1)
    scale = 1 / np.maximum(n, 1.0) + 1 / np.maximum(m, 1.0)
    return special.chdtrc(freedom, psi(reference, current) / scale)  # type: ignore[no-any-return]  # untyped library


def jensen_shannon_test(reference: Array, current: Array, distance: Array) -> Array:
    """p of a Jensen-Shannon distance: to second order its square is chi-square times (1/n + 1/m) / 8 ln 2."""
    n, m = current.sum(-1), reference.sum(-1)
    freedom = np.maximum(((reference + current) > 0).sum(-1) - 1, 1)
    scale = (1 / np.maximum(n, 1.0) + 1 / np.maximum(m, 1.0)) / (8 * np.log(2))
    return special.chdtrc(freedom, distance**2 / scale)  # type: ignore[no-any-return]  # untyped library


def proportion_test(
    hits_reference: Array, reference: Array, hits_current: Array, current: Array, *, correction: float = 0.5
) -> Array:
    """Two-sided p of two proportions: the likelihood ratio of the table of four, with Yates' half a count.

    >>> round(float(proportion_test(*map(np.asarray, (10.0, 1000.0, 40.0, 1000.0)))), 7)
    1.84e-05
    """
    size = np.maximum(reference + current, 1.0)
    expected = (hits_reference + hits_current) * current / size
    moved = hits_current - expected
    step = np.sign(moved) * np.maximum(np.abs(moved) - correction, 0.0)
    statistic = np.zeros(np.shape(moved))
    for sign, row in ((1.0, current), (-1.0, reference)):
        for hit, total in ((1.0, hits_reference + hits_current), (-1.0, size - hits_reference - hits_current)):
            fair = total * row / size
            found = np.maximum(fair + sign * hit * step, 0.0)
            safe = np.where((found > 0) & (fair > 0), found / np.where(fair > 0, fair, 1.0), 1.0)
            statistic = statistic + 2 * found * np.log(safe)
    out: Array = 2 * special.ndtr(-np.sqrt(np.maximum(statistic, 0.0)))
    return np.where((reference > 0) & (current > 0), out, 1.0)


def cut_test(reference: Array, current: Array, cuts: int = 9) -> Array:
    """p of the largest difference below any of the pooled deciles, each a test of two proportions (Bonferroni).

    It sees what leaves an end of the distribution empty, where distances of cumulative distributions are blind.
    """
    if not reference.shape[-1]:
        return np.ones(reference.shape[:-1])
    pooled = np.cumsum(reference + current, -1)
    size = pooled[..., -1:]
    places = np.stack(
        [np.argmax(pooled >= size * share, axis=-1) for share in np.arange(1, cuts + 1) / (cuts + 1)], axis=-1
    )
    below_reference = np.take_along_axis(np.cumsum(reference, -1), places, -1)
    below_current = np.take_along_axis(np.cumsum(current, -1), places, -1)
    n, m = current.sum(-1, keepdims=True), reference.sum(-1, keepdims=True)
    p = proportion_test(below_reference, m, below_current, n)
    out: Array = np.minimum(p.min(-1) * cuts, 1.0)
    return out


def cell_test(reference: Array, current: Array) -> Array:
    """p of the largest difference of any one cell against the others (Bonferroni over cells that hold something)."""
    n, m = current.sum(-1, keepdims=True), reference.sum(-1, keepdims=True)
    # Half of Yates' correction: Bonferroni over cells is on the safe side already (measured: 1.0 to 1.1 of the level).
    p = proportion_test(reference, m, current, n, correction=0.25)
    held = np.maximum(((reference + current) > 0).sum(-1), 1)
    out: Array = np.minimum(p.min(-1, initial=1.0) * held, 1.0)
    return out


def new_test(once: float, reference: Array, news: Array, current: Array) -> Array:
    """One-sided p of `news` values in categories the reference has not seen.

    The chance of such a value is Good and Turing's: the share of reference values whose category occurs `once`, and one
    more, since having seen none does not prove that there is none.
    """
    chance = np.minimum((once + 1) / (reference + 1), 1.0)
    # The upper tail of a binomial variable, as the incomplete beta function: counts of blocks are no integers.
    p = special.betainc(np.maximum(news, 1e-9), np.maximum(current - news, 0.0) + 1, chance)
    out: Array = np.where((news > 0) & (reference > 0), p, 1.0)
    return out


def together(ps: Sequence[Array], weights: Sequence[float]) -> Array:
    """One p of several dependent ones by the Cauchy combination (Liu and Xie 2020).

    >>> round(float(together([np.asarray(0.001), np.asarray(0.5)], [1, 1])), 4)
    0.002
    """
    total = sum(weights)
    # p near 1 are held at 0.9: a Cauchy variable's far negative tail would hide the others.
    mixed = sum(weight / total / np.tan(np.clip(p, _LEAST, 0.9) * np.pi) for p, weight in zip(ps, weights, strict=True))
    out: Array = np.asarray(0.5 - np.arctan(mixed) / np.pi)
    # For very small p the arctangent cancels; there the tail is 1 / (pi * x).
    return np.where(np.asarray(mixed) > 1e6, 1 / (np.pi * np.maximum(mixed, 1.0)), out)
