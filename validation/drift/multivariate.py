"""Do features drift together, where each alone looks as before?

Three tests of whole rows: can a classifier tell the sides apart on rows it has not seen, do the kernel means differ
(MMD), are rows rebuilt worse from the reference's principal components. Each p-value is exact at any window size, since
labels of rows, or of whole blocks of time, are dealt out anew while everything fitted stays as it is. The classifier
needs scikit-learn (the extra `drift`).
"""

import importlib
from collections import Counter
from collections.abc import Sequence
from typing import Any, Final

import msgspec
import numpy as np
import numpy.typing as npt
import pyarrow as pa

from validation.drift.measures import Array
from validation.errors import PlatformError
from validation.profile.baseline import Baseline, FeatureBaseline, as_promised
from validation.profile.sketch import Hashes

DEALS: Final = 999
MOST_ROWS: Final = 20_000
FEWEST_BLOCKS: Final = 4
KERNEL_ROWS: Final = 600
"""Rows of both sides together that the kernel test looks at: its cost is their square."""
ONE_HOT: Final = 20
EXPLAINED: Final = 0.9
Labels = npt.NDArray[np.bool_]
Blocks = npt.NDArray[np.int64]


class RowTest(msgspec.Struct, frozen=True, kw_only=True):
    """One test of whole rows."""

    name: str
    effect: float
    minimum: float
    """The least effect that counts."""
    p: float
    q: float
    """p corrected over these tests (Bonferroni)."""
    drifted: bool
    detail: str


class NoClassifier(PlatformError):
    """scikit-learn is not installed."""

    exit_code = 2


def judge_rows(
    reference: pa.Table,
    current: pa.Table,
    baseline: Baseline,
    *,
    seed: int,
    rate: float,
    reference_blocks: Blocks | None = None,
    current_blocks: Blocks | None = None,
    owners: tuple[Hashes, Hashes] | None = None,
    tests: Sequence[str] = ("domain_classifier", "mmd", "pca"),
) -> tuple[RowTest, ...]:
    """The tests of whole rows, of at most MOST_ROWS a side; blocks number each row's block of time.

    `owners` say whose each row is: whole entities are dealt out, each with about as many rows on both sides. Blocks of
    time go before them.

    A test needs at least 20 rows a side, FEWEST_BLOCKS blocks or entities, and a column: without there are none.
    """
    rng = np.random.default_rng([seed, 2])
    sides = list(matrices_of(reference, current, baseline))
    if not sides[0].shape[1]:
        return ()
    blocks = [
        given if given is not None else first + np.arange(len(side))
        for given, side, first in zip((reference_blocks, current_blocks), sides, (0, len(sides[0])), strict=True)
    ]
    if owners is not None and reference_blocks is None and current_blocks is None:
        kept = _evened(owners, rng)
        sides = [side[rows] for side, rows in zip(sides, kept, strict=True)]
        blocks = [owner[rows].view(np.int64) for owner, rows in zip(owners, kept, strict=True)]
    for place, side in enumerate(sides):
        if len(side) < 20:
            return ()
        if len(side) > MOST_ROWS:
            chosen = np.sort(rng.choice(len(side), MOST_ROWS, replace=False))
            sides[place], blocks[place] = side[chosen], blocks[place][chosen]
    rows = np.concatenate(sides)
    labels = np.repeat([False, True], [len(sides[0]), len(sides[1])])
    # A block that both sides share would tie their labels: each side's blocks are its own.
    numbers = np.unique(np.concatenate(blocks), return_inverse=True)[1].ravel()
    block = np.unique(numbers * 2 + labels, return_inverse=True)[1].ravel()
    if any(len(np.unique(block[labels == side])) < FEWEST_BLOCKS for side in (False, True)):
        return ()
    known = {"domain_classifier": _classifier, "mmd": _mmd, "pca": _pca}
    found = []
    for name in tests:
        effect, minimum, p, detail = known[name](rows, labels, block, rng)
        q = min(1.0, p * len(tests))
        found.append(
            RowTest(
                name=name,
                effect=effect,
                minimum=minimum,
                p=p,
                q=q,
                drifted=q <= rate and effect >= minimum,
                detail=detail,
            )
        )
    return tuple(found)


def _evened(owners: tuple[Hashes, Hashes], rng: np.random.Generator) -> list[Blocks]:
    """The rows that are looked at: of each entity at most as many as the usual one has where it has fewer.

    One of many rows says more than one of few; exchanged for each other they would have to be alike.
    """
    most = min(int(np.median(np.unique(side, return_counts=True)[1])) for side in owners)
    kept = []
    for side in owners:
        order = rng.permutation(len(side))
        order = order[np.argsort(side[order], kind="stable")]
        arranged = side[order]
        first = np.searchsorted(arranged, arranged)
        kept.append(np.sort(order[np.arange(len(side)) - first < max(most, 1)]))
    return kept


def matrices_of(reference: pa.Table, current: pa.Table, baseline: Baseline) -> tuple[Array, Array]:
    """Rows of both sides as numbers: distances from the reference's median in its spread, held within 10.

    A missing number is the median, and a column of its own says that it is missing where any is. Categories are 0 and
    1 each, the most frequent ones of both sides together: those of one side would be rarer in the other by chance.
    """
    columns: list[Array] = []
    for feature in baseline.features:
        sides = [as_promised(table.column(feature.name), feature) for table in (reference, current)]
        columns += _one_hot(sides) if feature.kind == "category" else _scaled(sides, feature)
    rows = reference.num_rows
    whole = np.stack(columns, axis=1) if columns else np.zeros((rows + current.num_rows, 0))
    return whole[:rows], whole[rows:]


def _scaled(sides: Sequence[pa.ChunkedArray], feature: FeatureBaseline) -> list[Array]:
    values = np.concatenate([np.asarray(side.cast(pa.float64(), safe=False).to_numpy(), np.float64) for side in sides])
    missing = ~np.isfinite(values)
    with np.errstate(over="ignore"):
        away = (np.where(missing, feature.centre, values) - feature.centre) / feature.scale
    return [np.clip(away, -10, 10), *([missing.astype(np.float64)] if missing.any() else [])]


def _one_hot(sides: Sequence[pa.ChunkedArray]) -> list[Array]:
    texts = np.concatenate(
        [np.asarray(side.cast(pa.string()).to_numpy(zero_copy_only=False), object) for side in sides]
    )
    counts = Counter(text for text in texts.tolist() if text is not None)
    frequent = sorted(counts, key=lambda text: (-counts[text], text))[:ONE_HOT]
    return [(texts == text).astype(np.float64) for text in frequent]


def _deals(labels: Labels, block: Blocks, rng: np.random.Generator) -> Array:
    """[DEALS, rows]: labels with whole blocks dealt out anew, as many blocks a side as before."""
    count = int(block.max()) + 1
    of_block = np.zeros(count)
    of_block[block] = labels
    dealt = rng.permuted(np.tile(of_block, (DEALS, 1)), axis=1)
    return dealt[:, block]


def _rank(observed: float, dealt: Array) -> float:
    return float((1 + np.count_nonzero(dealt >= observed - 1e-12)) / (len(dealt) + 1))


def _halves(labels: Labels, block: Blocks, rng: np.random.Generator) -> Labels:
    """Of each row whether it is fitted on: half of each side's blocks."""
    fitted = np.zeros(int(block.max()) + 1, bool)
    for side in (False, True):
        mine = rng.permutation(np.unique(block[labels == side]))
        fitted[mine[: max(1, len(mine) // 2)]] = True
    chosen: Labels = fitted[block]
    return chosen


def _ranks(values: Array) -> Array:
    _, place, counts = np.unique(values, return_inverse=True, return_counts=True)
    middle = np.cumsum(counts) - (counts - 1) / 2
    out: Array = middle[place]
    return out


def _auc(ranks: Array, labels: Array) -> Array:
    hits = labels.sum(-1)
    rest = labels.shape[-1] - hits
    out: Array = ((labels @ ranks) - hits * (hits + 1) / 2) / np.maximum(hits * rest, 1)
    return out


def _held_out(scores: Array, labels: Labels, block: Blocks, rng: np.random.Generator) -> tuple[float, float]:
    """AUC of the scores of held-out rows, and its p among deals."""
    ranks = _ranks(scores)
    _, place = np.unique(block, return_inverse=True)
    dealt = _deals(labels, place, rng)
    observed = float(_auc(ranks, labels.astype(np.float64)))
    return observed, _rank(observed, _auc(ranks, dealt))


Told = tuple[float, float, float, str]
"""Effect, the least effect that counts, p, and a sentence."""


def _classifier(rows: Array, labels: Labels, block: Blocks, rng: np.random.Generator) -> Told:
    try:
        ensemble: Any = importlib.import_module("sklearn.ensemble")
    except ModuleNotFoundError as error:
        raise NoClassifier(
            "the domain classifier needs scikit-learn: pip install 'featurestore[drift]', or leave it out"
        ) from error
    fit = _halves(labels, block, rng)
    model = ensemble.RandomForestClassifier(
        n_estimators=60,
        min_samples_leaf=5,
        class_weight="balanced",
        random_state=int(rng.integers(2**31)),
    )
    model.fit(rows[fit], labels[fit])
    scores = model.predict_proba(rows[~fit])[:, 1]
    auc, p = _held_out(scores, labels[~fit], block[~fit], rng)
    return auc - 0.5, 0.05, p, f"AUC {auc:.3f} on held-out rows"


def _pca(rows: Array, labels: Labels, block: Blocks, rng: np.random.Generator) -> Told:
    fit = _halves(labels, block, rng) & ~labels
    mean = rows[fit].mean(0)
    _, lengths, axes = np.linalg.svd(rows[fit] - mean, full_matrices=False)
    share = np.cumsum(lengths**2) / max(float((lengths**2).sum()), 1e-300)
    kept = axes[: int(np.searchsorted(share, EXPLAINED)) + 1]
    # At least one direction is left out: what is rebuilt without loss tells nothing.
    kept = kept[: max(1, min(len(kept), rows.shape[1] - 1))]
    away = rows[~fit] - mean
    error = ((away - away @ kept.T @ kept) ** 2).sum(1)
    auc, p = _held_out(error, labels[~fit], block[~fit], rng)
    return auc - 0.5, 0.05, p, f"rebuilt from {len(kept)} of {rows.shape[1]} components: worse with chance {auc:.3f}"


def _mmd(rows: Array, labels: Labels, block: Blocks, rng: np.random.Generator) -> Told:
    chosen: list[npt.NDArray[np.int64]] = []
    for side in (False, True):
        mine = np.flatnonzero(labels == side)
        chosen.append(np.sort(rng.choice(mine, min(len(mine), KERNEL_ROWS // 2), replace=False)))
    picked = np.concatenate(chosen)
    x, y = rows[picked], labels[picked]
    squares = (x**2).sum(1)
    far = np.maximum(squares[:, None] + squares[None] - 2 * x @ x.T, 0)
    kernel = np.exp(-far / max(float(np.median(far[far > 0])) if (far > 0).any() else 1.0, 1e-12))
    np.fill_diagonal(kernel, 0.0)
    _, place = np.unique(block[picked], return_inverse=True)
    dealt = _unbiased(kernel, _deals(y, place, rng))
    observed = float(_unbiased(kernel, y[None].astype(np.float64))[0])
    return max(observed, 0.0) ** 0.5, 0.05, _rank(observed, dealt), f"kernel means {max(observed, 0) ** 0.5:.3f} apart"


def _unbiased(kernel: Array, labels: Array) -> Array:
    """The unbiased squared MMD (Gretton et al. 2012) of each row of labels; the kernel's diagonal is 0."""
    hits = labels.sum(1)
    rest = labels.shape[1] - hits
    of_hits = labels @ kernel
    inside = (of_hits * labels).sum(1)
    across = (of_hits * (1 - labels)).sum(1)
    outside = kernel.sum() - inside - 2 * across
    out: Array = (
        inside / np.maximum(hits * (hits - 1), 1)
        + outside / np.maximum(rest * (rest - 1), 1)
        - 2 * across / np.maximum(hits * rest, 1)
    )
    return out
