"""Do the drift commands profile, keep, compare and tell?"""

import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from typer.testing import CliRunner

from validation.commands import app
from validation.errors import PlatformError

STAMP = pa.timestamp("us", "UTC")
HOUR_US = 3_600_000_000
MONDAY_US = 1_767_571_200_000_000
"""2026-01-05T00:00Z."""


@pytest.fixture(autouse=True)
def _no_plan_beside(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A plan in the folder where a command runs names columns that it leaves out."""
    monkeypatch.chdir(tmp_path)


def table(rows: int, *, seed: int, start_us: int = MONDAY_US, shift: float = 0.0) -> pa.Table:
    rng = np.random.default_rng(seed)
    return pa.table(
        {
            "fare": rng.lognormal(2, 0.5, rows) + shift,
            "carrier": np.array(["AA", "B6", "UA"])[rng.integers(0, 3, rows)],
            "at": pa.array(start_us + np.arange(rows) * (48 * HOUR_US // rows), STAMP),
        }
    )


def file(folder: Path, name: str, content: pa.Table) -> str:
    path = folder / f"{name}.parquet"
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(content, path)
    return str(path)


def run(*arguments: str) -> tuple[int, str]:
    result = CliRunner().invoke(app, ["drift", *arguments])
    if isinstance(result.exception, PlatformError):
        return result.exception.exit_code, str(result.exception)
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result.exit_code, result.output


def test_check_tells_drift_and_writes_reports(tmp_path: Path) -> None:
    """A drift exits with 1, is told strongest first, and stands in JSON and on a page without addresses."""
    reference, current = (
        file(tmp_path, name, table(2_000, seed=seed, shift=shift))
        for name, seed, shift in (("a", 1, 0.0), ("b", 2, 3.0))
    )
    out, page = tmp_path / "r.json", tmp_path / "r.html"
    code, text = run(
        *("check", "--reference", reference, "--current", current, "--time", "at"),
        *("--json", str(out), "--html", str(page)),
    )
    assert code == 1
    assert text.startswith("drift: fare: wasserstein_sd")
    assert "families without drift at this window size" in text
    told = json.loads(out.read_text())
    assert [finding["feature"] for finding in told["findings"]] == ["fare", "carrier"]
    assert told["calibration"]["rate"] <= 0.05
    html = page.read_text()
    assert "<svg" in html
    assert "http" not in html


def test_no_drift_exits_with_0_and_no_rows_with_4(tmp_path: Path) -> None:
    """The same distribution is no drift; an empty file is no data."""
    reference = file(tmp_path, "a", table(2_000, seed=1))
    assert run("check", "--reference", reference, "--current", file(tmp_path, "b", table(500, seed=2)))[0] == 0
    empty = file(tmp_path, "c", table(500, seed=2).slice(0, 0))
    assert run("check", "--reference", reference, "--current", empty)[0] == 4


def test_a_training_set_is_its_train_part(tmp_path: Path) -> None:
    """Of a pinned set the part `train` is the reference; a part with other rows than pinned is refused."""
    folder = tmp_path / "fares"
    file(folder, "train", table(1_000, seed=1))
    file(folder, "test", table(300, seed=2, shift=50.0))
    manifest = {
        "name": "fares",
        "timestamp_column": "at",
        "parts": [
            {"name": "train", "file": "train.parquet", "rows": 1_000, "digest": ""},
            {"name": "test", "file": "test.parquet", "rows": 300, "digest": ""},
        ],
    }
    (folder / "manifest.json").write_text(json.dumps(manifest))
    current = file(tmp_path, "now", table(400, seed=3))
    code, text = run("check", "--reference", str(folder), "--current", current)
    assert (code, "none: at:" in text) == (0, False)
    file(folder, "train", table(999, seed=1))
    code, text = run("check", "--reference", str(folder), "--current", current)
    assert code == 2
    assert "the manifest pins 1000" in text


def test_windows_of_profiles_are_compared(tmp_path: Path) -> None:
    """Profiles kept by hour are a reference as a range, under a name, and as the same hours of past weeks."""
    profiles = str(tmp_path / "profiles")
    week_us = 7 * 24 * HOUR_US
    first = file(tmp_path, "first", table(3_000, seed=1))
    options = ("--profiles", profiles, "--time", "at")
    code, text = run("profile", first, *options)
    assert code == 0
    baseline = text.strip().split()[-1]
    for week, shift in ((1, 0.0), (2, 0.0), (3, 4.0)):
        rows = table(3_000, seed=10 + week, start_us=MONDAY_US + week * week_us, shift=shift)
        assert run("profile", file(tmp_path, f"w{week}", rows), *options, "--baseline", baseline)[0] == 0

    def window(week: int) -> str:
        return f"source@2026-01-{5 + 7 * week:02}T00:00Z/2026-01-{7 + 7 * week:02}T00:00Z"

    assert run("window", "launch", window(0), "--profiles", profiles)[0] == 0
    check = ("check", "--profiles", profiles, "--current")
    assert run(*check, window(2), "--reference", "window:launch")[0] == 0
    assert run(*check, window(2), "--reference", "past:2")[0] == 0
    code, text = run(*check, window(3), "--reference", "past:2")
    assert (code, text.startswith("drift: fare")) == (1, True)
    assert run(*check, first, "--reference", window(3), "--time", "at")[0] == 1
    code, text = run(*check, window(3), "--reference", "window:lunch")
    assert (code, "did you mean 'launch'" in text) == (2, True)


def test_whole_rows_are_tested(tmp_path: Path) -> None:
    """Features that change together though each stays as it was are found by tests of rows alone."""
    pytest.importorskip("sklearn")
    rng = np.random.default_rng(3)

    def pair(rows: int, tied: float) -> pa.Table:
        x, noise = rng.standard_normal((2, rows))
        return pa.table({"x": x, "y": tied * x + (1 - tied**2) ** 0.5 * noise})

    reference, current, same = (
        file(tmp_path, name, pair(rows, tied))
        for name, rows, tied in (("a", 900, 0.9), ("b", 400, 0.0), ("c", 400, 0.9))
    )
    code, text = run("check", "--rows", "--reference", reference, "--current", current)
    assert code == 1
    assert all(f"drift: rows, {name}" in text for name in ("domain_classifier", "mmd", "pca"))
    assert "drift: x" not in text
    assert run("check", "--rows", "--reference", reference, "--current", same)[0] == 0


def test_a_models_outputs_are_one_more_feature(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What a model says of both sides is compared like a column; a name that is no function is told."""
    (tmp_path / "drift_model.py").write_text("def price(rows):\n    return rows.column('fare').to_numpy() * 2\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    sides = [file(tmp_path, f"s{n}", table(800, seed=n, shift=3.0 * n)) for n in (0, 1)]
    options = ("check", "--reference", sides[0], "--current", sides[1], "--feature", "carrier")
    code, text = run(*options, "--model", "drift_model:price")
    assert (code, text.startswith("drift: model_output")) == (1, True)
    code, text = run(*options, "--model", "drift_model:cost")
    assert (code, "cannot be imported" in text) == (2, True)


def test_a_source_is_found_by_its_name_in_the_plan(tmp_path: Path) -> None:
    """A name that is no file is looked up among the plan's sources, and an unknown one told with what exists."""
    data = file(tmp_path, "fares", table(500, seed=1))
    plan = tmp_path / "plan.json"
    plan.write_text(json.dumps({"views": {"v": {"name": "v", "source": {"name": "fares", "path": data}}}}))
    profiles = ("--profiles", str(tmp_path / "p"), "--plan", str(plan))
    assert run("profile", "fares", "--time", "at", *profiles)[0] == 0
    code, text = run("profile", "fairs", *profiles)
    assert (code, "did you mean 'fares'" in text) == (2, True)


@pytest.mark.parametrize(
    "text", ["null\n", 'null, "a": 1}\n', '{"a": 1}\nnull\n', '{"a": 1}\n[1]\n', '{"a": 1}\n"a"\n']
)
def test_lines_that_are_no_objects_are_refused(tmp_path, text):
    """With the line's number; Arrow's own reader ends the process where a block begins with `null`."""
    path = tmp_path / "rows.jsonl"
    path.write_text(text)
    with pytest.raises(PlatformError, match=r"line \d is no JSON object"):
        CliRunner().invoke(
            app, ["drift", "check", "--reference", str(path), "--current", str(path)], catch_exceptions=False
        )
