"""How far apart are two distributions? Effect sizes over counts on the same ordered cells.

`reference` and `current` are counts of shape [..., cells]; leading axes are further pairs, so that hundreds of
resampled windows are measured at once. No value on one side: nothing can be said, and the answer is 0.
"""

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[np.float64]
_HALF = 0.5


def shares(counts: Array) -> Array:
    """Counts as shares of their sum; all 0 where there is none."""
    total = counts.sum(-1, keepdims=True)
    out: Array = counts / np.where(total > 0, total, 1.0)
    return out


def psi(reference: Array, current: Array) -> Array:
    """Population stability index; half a count is added to every cell, so that an empty one is no infinity.

    >>> float(psi(np.array([50.0, 50.0]), np.array([500.0, 500.0])))
    0.0
    """
    p, q = shares(reference + _HALF), shares(current + _HALF)
    return _where_both(reference, current, ((q - p) * np.log(q / p)).sum(-1))


def jensen_shannon(reference: Array, current: Array) -> Array:
    """Jensen-Shannon distance to the base 2: 0 is equal, 1 shares no cell.

    >>> float(jensen_shannon(np.array([1.0, 0.0]), np.array([0.0, 7.0])))
    1.0
    """
    p, q = shares(reference), shares(current)
    middle = (p + q) / 2
    divergence = (_log_ratio(p, middle) + _log_ratio(q, middle)).sum(-1) / 2 / np.log(2)
    return _where_both(reference, current, np.sqrt(np.maximum(divergence, 0)))


def _log_ratio(p: Array, middle: Array) -> Array:
    safe = np.where(p > 0, p, 1.0)
    out: Array = p * np.log(safe / np.where(p > 0, middle, 1.0))
    return out


def kolmogorov_smirnov(reference: Array, current: Array) -> Array:
    """The greatest distance between the two cumulative distributions.

    >>> float(kolmogorov_smirnov(np.array([1.0, 1.0]), np.array([2.0, 0.0])))
    0.5
    """
    gap = np.abs(np.cumsum(shares(reference), -1) - np.cumsum(shares(current), -1))
    return _where_both(reference, current, gap.max(-1, initial=0.0))


def wasserstein(reference: Array, current: Array, values: Array, deviation: float) -> Array:
    """Earth mover's distance between the cells' `values` (ascending), in units of `deviation`.

    >>> float(wasserstein(np.array([9.0, 0.0]), np.array([0.0, 3.0]), np.array([1.0, 5.0]), 2.0))
    2.0
    """
    if deviation <= 0 or len(values) < 2:
        return np.zeros(reference.shape[:-1])
    gap = np.abs(np.cumsum(shares(reference), -1) - np.cumsum(shares(current), -1))[..., :-1]
    return _where_both(reference, current, (gap * np.diff(values)).sum(-1) / deviation)


def cohens_w(reference: Array, current: Array) -> Array:
    """The effect size of the chi-square test (Cohen 1988): distance of the current shares from the pooled ones.

    Pooled as if both sides were equally long, so that the same shift has the same effect at any window size.

    >>> round(float(cohens_w(np.array([50.0, 50.0]), np.array([60.0, 40.0]))), 3)
    0.201
    """
    p, q = shares(reference), shares(current)
    middle = (p + q) / 2
    safe = np.where(middle > 0, middle, 1.0)
    return _where_both(reference, current, np.sqrt(((q - p) ** 2 / safe).sum(-1)))


def _where_both(reference: Array, current: Array, effect: Array) -> Array:
    out: Array = np.where((reference.sum(-1) > 0) & (current.sum(-1) > 0), effect, 0.0)
    return out
