"""Is one method's power lower than the best of others' by more than chance, all at the same rate of false alarms?

A paired bootstrap: null draws and shifted draws are drawn again with replacement, the same ones for all methods, and
each method's threshold is found anew on its null scores; so the error of thresholds counts too, and what methods have
in common cancels out. That the best of many is looked at is allowed for by the greatest difference that chance makes of
any (Romano and Wolf 2005).
"""

from collections.abc import Mapping
from typing import Final, NamedTuple

import numpy as np

Scores = Mapping[str, np.ndarray]
RESAMPLES: Final = 2_000
_AT_ONCE: Final = 100


class Told(NamedTuple):
    """How often each method sees the shift, and what chance says of the differences."""

    power: dict[str, float]
    best: str
    """The method that sees it most often, of all but ours."""
    low: float
    high: float
    """Limits of 95 % of ours less the best's, where chance alone differs."""
    p: float
    """How often chance makes some method look that much better than ours, where none is."""


def compared(null: Scores, shifted: Scores, ours: str, level: float, seed: int = 0) -> Told:
    """Ours against all others; a score is the smaller, the more drift. Seeds of all methods are in the same order.

    >>> rng = np.random.default_rng(0)
    >>> null = {"a": rng.normal(size=900), "b": rng.normal(size=900)}
    >>> shifted = {"a": rng.normal(-1, size=900), "b": rng.normal(-3, size=900)}
    >>> compared(null, shifted, "a", 0.05).p < 0.01 < compared(null, shifted, "b", 0.05).p
    True
    """
    names = [ours, *(name for name in null if name != ours)]
    before, after = (np.stack([np.asarray(side[name]) for name in names]) for side in (null, shifted))
    power = _power(before[:, None], after[:, None], level)[:, 0]
    rng = np.random.default_rng(seed)
    parts = []
    for _ in range(0, RESAMPLES, _AT_ONCE):
        chosen = [rng.integers(0, side.shape[1], (_AT_ONCE, side.shape[1])) for side in (before, after)]
        parts.append(_power(before[:, chosen[0]], after[:, chosen[1]], level))
    again = np.concatenate(parts, axis=1)
    lead = power[1:] - power[0]
    leads = again[1:] - again[0]
    spread = np.maximum(leads.std(axis=1), 1e-9)
    by_chance = ((leads - lead[:, None]) / spread[:, None]).max(axis=0)
    best = int(np.argmax(lead))
    low, high = np.quantile(-leads[best], [0.025, 0.975])
    return Told(
        power=dict(zip(names, power.tolist(), strict=True)),
        best=names[1 + best],
        low=float(low),
        high=float(high),
        p=float((1 + np.count_nonzero(by_chance >= (lead / spread).max())) / (1 + by_chance.size)),
    )


def _power(null: np.ndarray, shifted: np.ndarray, level: float) -> np.ndarray:
    """By method and resample: the share of shifted draws at or below the null draws' quantile."""
    threshold = np.quantile(null, level, axis=2)
    seen: np.ndarray = (shifted <= threshold[:, :, None]).mean(axis=2)
    return seen
