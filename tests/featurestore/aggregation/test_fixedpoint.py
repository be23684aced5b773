"""Are sums exact whatever the order, and rounded once?"""

from fractions import Fraction
from itertools import accumulate

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from featurestore.aggregation import fixedpoint as fp
from featurestore.aggregation import variance as rounding

FINITE = st.floats(-(2.0**77), 2.0**77) | st.sampled_from([1e9, 1e9 + 0.1, 0.1, 2.0**-80, -(2.0**-81), 5e-324, 2.0**77])
LISTS = st.lists(FINITE, min_size=1, max_size=120)
"""Longer and shorter than what is left to Python's integers."""

# Machines are shared, and the first use of Arrow imports more of it.
unhurried = settings(deadline=None)


def prefixes(limbs):
    return np.cumsum(limbs, axis=1)


@unhurried
@given(LISTS)
def test_limbs_are_the_fixed_point(values):
    """Vectors and scalars cut alike."""
    x = np.array(values)
    assert fp.to_ints(fp.sum_limbs(fp.cut(x))) == [fp.to_fixed(value) for value in values]
    assert fp.to_ints(fp.square_limbs(fp.cut(x))) == [fp.to_fixed(value) ** 2 for value in values]


@unhurried
@given(LISTS)
def test_cut_is_towards_zero(values):
    """A float is cut to a multiple of 2**-80, exact from 2**-27."""
    cut = fp.cut(np.array(values)).tolist()
    assert cut == [float(Fraction(int(Fraction(value) * 2**80), 2**80)) for value in values]


@unhurried
@given(LISTS)
def test_sums_are_rounded_once(values):
    """Every running sum is the nearest double of the exact one."""
    sums = prefixes(fp.sum_limbs(fp.cut(np.array(values))))
    exact = list(accumulate(fp.to_fixed(value) for value in values))
    assert fp.round_to_float(sums).tolist() == [float(Fraction(m, 2**80)) for m in exact]


@unhurried
@given(LISTS)
def test_packed_limbs_return(values):
    """The wire format keeps every bit of any sum, negative ones too."""
    for limbs in (fp.sum_limbs(fp.cut(np.array(values))), fp.square_limbs(fp.cut(np.array(values)))):
        sums = prefixes(limbs)
        assert fp.to_ints(fp.unpack(fp.pack(sums.copy()))) == fp.to_ints(sums)


@unhurried
@given(st.lists(st.integers(-(2**63), 2**63 - 1), min_size=1, max_size=120))
def test_integers_are_exact(values):
    """Sums and squares of any int64 are exact."""
    x = np.array(values, np.int64)
    assert fp.to_ints(fp.int_limbs(x)) == values
    assert fp.to_ints(fp.int_square_limbs(x)) == [value * value for value in values]


@unhurried
@given(LISTS)
def test_variances_are_rounded_once(values):
    """Many at once or a few: the nearest double of the one exact rational."""
    x = fp.cut(np.array(values * (1 + 60 // len(values))))
    n = np.arange(1, len(x) + 1)
    sums, squares = prefixes(fp.sum_limbs(x)), prefixes(fp.square_limbs(x))
    exact = [Fraction(value) for value in x.tolist()]
    expected, total, square = [], Fraction(0), Fraction(0)
    for count, value in enumerate(exact, 1):
        total, square = total + value, square + value * value
        expected.append(float((count * square - total**2) / (count * (count - 1))) if count > 1 else None)
    for found in (rounding.variance(n, sums, squares), rounding.variance(n[:40], sums[:, :40], squares[:, :40])):
        assert found[1:].tolist() == expected[1 : len(found)]


def test_doubtful_quotients_are_left_to_integers(monkeypatch):
    """Where double-double arithmetic leaves two doubles possible, exact integers decide: the bits are the same."""
    x = np.array([1.0, 1.0 + 2.0**-52, 3.0, 1e9, 0.1])
    n = np.tile(np.arange(2, 6), 30)
    sums = np.tile(prefixes(fp.sum_limbs(x))[:, 1:], 30)
    squares = np.tile(prefixes(fp.square_limbs(x))[:, 1:], 30)
    usual = rounding.variance(n, sums, squares)
    monkeypatch.setattr(rounding, "_ERROR", 2.0**10)
    assert rounding.variance(n, sums, squares).tolist() == usual.tolist()


@pytest.mark.parametrize("sign", [1, -1])
@pytest.mark.parametrize("below", [0, 1, -1])
def test_ties_below_three_limbs_are_seen(sign, below):
    """A bit 150 places below the leading one still decides a tie."""
    m = sign * ((1 << 157) + (1 << 104) + below)
    limbs = np.array([[(m >> (32 * j)) & 0xFFFFFFFF if j < 5 else m >> 160] for j in range(6)], np.int64)
    assert fp.round_to_float(np.repeat(limbs, 60, axis=1)).tolist() == [m / 2**80] * 60
