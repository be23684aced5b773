"""How is the variance of exact sums told, rounded once?

The sample variance (n * sum(x**2) - sum(x)**2) / (n * (n - 1)) is one rational number. A few are divided as Python
ints, which round correctly. Many are divided in double-double arithmetic, whose error is bounded; where the bound
leaves two doubles possible, Python's ints decide. Both ways give the same bits.
"""

import numpy as np
import numpy.typing as npt

from featurestore.aggregation.fixedpoint import FEW, MASK, UNIT, Floats, Ints, Limbs, carry, to_ints

_ERROR = 2.0**-78
"""Relative error bound of `_divide`: its inputs hold 85 bits, its steps lose less."""
_LARGEST_COUNT = (1 << 31) - 2
_SPLIT = 134217729.0

Words64 = npt.NDArray[np.uint64]


def variance(count: Ints, sums: Limbs, squares: Limbs, unit: int = UNIT) -> Floats:
    """Sample variance of k groups: float64[k], correctly rounded; NaN where count < 2.

    `sums` are limbs of multiples of 2**unit, `squares` of 2**(2 * unit).

    >>> from featurestore.aggregation.fixedpoint import square_limbs, sum_limbs
    >>> x = np.array([1e9, 1e9 + 1])
    >>> variance(np.array([2]), sum_limbs(x).sum(1, keepdims=True), square_limbs(x).sum(1, keepdims=True))
    array([0.5])
    """
    out = np.full(len(count), np.nan)
    some = np.flatnonzero(count > 1)
    n, sums, squares = count[some], sums[:, some], squares[:, some]
    if len(some) <= FEW or int(n.max()) > _LARGEST_COUNT:
        out[some] = _by_ints(n, sums, squares, unit)
        return out
    values, certain = _divide(_numerator(n, sums, squares), n, 2 * unit)
    if not certain.all():
        unsure = np.flatnonzero(~certain)
        values[unsure] = _by_ints(n[unsure], sums[:, unsure], squares[:, unsure], unit)
    out[some] = values
    return out


def _by_ints(count: Ints, sums: Limbs, squares: Limbs, unit: int) -> list[float]:
    scale = 1 << (-2 * unit)
    return [
        (n * square - total * total) / (n * (n - 1) * scale)
        for n, total, square in zip(count.tolist(), to_ints(sums), to_ints(squares), strict=True)
    ]


def _numerator(n: Ints, sums: Limbs, squares: Limbs) -> Limbs:
    """Carried limbs of n * squares - sums**2, which is never negative."""
    sums, squares = carry(sums.copy()), carry(squares.copy())
    negative = sums[-1] < 0
    if negative.any():
        sums[:, negative] = -sums[:, negative]
        carry(sums)
    sums, squares = _used(sums), _used(squares)
    out = np.zeros((max(2 * len(sums), len(squares) + 1) + 1, len(n)), np.int64)
    over = np.zeros(len(n), np.int64)
    for j, limb in enumerate(squares):
        product = n * limb + over
        out[j] = product & MASK
        over = product >> 32
    out[len(squares)] = over
    words: Words64 = sums.view(np.uint64)
    for i in range(len(words)):
        for j in range(i, len(words)):
            square = words[i] * words[j]
            times = 1 if i == j else 2
            out[i + j] -= times * (square & np.uint64(MASK)).view(np.int64)
            out[i + j + 1] -= times * (square >> np.uint64(32)).view(np.int64)
    return carry(out)


def _used(limbs: Limbs) -> Limbs:
    rows = np.flatnonzero(limbs.any(axis=1))
    return np.ascontiguousarray(limbs[: int(rows[-1]) + 1 if len(rows) else 1])


def _divide(numerator: Limbs, n: Ints, unit: int) -> tuple[Floats, npt.NDArray[np.bool_]]:
    """numerator * 2**unit / (n * (n - 1)), and whether that is certainly the nearest double."""
    limbs = np.vstack([np.zeros((3, len(n)), np.int64), _used(numerator)])
    column = np.arange(len(n))
    top = np.maximum(len(limbs) - 1 - np.argmax((limbs != 0)[::-1], 0), 3)
    a, b, c, d = (limbs[top - i, column].astype(np.float64) for i in range(4))
    high, low = _two_sum(a * 2.0**32, b)
    high, low = _two_sum(high * 2.0**64, low * 2.0**64 + (c * 2.0**32 + d))
    divisor = n * (n - 1)
    divisor_high = divisor.astype(np.float64)
    divisor_low = (divisor - divisor_high.astype(np.int64)).astype(np.float64)
    quotient = high / divisor_high
    product, error = _two_product(quotient, divisor_high)
    rest = ((high - product) - error + low - quotient * divisor_low) / divisor_high
    margin = quotient * _ERROR
    certain = quotient + (rest - margin) == quotient + (rest + margin)
    # Three limbs of zeros were put below, so limb `top - 3` counts 2**(32 * (top - 6)).
    return np.ldexp(quotient + rest, unit + 32 * (top - 6)), certain


def _two_sum(a: Floats, b: Floats) -> tuple[Floats, Floats]:
    """a + b without error, for |a| >= |b| or a = 0."""
    total = a + b
    return total, b - (total - a)


def _two_product(a: Floats, b: Floats) -> tuple[Floats, Floats]:
    """a * b without error (Dekker)."""
    product = a * b
    big = _SPLIT * a
    a_high = big - (big - a)
    a_low = a - a_high
    big = _SPLIT * b
    b_high = big - (big - b)
    b_low = b - b_high
    return product, ((a_high * b_high - product) + a_high * b_low + a_low * b_high) + a_low * b_low
