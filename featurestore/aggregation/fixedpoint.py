"""How can floats be summed exactly, in any order, and rounded once?

A float is cut once, towards zero, to an integer multiple of 2**-80 (exact from 2**-27 in magnitude). Sums of cut
floats live in 192 bits, squares are exact multiples of 2**-160 and live in 384 bits. Scalars are Python ints;
vectors are *limbs*: int64[limbs, k], 32 bits each, least significant first, carries postponed (a limb may hold
any int64), so that up to 2**31 of them add without care. Integers use the same limbs with unit 1.
"""

import math
from typing import cast

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]
Limbs = npt.NDArray[np.int64]
Words = npt.NDArray[np.uint32]

UNIT = -80
"""log2 of the grid that floats are cut to."""
SQUARE_UNIT = 2 * UNIT
SUM_LIMBS, SQUARE_LIMBS = 6, 12
INT_SUM_LIMBS, INT_SQUARE_LIMBS = 4, 6
LIMIT = 2.0**78
"""Magnitudes from here on are refused: 2**33 smaller ones fit a sum."""

_SCALE = 2.0**-UNIT
_EXACT_FROM = 2.0 ** (UNIT + 53)
MASK = 0xFFFF_FFFF
FEW = 48
"""Below this many values Python's integers are faster than numpy's call overhead."""


def to_fixed(x: float) -> int:
    """A finite float below LIMIT as a multiple of 2**-80, cut towards zero.

    >>> to_fixed(1.5) == 3 << 79, to_fixed(-(2.0**-81))
    (True, 0)
    """
    return int(x * _SCALE)


def to_float(m: int, unit: int = UNIT) -> float:
    """The multiple `m` of 2**unit, rounded once to the nearest double.

    >>> to_float(to_fixed(0.1) * 3)
    0.30000000000000004
    """
    return m / (1 << -unit)


def cut(x: Floats) -> Floats:
    """float64[k] on the grid of `to_fixed`; finite, below LIMIT."""
    small = np.abs(x) < _EXACT_FROM
    if not small.any():
        return x
    out: Floats = np.where(small, np.trunc(np.where(small, x, 0.0) * _SCALE) / _SCALE, x)
    return out


def sum_limbs(x: Floats) -> Limbs:
    """Limbs (SUM_LIMBS) of floats that `cut` returned."""
    return _split(x, UNIT, SUM_LIMBS)


def square_limbs(x: Floats) -> Limbs:
    """Limbs (SQUARE_LIMBS) of the exact squares of floats that `cut` returned."""
    # Dekker: x * x = p + e without error; both are multiples of 2**-160 because x is one of 2**-80.
    p = x * x
    c = 134217729.0 * x
    high = c - (c - x)
    low = x - high
    e = ((high * high - p) + 2.0 * high * low) + low * low
    return _split(p, SQUARE_UNIT, SQUARE_LIMBS) + _split(e, SQUARE_UNIT, SQUARE_LIMBS)


def int_limbs(x: Ints) -> Limbs:
    """Limbs (INT_SUM_LIMBS) of integers."""
    out = np.zeros((INT_SUM_LIMBS, len(x)), np.int64)
    out[0] = x & MASK
    out[1] = x >> 32
    return out


def int_square_limbs(x: Ints) -> Limbs:
    """Limbs (INT_SQUARE_LIMBS) of the squares of integers."""
    out = np.zeros((INT_SQUARE_LIMBS, len(x)), np.int64)
    magnitude = np.where(x < 0, -x.view(np.uint64), x.view(np.uint64))
    high, low = magnitude >> np.uint64(32), magnitude & np.uint64(MASK)
    for place, product in ((0, low * low), (1, high * low), (1, high * low), (2, high * high)):
        out[place] += (product & np.uint64(MASK)).view(np.int64)
        out[place + 1] += (product >> np.uint64(32)).view(np.int64)
    return out


def carry(limbs: Limbs) -> Limbs:
    """The same numbers with every limb but the last in [0, 2**32); changes `limbs` in place and returns it."""
    for j in range(len(limbs) - 1):
        over = limbs[j] >> 32
        limbs[j] &= MASK
        limbs[j + 1] += over
    return limbs


def pack(limbs: Limbs) -> Words:
    """uint32[k, limbs], two's complement: the wire format of `unpack`; changes `limbs` in place."""
    packed: Words = (carry(limbs) & MASK).astype(np.uint32).T
    return packed


def unpack(words: Words) -> Limbs:
    """Limbs of what `pack` returned."""
    limbs = np.empty((words.shape[1], words.shape[0]), np.int64)
    limbs[:] = words.T
    limbs[-1] -= (limbs[-1] >> 31) << 32
    return limbs


def to_ints(limbs: Limbs) -> list[int]:
    """Python ints, one a column.

    >>> to_ints(int_limbs(np.array([5, -7])))
    [5, -7]
    """
    *lower, total = limbs.tolist()
    for limb in reversed(lower):
        total = [(value << 32) + part for value, part in zip(total, limb, strict=True)]
    return cast("list[int]", total)


def round_to_float(limbs: Limbs, unit: int = UNIT) -> Floats:
    """float64[k]: every column times 2**unit, correctly rounded.

    >>> round_to_float(sum_limbs(np.array([0.1, -2.5])))
    array([ 0.1, -2.5])
    """
    if limbs.shape[1] <= FEW:
        divisor = 1 << -unit
        return np.array([m / divisor for m in to_ints(limbs)], np.float64)
    limbs = carry(np.vstack([limbs, np.zeros((1, limbs.shape[1]), np.int64)]))
    negative = limbs[-1] < 0
    if negative.any():
        limbs[:, negative] = -limbs[:, negative]
        carry(limbs)
    rows = np.flatnonzero(limbs.any(axis=1))
    if not len(rows):
        return np.zeros(limbs.shape[1])
    count = max(int(rows[-1]) + 1, 3)
    column = np.arange(limbs.shape[1])
    top = np.maximum(count - 1 - np.argmax((limbs[:count] != 0)[::-1], 0), 2)
    a, b, c = (limbs[top - i, column].astype(np.float64) for i in range(3))
    sticky = np.zeros(limbs.shape[1], np.bool_)
    for j in range(count - 3):
        sticky |= (limbs[j] != 0) & (top - 2 > j)
    high = a * 2.0**32
    s = high + b
    low = (b - (s - high)) * 2.0**32 + c
    # What lies below three limbs only breaks ties: rounding `low` to odd lets the last addition alone round.
    bits = low.view(np.int64)
    odd = np.where(low == 0, 0.5, np.where(low >= 0, bits + 1, bits - 1).view(np.float64))
    low = np.where(sticky & (bits & 1 == 0), odd, low)
    rounded: Floats = np.where(negative, -1.0, 1.0) * np.ldexp(s * 2.0**32 + low, unit + 32 * (top - 2))
    return rounded


def _split(x: Floats, unit: int, limbs: int) -> Limbs:
    """float64[k] on the grid of 2**unit -> signed limbs."""
    out = np.zeros((limbs, len(x)), np.int64)
    if not len(x):
        return out
    rest = np.array(x, np.float64)
    largest = float(np.abs(rest).max())
    used = max(0, math.frexp(largest)[1] - unit)
    for j in range(min(limbs - 1, used // 32), -1, -1):
        scale = math.ldexp(1.0, unit + 32 * j)
        whole = np.trunc(rest * (1.0 / scale))
        out[j] = whole
        whole *= scale
        rest -= whole
        if not rest.any():
            break
    return out
