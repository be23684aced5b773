"""Generated files and contracts against the real commands: a right value or one clear line, never a crash."""

import json
import random
from pathlib import Path

import pytest
from command_outcome import check, report, run, seeds
from dirty_inputs import contract, rows, write_file


def test_contract_commands_answer_any_file(tmp_path: Path) -> None:
    """`contract init`, `contract test` and `drift check` on generated files end with an answer or one clear line."""
    faults: list[str] = []
    for seed in seeds(12):
        rng = random.Random(seed)
        folder = tmp_path / str(seed)
        folder.mkdir()
        file = write_file(rng, folder)
        (folder / "c.odcs.yaml").write_text(json.dumps(contract(rng)))
        sound = folder / "sound.odcs.yaml"
        for words in (
            ["contract", "init", str(file), "--output", str(sound)],
            [
                "contract",
                "test",
                str(file),
                "--contract",
                str(folder / "c.odcs.yaml"),
                "--quarantine",
                str(folder / "q"),
                "--report",
                str(folder / "report.json"),
                "--junit",
                str(folder / "junit.xml"),
                "--html",
                str(folder / "r.html"),
            ],
            ["contract", "test", str(file), "--contract", str(sound)],
        ):
            check(run(words), seed, words, faults)
    report(faults)


def test_contract_lint_answers_any_contract(tmp_path: Path) -> None:
    """`contract lint` and `contract diff` on generated contracts end with an answer or one clear line."""
    faults: list[str] = []
    for seed in seeds(60):
        rng = random.Random(seed)
        one, other = tmp_path / f"{seed}-1.odcs.yaml", tmp_path / f"{seed}-2.odcs.yaml"
        one.write_text(json.dumps(contract(rng)))
        other.write_text(json.dumps(contract(rng)))
        for words in (["contract", "lint", str(one)], ["contract", "diff", str(one), str(other)]):
            check(run(words), seed, words, faults)
    report(faults)


def test_drift_check_answers_any_pair_of_files(tmp_path: Path) -> None:
    """`drift check` of two generated files ends with an answer or one clear line."""
    faults: list[str] = []
    for seed in seeds(6):
        rng = random.Random(seed)
        for name in ("one", "other"):
            (tmp_path / f"{seed}" / name).mkdir(parents=True)
        files = [write_file(rng, tmp_path / f"{seed}" / name) for name in ("one", "other")]
        words = ["drift", "check", "--reference", str(files[0]), "--current", str(files[1])]
        check(run(words), seed, words, faults)
        words = ["drift", "check", "--reference", str(files[0]), "--current", str(files[0])]
        check(outcome := run(words), seed, words, faults)
        if outcome.code == 1 and "drift" in outcome.out:
            faults.append(f"seed {seed}: a file drifts from itself\n{outcome.out[-400:]}")
    report(faults)


def test_rows_accepted_and_quarantined_are_all_rows(tmp_path: Path) -> None:
    """Whatever the rows hold, a file's accepted and quarantined rows are as many as it has."""
    faults: list[str] = []
    for seed in seeds(12):
        rng = random.Random(seed)
        held = rows(rng)
        file = tmp_path / f"{seed}.jsonl"
        file.write_text("".join(json.dumps(row) + "\n" for row in held))
        document = contract(random.Random(0))
        (tmp_path / "c.odcs.yaml").write_text(json.dumps(document))
        words = [
            "contract",
            "test",
            str(file),
            "--contract",
            str(tmp_path / "c.odcs.yaml"),
            "--quarantine",
            str(tmp_path / f"q{seed}"),
            "--report",
            str(tmp_path / f"{seed}.json"),
        ]
        check(run(words), seed, words, faults)
    report(faults)


@pytest.fixture(autouse=True)
def _no_home(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
