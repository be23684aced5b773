"""Do the statistics agree with SciPy's, on any counts?"""

import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats
from scipy.spatial import distance

from validation.drift import measures, significance
from validation.drift.decision import benjamini_hochberg, calibrate, ranked

COUNTS = st.lists(st.tuples(st.integers(0, 40), st.integers(0, 40)), min_size=2, max_size=12).filter(
    lambda rows: sum(a for a, _ in rows) > 1 and sum(b for _, b in rows) > 1
)
RULE = settings(max_examples=80, deadline=None)


def sides(rows: list[tuple[int, int]]) -> tuple[Any, Any]:
    table = np.array(rows, np.float64)
    return table[:, 0].copy(), table[:, 1].copy()


def values(counts: Any) -> Any:
    return np.repeat(np.arange(len(counts)) ** 2.0, counts.astype(int))


@given(COUNTS)
@RULE
def test_kolmogorov_smirnov_is_scipys(rows: list[tuple[int, int]]) -> None:
    """The distance is that of the two samples; the p-value follows SciPy's asymptotic one."""
    r, c = sides(rows)
    told = stats.ks_2samp(values(r), values(c), method="asymp")
    assert float(measures.kolmogorov_smirnov(r, c)) == pytest.approx(told.statistic, abs=1e-12)


@pytest.mark.parametrize("size", [50, 500])
def test_ks_p_values_are_near_exact_ones(size: int) -> None:
    """Where it matters, below 5 %, the p-value is within a third of the exact one."""
    rng = np.random.default_rng(size)
    checked = 0
    for shift in np.linspace(0.2, 0.6, 30):
        x, y = rng.standard_normal(300), rng.standard_normal(size) + shift * (50 / size) ** 0.5
        told = stats.ks_2samp(x, y, method="exact")
        if not 1e-6 < told.pvalue < 0.05:
            continue
        support = np.sort(np.concatenate([x, y]))
        counts = [np.bincount(np.searchsorted(support, side), minlength=len(support)).astype(float) for side in (x, y)]
        assert float(significance.ks_test(*counts)) == pytest.approx(told.pvalue, rel=0.34)
        checked += 1
    assert checked > 5


@given(COUNTS)
@RULE
def test_chi_square_is_scipys(rows: list[tuple[int, int]]) -> None:
    """Pearson's test on the contingency table, cells without a count left out."""
    r, c = sides([row for row in rows if sum(row)])
    if len(r) < 2:
        return
    told = stats.chi2_contingency(np.array([r, c]), correction=False)
    assert float(significance.chi_square(r, c)) == pytest.approx(told.pvalue, rel=1e-9, abs=1e-12)


@given(COUNTS)
@RULE
def test_jensen_shannon_and_wasserstein_are_scipys(rows: list[tuple[int, int]]) -> None:
    """Distances of distributions, whatever the counts."""
    r, c = sides(rows)
    assert float(measures.jensen_shannon(r, c)) == pytest.approx(distance.jensenshannon(r, c, base=2), abs=1e-7)
    support = np.arange(len(r)) ** 2.0
    told = stats.wasserstein_distance(support, support, r, c)
    assert float(measures.wasserstein(r, c, support, 3.0)) == pytest.approx(told / 3, rel=1e-9, abs=1e-12)


@given(COUNTS)
@RULE
def test_psi_is_its_sum(rows: list[tuple[int, int]]) -> None:
    """The population stability index by its definition, with half a count more in each cell."""
    r, c = sides(rows)
    p, q = (r + 0.5) / (r + 0.5).sum(), (c + 0.5) / (c + 0.5).sum()
    told = sum((b - a) * math.log(b / a) for a, b in zip(p, q, strict=True))
    assert float(measures.psi(r, c)) == pytest.approx(told, abs=1e-12)


@given(COUNTS)
@RULE
def test_rank_tests_are_scipys_with_ties(rows: list[tuple[int, int]]) -> None:
    """With mid-ranks as scores the test is Mann-Whitney's, its variance corrected for ties."""
    r, c = sides(rows)
    told = stats.mannwhitneyu(values(c), values(r), use_continuity=False, method="asymptotic")
    got = float(significance.rank_test(r, c, significance.mid_ranks(r + c)))
    assert got == pytest.approx(1.0 if math.isnan(told.pvalue) else told.pvalue, rel=1e-9, abs=1e-12)


def test_normal_scores_agree_with_a_permutation_test() -> None:
    """The p-value is that of dealing the pooled values out at random."""
    rng = np.random.default_rng(3)
    pooled = np.ones(60)
    scores = significance.normal_scores(significance.mid_ranks(pooled))
    chosen = np.zeros(60)
    chosen[rng.choice(60, 20, replace=False, p=np.linspace(1, 3, 60) / np.linspace(1, 3, 60).sum())] = 1
    got = float(significance.rank_test(1 - chosen, chosen, scores))
    dealt = rng.permuted(np.tile(scores, (20_000, 1)), axis=1)[:, :20].sum(1)
    told = np.mean(np.abs(dealt) >= abs((scores * chosen).sum()))
    assert got == pytest.approx(told, rel=0.1)


@given(st.integers(0, 50), st.integers(50, 400), st.integers(0, 30), st.integers(30, 200))
@RULE
def test_proportions_are_the_likelihood_ratio_with_yates(hits: int, rows: int, more: int, others: int) -> None:
    """Two proportions as SciPy tests the table of four."""
    if not 0 < hits + more < rows + others:
        return
    table = np.array([[hits, rows - hits], [more, others - more]])
    told = stats.chi2_contingency(table, correction=True, lambda_="log-likelihood")
    got = float(significance.proportion_test(*(np.asarray(float(n)) for n in (hits, rows, more, others))))
    assert got == pytest.approx(told.pvalue, rel=1e-6, abs=1e-9)


@given(st.lists(st.floats(1e-9, 1.0), min_size=1, max_size=40))
@RULE
def test_benjamini_hochberg_is_scipys(ps: list[float]) -> None:
    """Corrected p-values as SciPy corrects them."""
    assert benjamini_hochberg(np.array(ps)) == pytest.approx(stats.false_discovery_control(ps), rel=1e-12)


@given(st.lists(st.floats(1e-12, 0.9), min_size=1, max_size=6))
@RULE
def test_combined_p_values_lie_between_the_least_and_its_bonferroni_bound(ps: list[float]) -> None:
    """The Cauchy combination is never below the least p-value, and about bounded by Bonferroni."""
    got = float(significance.together([np.asarray(p) for p in ps], [1.0] * len(ps)))
    assert min(ps) * 0.999 <= got
    assert got <= max(ps) * 1.001


def test_the_threshold_lets_through_the_asked_share_of_null_families() -> None:
    """Where p-values are too small the threshold falls until the measured rate is the asked one; it never rises."""
    rng = np.random.default_rng(0)
    good, bad = rng.random((2_000, 30)), rng.random((2_000, 30)) ** 1.5
    assert calibrate(bad, 0.05).threshold < 0.02
    assert calibrate(bad, 0.05).rate <= 0.05 < calibrate(bad, 0.05).uncalibrated
    assert calibrate(good, 0.05).threshold <= 0.05
    assert calibrate(good**0.5, 0.05).threshold == 0.05
    limits = stats.binomtest(100, 2_000).proportion_ci(method="exact")
    found = calibrate(bad, 0.05)
    assert found.rate == 0.05
    assert (found.rate_low, found.rate_high) == pytest.approx((limits.low, limits.high))


def test_ranks_among_null_families_are_exact() -> None:
    """A p-value by rank is the share of families at least as extreme, the observed one included."""
    null = np.array([[0.4], [0.2], [0.2], [0.9]])
    p, of_null = ranked(np.array([0.2]), null)
    assert p.tolist() == [3 / 5]
    assert of_null[:, 0].tolist() == [4 / 5, 3 / 5, 3 / 5, 1.0]
