"""Which values do both sides of the drift benchmark see? Drawn from a seed by NumPy alone, in whatever process."""

import numpy as np

SIZES = ((10_000, 50), (10_000, 100), (10_000, 1_000), (500, 500), (500, 5_000))
FEATURES = 30
KINDS = ("normal", "lognormal", "category")
LOGNORMAL_SD = float(np.sqrt((np.e - 1) * np.e))
CATEGORIES = np.array([f"k{n}" for n in range(10)])


def column(rng: np.random.Generator, kind: str, rows: int, shift: float = 0.0) -> np.ndarray:
    """Values of one feature: shifted by so many standard deviations, or one of ten categories by so many points."""
    if kind == "normal":
        return rng.standard_normal(rows) + shift
    if kind == "lognormal":
        return rng.lognormal(0.0, 1.0, rows) + shift * LOGNORMAL_SD
    shares = np.full(10, (0.9 - shift) / 9)
    shares[0] = 0.1 + shift
    return CATEGORIES[np.searchsorted(np.cumsum(shares)[:-1], rng.random(rows))]


def family(seed: int, reference: int, current: int) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
    """Both sides of 30 features without drift."""
    rng = np.random.default_rng([seed, reference, current])
    kinds = [KINDS[number % 3] for number in range(FEATURES)]
    sides = [
        {f"{kind}{number}": column(rng, kind, rows) for number, kind in enumerate(kinds)}
        for rows in (reference, current)
    ]
    return sides[0], sides[1]


def pair(seed: int, kind: str, reference: int, current: int, shift: float) -> tuple[np.ndarray, np.ndarray]:
    """Both sides of one feature."""
    rng = np.random.default_rng([seed, reference, current, KINDS.index(kind), round(shift * 1000)])
    return column(rng, kind, reference), column(rng, kind, current, shift)
