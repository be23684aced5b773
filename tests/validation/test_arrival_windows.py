"""Rules about many events are judged over windows of arrival: a function of the log alone, in bounded memory."""

import itertools
import random
from typing import Any

import msgspec
import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from validation.arrival_windows import ArrivalWindows, Closed, of_windows
from validation.compiled.batch import compile_batch
from validation.contract import Column, Contract, Rule

W = 1_000
RULES = (
    Rule(id="once", expectation="expect_column_values_to_be_unique", arguments={"column": "id"}, mode="warn"),
    Rule(
        id="mostly",
        expectation="expect_column_values_to_be_between",
        arguments={"column": "x", "min_value": 0, "mostly": 0.9},
        mode="warn",
    ),
    Rule(id="mean", expectation="expect_column_mean_to_be_between", arguments={"column": "x", "max_value": 5}),
    Rule(
        id="range",
        expectation="expect_column_values_to_be_between",
        arguments={"column": "x", "min_value": -9},
        mode="quarantine",
    ),
    Rule(id="many", expectation="expect_table_row_count_to_be_between", arguments={"min_value": 10**9}),
)
CONTRACT = Contract(
    name="c",
    version="1",
    source="s",
    columns=(Column(name="id", logical_type="integer"), Column(name="x", logical_type="number")),
    rules=RULES,
)
MANY = of_windows(CONTRACT)
assert MANY is not None

Log = list[tuple[int, int, float]]
"""Offset, arrival, x; the id is the arrival's last digit."""


def play(log: Log, cuts: list[int], rows_at_most: int = 10**6, windows: Any = None) -> list[Closed]:
    """The windows of a log that is handed over in batches which begin at these places."""
    windows = windows or ArrivalWindows(MANY, window_us=W, rows_at_most=rows_at_most)
    found = []
    edges = [0, *sorted(cuts), len(log)]
    for start, end in itertools.pairwise(edges):
        part = log[start:end]
        if not part:
            continue
        before = 0 if start == 0 and log[0][0] == 0 else part[0][0]
        found += give(windows, part, before)
    return found


def give(windows: ArrivalWindows, part: Log, before: int) -> list[Closed]:
    offsets, arrivals, x = (np.array(column) for column in zip(*part, strict=True))
    events = pa.table({"id": arrivals % 10, "x": x.astype(float), "more": x})
    return list(windows.add(events, arrivals, offsets, before=before, after=int(offsets[-1]) + 1))


logs = st.lists(st.tuples(st.integers(0, 3 * W), st.sampled_from([-1.0, 0.0, 7.0])), min_size=1, max_size=60).map(
    lambda rows: [
        (offset, arrival, x) for offset, (arrival, x) in enumerate(sorted(rows, key=lambda row: row[0] // 300))
    ]
)


@settings(deadline=None, max_examples=40)
@given(logs, st.lists(st.integers(0, 60), max_size=8), st.sampled_from([3, 7, 10**6]))
def test_how_the_log_was_polled_does_not_matter(log: Log, cuts: list[int], most: int) -> None:
    """Windows, their offsets and their verdicts follow from the log: arrivals out of order and cut windows included."""
    whole = play(log, [], most)
    assert play(log, [cut for cut in cuts if cut < len(log)], most) == whole
    assert all(closed.verdict.rows <= most for closed in whole)
    for one, after in itertools.pairwise(whole):
        assert after.first == one.last + 1, "no event is judged twice, none is left out"


def test_a_window_is_judged_as_a_batch_is() -> None:
    """The verdict on the events of a window is that of the same rows as a batch; samples name offsets."""
    log = [(offset, offset * 100, float(offset)) for offset in range(25)]
    closed = play(log, [7])
    assert [(each.start_us, each.first, each.last) for each in closed] == [(0, 0, 9), (W, 10, 19)]
    table = pa.table({"id": [(n * 100) % 10 for n in range(10)], "x": [float(n) for n in range(10)]})
    theirs = compile_batch(MANY).run(table)
    assert [(r.outcome, r.unexpected, r.observed) for r in closed[0].verdict.rules] == [
        (r.outcome, r.unexpected, r.observed) for r in theirs.rules
    ]
    assert [rule.rule_id for rule in closed[0].verdict.rules] == ["once", "mostly", "mean"]
    assert closed[1].verdict.rule("once").samples[0].row == 10


def test_a_restart_in_the_middle_judges_from_the_next_window_on() -> None:
    """What it says of later windows is what the first worker says; the one it did not see whole it does not judge."""
    log = [(offset, offset * 100, 1.0) for offset in range(45)]
    whole = play(log, [])
    late = ArrivalWindows(MANY, window_us=W)
    found = give(late, log[13:], 13)
    assert found == whole[2:]
    assert late.unseen == 1


def test_what_is_read_again_counts_once_and_a_gap_gives_the_window_up() -> None:
    """Claiming again replays: the same verdicts. Offsets that never came make a window that nobody may judge."""
    log = [(offset, offset * 100, 1.0) for offset in range(45)]
    windows = ArrivalWindows(MANY, window_us=W)
    found = give(windows, log[:8], 0) + give(windows, log[3:30], 3) + give(windows, log[:30], 0)
    assert found == play(log, [])[:2]
    assert give(windows, log[35:], 35) == []
    assert windows.unseen == 2, "the one that was open, and the one whose beginning is missing"


def test_memory_holds_one_window_at_most() -> None:
    """A window of a million events is cut: a partition never holds more rows than it may."""
    windows = ArrivalWindows(MANY, window_us=10**12, rows_at_most=1_000)
    rng = random.Random(1)
    most = 0
    closed = 0
    for start in range(0, 50_000, 700):
        part = [(offset, offset, rng.random()) for offset in range(start, start + 700)]
        closed += len(give(windows, part, start))
        most = max(most, windows._rows, sum(table.num_rows for table in windows._tables))
    assert closed == 50_400 // 1_000
    assert most < 1_000


def test_a_contract_without_such_rules_has_no_windows() -> None:
    """Rules of one event, row counts and columns are none of theirs."""
    assert of_windows(msgspec.structs.replace(CONTRACT, rules=RULES[3:])) is None


def test_a_planted_fault_is_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    """The comparison can fail: windows that end with the poll give other verdicts."""
    honest = ArrivalWindows.add

    def by_poll(self: ArrivalWindows, *arguments: Any, **options: Any) -> Any:
        yield from honest(self, *arguments, **options)
        yield from self._close()

    log = [(offset, offset * 10, 1.0) for offset in range(250)]
    whole = play(log, [])
    monkeypatch.setattr(ArrivalWindows, "add", by_poll)
    assert play(log, [33, 71]) != whole
