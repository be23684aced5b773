"""What do Evidently and SciPy say of the same draws? Run by benchmarks.drift, maybe by another Python.

Reads one JSON request from standard input, writes one JSON answer. Evidently is asked by column, for the test and
threshold that it chooses itself, without its rendering.
"""

import json
import sys
import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
from scipy import stats

from benchmarks._drift_draws import family, pair

warnings.simplefilter("ignore")


def _evidently() -> tuple[Any, Any, Any]:
    import pandas as pd
    from evidently.legacy.calculations.stattests.registry import get_stattest
    from evidently.legacy.core import ColumnType

    return pd, get_stattest, ColumnType


def alarms(request: dict[str, Any]) -> list[int]:
    """Of each family, how many columns Evidently's defaults call drifted."""
    pd, get_stattest, kinds = _evidently()
    found = []
    for seed in request["seeds"]:
        reference, current = family(seed, request["reference"], request["current"])
        drifted = 0
        for name in reference:
            kind = kinds.Categorical if name.startswith("category") else kinds.Numerical
            sides = pd.Series(reference[name]), pd.Series(current[name])
            drifted += bool(get_stattest(*sides, kind, None)(*sides, kind, None).drifted)
        found.append(drifted)
    return found


def _counts(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    words = np.unique(np.concatenate([x, y]))
    return np.array([[np.count_nonzero(side == word) for word in words] for side in (x, y)])


Score = Callable[[np.ndarray, np.ndarray], float]


def _scipy(kind: str) -> dict[str, Score]:
    """Scores by name: the smaller, the more drift."""
    if kind == "category":
        return {
            "scipy chi-square": lambda x, y: stats.chi2_contingency(_counts(x, y), correction=False).pvalue,
            "scipy G": lambda x, y: stats.chi2_contingency(_counts(x, y), lambda_="log-likelihood").pvalue,
        }
    return {
        "scipy ks": lambda x, y: stats.ks_2samp(x, y, method="asymp").pvalue,
        "scipy mann-whitney": lambda x, y: stats.mannwhitneyu(x, y).pvalue,
        "scipy cramer-von-mises": lambda x, y: -stats.cramervonmises_2samp(x, y, method="asymptotic").statistic,
        "scipy anderson": lambda x, y: -stats.anderson_ksamp([x, y], variant="midrank").statistic,
        "scipy welch": lambda x, y: stats.ttest_ind(x, y, equal_var=False).pvalue,
    }


def _of_evidently(kind: str) -> dict[str, Score]:
    try:
        pd, get_stattest, kinds = _evidently()
    except ImportError:
        return {}
    column = kinds.Categorical if kind == "category" else kinds.Numerical
    names = ["psi", "jensenshannon", "hellinger", *(["TVD"] if kind == "category" else ["wasserstein"])]

    def score(name: str) -> Score:
        def asked(x: np.ndarray, y: np.ndarray) -> float:
            sides = pd.Series(x), pd.Series(y)
            told = get_stattest(*sides, column, name)(*sides, column, None)
            return float(told.drift_score) * (1 if name == "TVD" else -1)

        return asked

    return {f"evidently {name}": score(name) for name in names}


def scores(request: dict[str, Any]) -> dict[str, list[float]]:
    """Every peer's score of each draw."""
    kind = request["kind"]
    methods = _scipy(kind) | _of_evidently(kind)
    found: dict[str, list[float]] = {name: [] for name in methods}
    for seed in request["seeds"]:
        x, y = pair(seed, kind, request["reference"], request["current"], request["shift"])
        for name, method in methods.items():
            found[name].append(float(method(x, y)))
    return found


if __name__ == "__main__":
    asked = json.load(sys.stdin)
    json.dump({"alarms": alarms, "scores": scores}[asked["what"]](asked), sys.stdout)
