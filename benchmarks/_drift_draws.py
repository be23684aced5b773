"""Which values do both sides of the drift benchmark see? Drawn from a seed by NumPy alone, in whatever process."""

from collections.abc import Callable
from typing import Any

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


Drawn = tuple[dict[str, np.ndarray], dict[str, np.ndarray], dict[str, Any]]
"""Both sides, and the arguments of the comparison."""


def _categories(count: int, power: float, sizes: tuple[int, int]) -> Callable[[np.random.Generator], Drawn]:
    """Categories whose frequencies fall with that power of their rank."""
    share = np.cumsum(np.arange(1.0, count + 1) ** -power)

    def draw(rng: np.random.Generator) -> Drawn:
        sides = [
            {"c": np.char.add("k", np.searchsorted(share / share[-1], rng.random(rows)).astype(str))} for rows in sizes
        ]
        return sides[0], sides[1], {}

    return draw


def _repeated(entities: int, rows: int, *, alike: bool, often: bool) -> Callable[[np.random.Generator], Drawn]:
    """5,000 entities once, and some of them many times; `often`: some much more often than others."""

    def draw(rng: np.random.Generator) -> Drawn:
        made = {kind: column(rng, kind, 5_000) for kind in KINDS} | {"driver": np.arange(5_000)}
        weight = 1 / np.arange(1, entities + 1) if often else np.ones(entities)
        chosen = rng.choice(5_000, entities, replace=False)[rng.choice(entities, rows, p=weight / weight.sum())]
        current = {name: values[chosen] for name, values in made.items()}
        if not alike:
            current |= {kind: column(rng, kind, rows) for kind in KINDS}
        return made, current, {"entities": ["driver"]}

    return draw


def _days(memory: float) -> Callable[[np.random.Generator], Drawn]:
    """30 days and 10 more of hourly values, in blocks of a day; levels of days remember the day before."""

    def draw(rng: np.random.Generator) -> Drawn:
        level = np.zeros(40)
        level[0] = rng.standard_normal()
        for day in range(1, 40):
            level[day] = memory * level[day - 1] + (1 - memory**2) ** 0.5 * rng.standard_normal()
        values = np.repeat(level, 24) + rng.normal(0, 0.3, 960)
        at = (np.arange(960) * 3_600_000_000).astype("datetime64[us]")
        sides = [{"x": values[rows], "at": at[rows]} for rows in (slice(720), slice(720, None))]
        return sides[0], sides[1], {"time_column": "at", "block_hours": 24}

    return draw


HARD: dict[str, Callable[[np.random.Generator], Drawn]] = {
    **{
        f"{count:,} categories, power {power:g}, {sizes[0]:,}/{sizes[1]:,} rows": _categories(count, power, sizes)
        for count in (2, 321, 2_000, 100_000)
        for power in (0.0, 1.0)
        for sizes in ((5_000, 1_000), (500, 5_000))
    },
    "100 entities 1,000 times, rows of one alike": _repeated(100, 1_000, alike=True, often=False),
    "100 entities 1,000 times, rows of one independent": _repeated(100, 1_000, alike=False, often=False),
    "300 entities 2,000 times, some often": _repeated(300, 2_000, alike=True, often=True),
    "days that are independent, blocks of a day": _days(0.0),
    "days that remember 0.8 of the day before, blocks of a day": _days(0.8),
}
