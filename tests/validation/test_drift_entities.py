"""Rows of one entity are no independent rows: they are taken together, wherever profiles are compared."""

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from typer.testing import CliRunner

import validation.drift.compare
from validation.commands import app
from validation.drift.compare import DriftReport, compare, compare_tables
from validation.drift.multivariate import judge_rows
from validation.drift.repeats import owners_of
from validation.profile.baseline import baseline_of
from validation.profile.build import HOUR_US, profile_table
from validation.profile.entities import KEPT, Entities, merge_entities, repeats_of
from validation.profile.store import ProfileStore

STAMP = pa.timestamp("us", "UTC")
Places = np.ndarray[tuple[int], np.dtype[np.int64]]


def population(rng: np.random.Generator, entities: int = 5_000) -> dict[str, Any]:
    """One row an entity."""
    return {
        "driver": np.arange(entities),
        "x": rng.standard_normal(entities),
        "fare": rng.lognormal(0, 1, entities),
        "town": np.array(["a", "b", "c", "d"])[rng.integers(0, 4, entities)],
        "late": (rng.random(entities) < 0.1).astype(np.float64),
    }


def asked(
    made: dict[str, Any], places: Places, *, shift: float = 0.0, noise: np.random.Generator | None = None
) -> pa.Table:
    """The rows of those entities, in order; with noise, values that have nothing to do with the entity."""
    rows = {name: values[places] for name, values in made.items()}
    if noise is not None:
        rows["x"] = noise.standard_normal(len(places))
    rows["x"] = rows["x"] + shift
    return pa.table(rows)


def ten_times(rng: np.random.Generator, entities: int = 100, times: int = 10) -> Places:
    return np.repeat(rng.choice(5_000, entities, replace=False), times)


def often_few(rng: np.random.Generator) -> Places:
    """Some entities much more often than others."""
    share = 1 / np.arange(1, 301)
    return rng.choice(5_000, 300, replace=False)[rng.choice(300, 1_500, p=share / share.sum())]


def report_of(
    seed: int, current: Callable[[np.random.Generator], Places], entities: Sequence[str], **given: Any
) -> DriftReport:
    rng = np.random.default_rng([11, seed])
    made = population(rng)
    sides = asked(made, np.arange(5_000)), asked(made, current(rng), **given)
    features = None if entities else ["x", "fare", "town", "late"]
    return compare_tables(*sides, seed=seed, entities=entities, features=features, families=100)


@pytest.mark.parametrize("entities", [["driver"], []], ids=["named", "equal rows"])
@pytest.mark.parametrize("current", [ten_times, often_few])
def test_entities_that_are_asked_again_and_again_do_not_drift(
    current: Callable[[np.random.Generator], Places], entities: Sequence[str]
) -> None:
    """Rows of the reference's own population, each many times: more than 3 of 12 alarms would be one in 4,400."""
    assert sum(report_of(seed, current, entities).drifted for seed in range(12)) <= 3


def test_rows_that_are_taken_as_independent_would_be_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    """Planted fault: where no entity is taken to repeat, most of these comparisons alarm."""
    monkeypatch.setattr(validation.drift.compare, "repeats_of", lambda *given, **number: 1.0)
    assert sum(report_of(seed, ten_times, ["driver"]).drifted for seed in range(12)) > 8


def test_the_report_says_what_rows_count_as() -> None:
    """A thousand rows of a hundred entities count as a hundred; equal rows without a name are warned of."""
    named, unnamed = report_of(0, ten_times, ["driver"]), report_of(0, ten_times, [])
    for report in (named, unnamed):
        assert {round(one.counted_current) for one in report.findings} == {100}
        assert {one.rows_current for one in report.findings} == {1_000}
        assert report.entities
    assert (named.warnings, len(unnamed.warnings)) == ((), 1)


def test_a_shift_is_seen_by_as_many_entities_as_there_are() -> None:
    """Half a deviation among a hundred entities, ten times each, is seen as among a hundred rows."""
    found = [report_of(seed, ten_times, ["driver"], shift=0.5) for seed in range(10)]
    assert sum(any(one.feature == "x" for one in report.alarms) for report in found) >= 7


def test_values_that_have_nothing_to_do_with_the_entity_keep_their_power() -> None:
    """Rows that are independent though entities repeat count nearly as many as there are: 0.2 deviations are seen."""
    seen = 0
    for seed in range(10):
        report = report_of(seed, ten_times, ["driver"], shift=0.2, noise=np.random.default_rng(seed))
        [x] = [one for one in report.findings if one.feature == "x"]
        assert x.counted_current > 500
        seen += x.verdict == "drift"
    assert seen >= 8


def test_where_no_entity_repeats_nothing_changes() -> None:
    """To name entities that are each there once gives the same findings, to the bit."""
    rng = np.random.default_rng(12)
    made = population(rng)
    sides = [asked(made, rng.choice(5_000, rows, replace=False)) for rows in (3_000, 500)]
    features = ["x", "fare", "town", "late"]
    named, plain = (
        compare_tables(*sides, seed=0, features=features, entities=entities, families=100)
        for entities in (["driver"], [])
    )
    assert named.findings == plain.findings


def test_a_handful_of_entities_cannot_tell() -> None:
    """Four entities, however often they are asked."""

    def four(rng: np.random.Generator) -> Places:
        return ten_times(rng, 4, 250)

    assert {one.verdict for one in report_of(0, four, ["driver"]).findings} == {"cannot tell"}


def test_kept_profiles_say_whose_rows_are(tmp_path: Path) -> None:
    """Hours of profiles that were kept in files, merged: as one profile of all rows says."""
    rng = np.random.default_rng(13)
    made = population(rng)
    at = pa.array(np.sort(rng.integers(0, 24 * HOUR_US, 1_000)), STAMP)
    answers = asked(made, rng.permutation(ten_times(rng))).append_column("at", at)
    reference = asked(made, np.arange(5_000))
    baseline = baseline_of(reference.drop_columns(["driver"]))
    store = ProfileStore(tmp_path)
    for part in range(4):
        hours = profile_table(answers.slice(part * 250, 250), baseline, time_column="at", entities=["driver"])
        store.put(f"part-{part}", hours, boundary="served", baseline=baseline)
    kept = store.read(boundary="served", baseline=baseline.id)
    trained = profile_table(reference, baseline, entities=["driver"])
    assert all(len(one.entities.hashes) <= KEPT for one in (*kept, *trained))
    report = compare(trained, kept, baseline, seed=0)
    assert not report.drifted
    assert report.entities
    assert all(one.counted_current == pytest.approx(100, rel=0.05) for one in report.findings)


def test_profiles_of_before_are_taken_as_independent_and_the_report_says_so() -> None:
    """A profile that does not say whose its rows are: nothing is known of the whole."""
    rng = np.random.default_rng(14)
    table = asked(population(rng), ten_times(rng))
    baseline = baseline_of(table, features=["x"])
    with_, without = (profile_table(table, baseline, entities=entities) for entities in (["driver"], []))
    assert compare(with_, with_, baseline, seed=0).entities
    assert not compare(with_, [*with_, *without], baseline, seed=0).entities


HASHES = st.lists(st.lists(st.integers(0, 40), max_size=60), min_size=1, max_size=5)


@given(HASHES, st.randoms())
@settings(max_examples=60, deadline=None)
def test_entities_of_parts_merge_to_those_of_the_whole(parts: list[list[int]], random: Any) -> None:
    """In any order and grouping, also where each part drops most of its entities."""

    def made(rows: Sequence[int]) -> Entities:
        table = pa.table({"x": np.array([row % 7 for row in rows], np.float64), "e": pa.array(rows, pa.int64())})
        baseline = baseline_of(pa.table({"x": [1.0, 2.0, 3.0]}))
        return profile_table(table, baseline, entities=["e"], most_entities=6)[0].entities

    found = [made(rows) for rows in parts]
    random.shuffle(found)
    one = merge_entities([found[0], merge_entities([*found[1:], made([])])])
    whole = made([row for rows in parts for row in rows])
    assert one.hashes.tolist() == whole.hashes.tolist()
    assert one.counts.tolist() == whole.counts.tolist()


def test_repeats_are_between_one_and_the_rows_of_an_entity() -> None:
    """Equal rows count as one, independent ones as nearly all; nothing known counts as all."""
    rng = np.random.default_rng(15)
    hashes = np.sort(rng.integers(0, 2**63, 200).astype(np.uint64))
    rows = np.full(200, 20)
    equal = np.stack([rows, rows, rows * rng.integers(0, 2, 200), rows * 0], axis=1)
    mixed = np.stack([rows, rows, rng.binomial(20, 0.5, 200), rows * 0], axis=1)
    assert repeats_of(Entities(500, hashes, equal), 4_000, number=True) == pytest.approx(20)
    assert repeats_of(Entities(500, hashes, mixed), 4_000, number=True) < 1.5
    assert repeats_of(Entities(), 4_000, number=True) == 1.0


@pytest.mark.parametrize("tests", [("domain_classifier",), ("mmd", "pca")])
def test_whole_rows_of_entities_are_dealt_out_together(tests: tuple[str, ...]) -> None:
    """A classifier knows entities again that it was fitted on; halves of whole entities tell it nothing."""
    if "domain_classifier" in tests:
        pytest.importorskip("sklearn")
    together = apart = 0
    for seed in range(8):
        rng = np.random.default_rng([16, seed])
        made = population(rng)
        sides = asked(made, rng.choice(5_000, 1_000, replace=False)), asked(made, ten_times(rng))
        features = ["x", "fare", "town"]
        baseline = baseline_of(sides[0], features=features)
        owners = owners_of(*sides, entities=["driver"], features=baseline.features)
        low = [
            min(one.q for one in judge_rows(*sides, baseline, seed=seed, rate=0.05, tests=tests, owners=each)) <= 0.05
            for each in (owners, None)
        ]
        together, apart = together + low[0], apart + low[1]
    assert together <= 2
    assert apart > 2


def days(seed: int, count: int, start: int, memory: float) -> pa.Table:
    """Hourly values of days whose levels depend on the day before."""
    rng = np.random.default_rng(seed)
    level = np.zeros(count)
    for day in range(count):
        before = level[day - 1] if day else rng.standard_normal()
        level[day] = memory * before + (1 - memory**2) ** 0.5 * rng.standard_normal()
    at = (start * 24 + np.arange(count * 24)) * HOUR_US
    return pa.table({"x": np.repeat(level, 24) + rng.normal(0, 0.3, count * 24), "at": pa.array(at, STAMP)})


@pytest.mark.parametrize(("memory", "warned"), [(0.8, True), (0.0, False)])
def test_blocks_that_depend_on_their_neighbours_are_warned_of(memory: float, warned: bool) -> None:
    """Days that are like the day before in blocks of a day: the report says that its rate does not hold."""
    found = [
        compare_tables(
            days(2 * seed, 30, 0, memory), days(2 * seed + 1, 10, 30, memory),
            seed=seed, features=["x"], time_column="at", block_hours=24,
        )
        for seed in range(6)
    ]  # fmt: skip
    told = sum("blocks depend on their neighbours" in "".join(one.warnings) for one in found)
    assert told == 6 if warned else told <= 2


def test_entities_that_are_in_many_blocks_are_warned_of() -> None:
    """The same hundred drivers every day: days are no independent blocks."""
    rng = np.random.default_rng(17)
    made = population(rng)
    at = pa.array(np.repeat(np.arange(10), 100) * 24 * HOUR_US, STAMP)
    drivers = rng.choice(5_000, 100, replace=False)
    same, other = (
        asked(made, places).append_column("at", at)
        for places in (np.tile(drivers, 10), rng.choice(5_000, 1_000, replace=False))
    )
    options: dict[str, Any] = {"seed": 0, "time_column": "at", "block_hours": 24, "entities": ["driver"]}
    assert "an entity of the current rows is in 10.0 blocks" in "".join(compare_tables(other, same, **options).warnings)
    assert "an entity" not in "".join(compare_tables(other, other, **options).warnings)


def check(*arguments: str) -> tuple[int, str]:
    result = CliRunner().invoke(app, ["drift", "check", *arguments])
    return result.exit_code, result.output


def training_set(folder: Path, rng: np.random.Generator) -> tuple[str, str]:
    """A training set with its manifest, and current rows with another label and other keys."""
    made = population(rng, 1_000) | {"label": rng.random(1_000), "trip": np.arange(1_000)}
    table = pa.table(made).append_column("at", pa.array(np.arange(1_000) * HOUR_US, STAMP))
    place = folder / "fares"
    place.mkdir()
    pq.write_table(table, place / "train.parquet")
    pq.write_table(table.select(["driver", "trip", "label", "at"]), place / "entity_rows.parquet")
    manifest = {
        "name": "fares",
        "timestamp_column": "at",
        "entity_rows": {"path": "entity_rows.parquet", "size_bytes": 0, "sha256": ""},
        "parts": [{"name": "train", "file": "train.parquet", "rows": 1_000, "digest": ""}],
    }
    (place / "manifest.json").write_text(json.dumps(manifest))
    later = pa.table(
        made | {"driver": np.arange(5_000, 6_000), "label": rng.random(1_000) + 1, "trip": -np.arange(1_000)}
    )
    pq.write_table(later, folder / "now.parquet")
    return str(place), str(folder / "now.parquet")


def test_keys_and_labels_of_a_training_set_are_left_out_and_told(tmp_path: Path) -> None:
    """What the entity rows had is no feature: other drivers and a label that moved are no drift, unless asked for."""
    reference, current = training_set(tmp_path, np.random.default_rng(18))
    options = ("--reference", reference, "--current", current, "--plan", str(tmp_path / "none"))
    code, text = check(*options)
    assert code == 0, text
    assert "left out: driver (of the entity rows: a key or a label)" in text
    assert "label (of the entity rows: a key or a label)" in text
    assert "none: driver" not in text
    assert check(*options, "--feature", "label")[0] == 1


def test_what_the_plan_knows_as_keys_is_left_out_of_files(tmp_path: Path) -> None:
    """Join keys, timestamps and event ids of the plan's views, under the producer's names and the views'."""
    source = {
        "name": "taps",
        "timestamp_field": "tapped",
        "field_mapping": {"who": "driver"},
        "topic": {"name": "taps", "event_id": "id"},
    }
    view = {"name": "v", "source": source, "join_keys": [{"name": "driver"}], "features": [{"name": "fare"}]}
    plan = tmp_path / "plan.json"
    plan.write_text(json.dumps({"views": {"v": view}}))
    rng = np.random.default_rng(19)
    for name, first in (("a", 0), ("b", 10_000)):
        rows = {"who": np.arange(first, first + 800), "id": np.arange(first, first + 800), "fare": rng.random(800)}
        columns = {
            "tapped": np.arange(first, first + 800),
            "day": pa.array(np.full(800, 3), pa.int32()).cast(pa.date32()),
        }
        pq.write_table(pa.table(rows | columns), tmp_path / f"{name}.parquet")
    sides = ("--reference", str(tmp_path / "a.parquet"), "--current", str(tmp_path / "b.parquet"))
    code, text = check(*sides, "--plan", str(plan))
    assert code == 0, text
    for told in ("who (join key)", "id (event id)", "tapped (event timestamp)", "day (date32[day] is not profiled)"):
        assert told in text
    assert check(*sides, "--plan", str(tmp_path / "none"))[0] == 1
    assert "id (as asked)" in check(*sides, "--plan", str(tmp_path / "none"), "--leave-out", "id")[1]


def test_columns_that_are_not_profiled_are_named() -> None:
    """Dates, instants, durations, times, bytes and lists are told with their types."""
    columns = {
        "day": pa.array([0, 1], pa.date32()),
        "at": pa.array([0, 1], STAMP),
        "took": pa.array([0, 1], pa.duration("s")),
        "clock": pa.array([0, 1], pa.time64("us")),
        "raw": pa.array([b"a", b"b"]),
        "some": pa.array([[1], [2]]),
        "x": pa.array([1.0, 2.0]),
    }
    told = compare_tables(pa.table(columns), pa.table(columns), seed=0).left_out
    assert [one.split(" ")[0] for one in told] == ["day", "at", "took", "clock", "raw", "some"]
    assert all("is not profiled" in one for one in told)
