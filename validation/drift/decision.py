"""Which of many differences are alarms? Benjamini-Hochberg, with the false-alarm rate measured at the window's size.

Under no drift, at most the asked share of families (all features and segments of one comparison) may raise any alarm.
The p-values are made so that this holds; whether it does at the window size at hand is not believed but measured, on
null windows of that size, and where it does not hold the threshold is lowered until it does.
"""

from typing import Final

import msgspec
import numpy as np
from scipy import special

from validation.drift.measures import Array

CONFIDENCE: Final = 0.95
_SUSPECT: Final = 1e-4


class Calibration(msgspec.Struct, frozen=True, kw_only=True):
    """What null windows of the current size said."""

    asked: float
    """The share of families under no drift that may raise an alarm."""
    threshold: float
    """Alarms need a corrected p-value of at most this: never more than asked."""
    rate: float
    """The share of null families that raised an alarm at the threshold."""
    rate_low: float
    rate_high: float
    """95 % confidence limits of the rate (Clopper and Pearson)."""
    uncalibrated: float
    """The share that would have raised one at the asked threshold."""
    families: int


def benjamini_hochberg(p: Array) -> Array:
    """Corrected p-values (q) along the last axis.

    >>> benjamini_hochberg(np.array([0.01, 0.04, 0.03, 0.5])).round(4).tolist()
    [0.04, 0.0533, 0.0533, 0.5]
    """
    tests = p.shape[-1]
    order = np.argsort(p, axis=-1, kind="stable")
    ranked = np.take_along_axis(p, order, -1) * tests / np.arange(1, tests + 1)
    lowered = np.minimum.accumulate(ranked[..., ::-1], axis=-1)[..., ::-1]
    q = np.empty_like(p, dtype=np.float64)
    np.put_along_axis(q, order, np.minimum(lowered, 1.0), -1)
    return q


def calibrate(null: Array, asked: float) -> Calibration:
    """The threshold at which at most the asked share of null families alarms; `null` holds p-values [families, tests].

    >>> calibrate(np.array([[0.5], [0.01], [0.2], [0.9]] * 25), 0.05).threshold < 0.01
    True
    """
    least = np.sort(benjamini_hochberg(null).min(axis=-1))
    families = len(least)
    allowed = int(np.floor(asked * families))
    # The next family's value is already too many: everything below it is allowed.
    limit = np.nextafter(least[allowed], 0.0) if allowed < families else 1.0
    threshold = float(min(asked, limit))
    alarms = int(np.count_nonzero(least <= threshold))
    tail = (1 - CONFIDENCE) / 2
    return Calibration(
        asked=asked,
        threshold=threshold,
        rate=alarms / families,
        rate_low=float(special.betaincinv(alarms, families - alarms + 1, tail)) if alarms else 0.0,
        rate_high=float(special.betaincinv(alarms + 1, families - alarms, 1 - tail)) if alarms < families else 1.0,
        uncalibrated=float(np.count_nonzero(least <= asked) / families),
        families=families,
    )


def too_small(null: Array, level: float) -> bool:
    """Whether p-values under no drift are below a level more often than chance allows: one time in 10,000.

    >>> too_small(np.linspace(0, 1, 400), 0.01), too_small(np.linspace(0, 1, 400) ** 3, 0.01)
    (False, True)
    """
    below, families = int(np.count_nonzero(null <= level)), len(null)
    return below > 0 and float(special.betainc(below, families - below + 1, level)) < _SUSPECT


def ranked(observed: Array, null: Array) -> tuple[Array, Array]:
    """p-values by rank among null families: of the observed [tests], and of each null family itself [families, tests].

    The observed one is counted among the null families, so that no p is 0 and the test is exact.

    >>> ranked(np.array([0.1]), np.array([[0.5], [0.05], [0.3]]))[0].tolist()
    [0.5]
    """
    everything = np.concatenate([observed[None], null])
    p = np.empty_like(everything)
    for test in range(everything.shape[1]):
        column = everything[:, test]
        p[:, test] = np.searchsorted(np.sort(column), column, side="right") / len(column)
    return p[0], p[1:]
