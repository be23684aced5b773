"""Is every row in quarantine accepted once, or open, or discarded, whatever happens in between?"""

import json
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import msgspec
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from validation import replay as replay_module
from validation.compiled.rows import compile_rows
from validation.contract import Contract
from validation.decision_log import DecisionLog
from validation.errors import ContractError, PlatformError
from validation.judging import judge_file
from validation.place import ObjectPath, Place
from validation.quarantine import Origin, QuarantineSink, Rejected
from validation.replay import Decision, attempts, counts, discard, open_rows, origin_of, replay
from validation.testing import ORDERS

BOUND = {"column": "amount", "min_value": -10}
LENIENT = msgspec.structs.replace(
    ORDERS, version="1.1.0", rules=(msgspec.structs.replace(ORDERS.rules[0], arguments=BOUND), ORDERS.rules[1])
)
ROWS = [
    {"id": "a", "amount": amount, "at": "2024-01-01T00:00:00Z"} for amount in (-1.0, 2.0, -20.0, float("nan"), -3.0)
]


def judged(folder: Path, rows: list[dict[str, Any]] = ROWS, *, quarantine: Place | None = None) -> Place:
    """A file of rows, judged; its rejected rows are in quarantine. Its folder."""
    file, found = folder / "orders.jsonl", quarantine or folder / "q"
    file.write_text("\n".join(json.dumps({k: v for k, v in row.items() if v == v}) for row in rows))
    judge_file(file, ORDERS, now_us=0, quarantine=found)
    return found


class Log:
    """A topic's replay topic: events are judged by the rules of one row, and known again by their origin."""

    def __init__(self) -> None:
        self.sent: list[str] = []
        self.crash = False

    def judge(self, rows: Any, contract: Contract, now_us: int) -> list[Decision]:
        check = compile_rows(contract.at("event"))
        masks = check.check([json.loads(row["row"]) for row in rows], [now_us] * len(rows))
        return [
            Decision("contract", "", check.ids(mask)) if mask & check.quarantine_mask else Decision() for mask in masks
        ]

    def deliver(self, rows: Any, contract: Contract, now_us: int) -> str:
        self.sent += [origin_of(row) for row in rows]
        if self.crash:
            raise KeyboardInterrupt
        return "orders.replay"


def sent(folder: Place, *values: bytes, offset: int = 0) -> Place:
    """Events of a topic in quarantine."""
    sink = QuarantineSink(folder / "q", source="orders", contract="orders", version="1.0.0")
    rows = [
        Rejected(offset=offset + n, row=value, reason="contract", rule_ids=("positive",), key=b"k")
        for n, value in enumerate(values)
    ]
    sink.store(Origin(name="orders", id="T0pic-Id", partition=2), offset, offset + len(values) - 1, rows)
    return folder / "q"


def test_rows_of_a_file_are_accepted_once(tmp_path: Path) -> None:
    """Under a later contract; what it rejects again stays, with its new version and attempt."""
    q, out = judged(tmp_path), tmp_path / "out"
    assert counts(q, "orders") == {"quarantined": 3, "open": 3, "accepted": 0, "discarded": 0}
    run = replay(q, LENIENT, out, now_us=7)
    assert (run.judged, run.accepted, run.rejected) == (3, 2, 1)
    (path,) = run.outputs
    table = pq.read_table(path)
    assert table.column("amount").to_pylist() == [-1.0, -3.0]
    assert str(table.schema.field("at").type) == "timestamp[us, tz=UTC]"
    assert [origin.rsplit("-", 2)[1:] for origin in table.column("_origin").to_pylist()] == [["0", "0"], ["0", "4"]]
    (left,) = open_rows(q, "orders").to_pylist()
    assert (left["offset"], left["attempt"], left["contract_version"]) == (2, 2, "1.1.0")
    again = replay(q, LENIENT, out, now_us=8)
    assert (again.judged, again.accepted, again.outputs) == (1, 0, ())
    assert counts(q, "orders") == {"quarantined": 3, "open": 1, "accepted": 2, "discarded": 0}
    assert len(list(out.iterdir())) == 1


def test_storing_a_range_again_opens_nothing(tmp_path: Path) -> None:
    """A sink that repeats a range after a crash brings back no row that was accepted."""
    q = judged(tmp_path)
    replay(q, LENIENT, tmp_path / "out", now_us=7)
    judged(tmp_path)
    assert counts(q, "orders")["open"] == 1


def test_events_are_sent_again(tmp_path: Path) -> None:
    """Those that are accepted, with what was sent kept as it came; without anybody to send them nothing is decided."""
    q = sent(tmp_path, b'{"id": "mine", "amount": -1}', b'{"amount": -20}', b'{"amount": -3}')
    with pytest.raises(PlatformError, match="no broker to send them to"):
        replay(q, LENIENT, tmp_path / "out", now_us=7)
    assert counts(q, "orders")["open"] == 3
    log = Log()
    run = replay(q, LENIENT, tmp_path / "out", now_us=8, events=log)
    assert (run.accepted, run.rejected, run.topics, run.outputs) == (2, 1, ("orders.replay",), ())
    assert log.sent == ["T0pic-Id-2-0", "T0pic-Id-2-2"]
    again = replay(q, LENIENT, tmp_path / "out", now_us=9, events=log)
    assert (again.judged, again.accepted, again.topics, len(log.sent)) == (1, 0, (), 2)


def test_a_crash_while_events_are_sent_leaves_none_out(tmp_path: Path) -> None:
    """The next replay sends the same ones, and then no more; giving rows up meanwhile waits for it."""
    q, log = sent(tmp_path, b'{"amount": -1}', b'{"amount": -20}'), Log()
    log.crash = True
    with pytest.raises(KeyboardInterrupt):
        replay(q, LENIENT, tmp_path / "out", now_us=7, events=log)
    with pytest.raises(PlatformError, match="quarantine replay"):
        discard(q, "orders", reason="r", now_us=8)
    log.crash = False
    assert replay(q, LENIENT, tmp_path / "out", now_us=9, events=log).topics == ("orders.replay",)
    assert log.sent == ["T0pic-Id-2-0"] * 2
    assert counts(q, "orders") == {"quarantined": 2, "open": 1, "accepted": 1, "discarded": 0}


def test_a_mark_that_comes_before_the_events_would_be_caught(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The planted fault: decisions under their own name before the events are sent leave one out after a crash."""
    q, log, carry_out = sent(tmp_path, b'{"amount": -1}'), Log(), replay_module._carry_out

    def early(folder: Place, source: str, decisions: DecisionLog, events: Any) -> Any:
        number, done = decisions.last()
        if not done:
            decisions.carried_out(number)
            raise KeyboardInterrupt
        return carry_out(folder, source, decisions, events)

    with monkeypatch.context() as patched:
        patched.setattr(replay_module, "_carry_out", early)
        with pytest.raises(KeyboardInterrupt):
            replay(q, LENIENT, tmp_path / "out", now_us=7, events=log)
    replay(q, LENIENT, tmp_path / "out", now_us=9, events=log)
    assert log.sent == []


def test_the_sinks_cursor_does_not_move(tmp_path: Path) -> None:
    """Neither replay nor discard changes how far a topic was judged."""
    q = sent(tmp_path, b'{"amount": -1}', b'{"amount": -2}', offset=5)
    origin = Origin(name="orders", id="T0pic-Id", partition=2)
    sink = QuarantineSink(q, source="orders")
    before = sink.next_offset(origin)
    replay(q, LENIENT, tmp_path / "out", now_us=1, events=Log())
    discard(q, "orders", reason="old", now_us=2)
    assert sink.next_offset(origin) == before == 7


@pytest.mark.parametrize("step", [0, 1, 2])
def test_a_crash_at_any_step_loses_and_repeats_nothing(
    tmp_path: Path, place: Place, step: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Before the decisions, before the accepted rows, before the end: the next run leaves each row accepted once.

    Meanwhile more rows arrive, so that the next run is not the same one. Nothing has to be put right by hand.
    """
    q, out = judged(tmp_path, quarantine=place / "q"), tmp_path / "out"
    steps = ((DecisionLog, "take"), (replay_module, "put_table"), (DecisionLog, "carried_out"))

    def crashing(*given: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(*steps[step], crashing)
        with pytest.raises(KeyboardInterrupt):
            replay(q, LENIENT, out, now_us=7)
    sent(place, b'{"id": "e", "amount": -4}')
    log = Log()
    replay(q, LENIENT, out, now_us=9, events=log)
    origins = [origin for path in out.iterdir() for origin in pq.read_table(path).column("_origin").to_pylist()]
    assert len(origins) == len(set(origins)) == 2
    assert log.sent == ["T0pic-Id-2-0"]
    assert counts(q, "orders") == {"quarantined": 4, "open": 1, "accepted": 3, "discarded": 0}


class Meanwhile(Log):
    """A replay topic of one machine; while it judges, or before it has sent, something happens on another."""

    def __init__(self, log: Log, **happens: Callable[[], object]) -> None:
        self.sent, self.crash, self.happens = log.sent, False, happens

    def judge(self, rows: Any, contract: Contract, now_us: int) -> list[Decision]:
        found = super().judge(rows, contract, now_us)
        self.happens.pop("judging", lambda: None)()
        return found

    def deliver(self, rows: Any, contract: Contract, now_us: int) -> str:
        self.happens.pop("sending", lambda: None)()
        return super().deliver(rows, contract, now_us)


def two_at_once(place: ObjectPath, out: Path) -> bool:
    """Two machines decide on the same rows, one while the other judges: whether what was sent is what was accepted."""
    q, log = sent(place, b'{"id": "e", "amount": -4}', b'{"id": "f", "amount": -5}'), Log()
    first = Meanwhile(log, judging=lambda: discard(q, "orders", reason="lost", now_us=8))
    replay(q, LENIENT, out, now_us=7, events=first)
    outcomes = [one["outcome"] for one in attempts(q, "orders").values()]
    return outcomes == ["accepted" if log.sent else "discarded"] * 2


def test_of_two_machines_that_decide_at_once_one_does(in_bucket: ObjectPath, tmp_path: Path) -> None:
    """Whoever comes second decides again, of what is open by then: here of nothing."""
    assert two_at_once(in_bucket, tmp_path)


def test_decisions_that_ask_for_no_number_of_their_own_are_caught(
    in_bucket: ObjectPath, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A planted fault: rows are sent that somebody has given up."""
    monkeypatch.setattr(ObjectPath, "put_first", lambda self, data: self.put(data) or True)
    with pytest.raises((AssertionError, PlatformError)):
        assert two_at_once(in_bucket, tmp_path)


def test_a_replay_that_sleeps_does_nothing_new_when_it_wakes(in_bucket: ObjectPath, tmp_path: Path) -> None:
    """Others carry out what it decided, and go on; it sends the same events again, under the same origins."""
    q, log = sent(in_bucket, b'{"id": "e", "amount": -4}', b'{"id": "f", "amount": -50}'), Log()

    def others() -> None:
        assert replay(q, LENIENT, tmp_path, now_us=8, events=log).topics == ("orders.replay",)
        assert discard(q, "orders", reason="lost", now_us=9).discarded == 1

    asleep = Meanwhile(log, sending=others)
    run = replay(q, LENIENT, tmp_path, now_us=7, events=asleep)
    assert (run.judged, run.accepted, run.rejected) == (2, 1, 1)
    assert log.sent == ["T0pic-Id-2-0"] * 2
    assert counts(q, "orders") == {"quarantined": 2, "open": 0, "accepted": 1, "discarded": 1}


def test_runs_at_once_decide_each_row_once(place: Place, tmp_path: Path) -> None:
    """Eight of them, on a disk and on several machines: no row has two outcomes, none is sent that was given up."""
    q, log = sent(place, *(b'{"id": "e", "amount": -%d}' % (1 + each) for each in range(12))), Log()

    def run(number: int) -> int:
        if number % 2:
            return discard(q, "orders", reason="lost", now_us=number).discarded
        return replay(q, LENIENT, tmp_path, now_us=number, events=log).accepted

    def tries(number: int) -> int:
        while True:
            try:
                return run(number)
            except PlatformError:  # a discard cannot send what a replay has just decided
                time.sleep(0.01)

    with ThreadPoolExecutor(8) as pool:
        taken = sum(pool.map(tries, range(8)))
    found = attempts(q, "orders")
    accepted = {f"T0pic-Id-2-{offset}" for (_, _, offset), one in found.items() if one["outcome"] == "accepted"}
    assert set(log.sent) == accepted
    assert taken == sum(one["outcome"] != "rejected" for one in found.values())


def test_a_planted_loss_is_seen(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Were a decision forgotten, the run itself would say so."""
    q, judge = judged(tmp_path), replay_module._judge
    monkeypatch.setattr(replay_module, "_judge", lambda *given: [{**row, "outcome": "lost"} for row in judge(*given)])
    with pytest.raises(AssertionError, match="a row was lost"):
        replay(q, LENIENT, tmp_path / "out", now_us=7)


def test_discarded_rows_are_open_no_more_and_keep_the_reason(tmp_path: Path) -> None:
    """Only those that broke the rule; discarding again finds none."""
    q = judged(tmp_path)
    assert discard(q, "orders", reason="test data", now_us=5, rule="other").discarded == 0
    assert discard(q, "orders", reason="test data", now_us=5, rule="positive").discarded == 3
    assert discard(q, "orders", reason="test data", now_us=6).judged == 0
    assert {one["reason"] for one in attempts(q, "orders").values()} == {"test data"}
    assert replay(q, LENIENT, tmp_path / "out", now_us=7).judged == 0
    with pytest.raises(ContractError, match="did you mean 'orders'"):
        discard(q, "order", reason="r", now_us=1)


@settings(max_examples=15, deadline=None)
@given(
    st.lists(st.sampled_from([-30.0, -20.0, -5.0, -1.0, 1.0]), min_size=1, max_size=12),
    st.lists(st.sampled_from(["replay", "strict", "discard", "again"]), max_size=5),
)
def test_conservation_holds_whatever_is_done(
    tmp_path_factory: pytest.TempPathFactory, amounts: list[float], actions: list[str]
) -> None:
    """In = accepted at once + open + accepted later + discarded."""
    folder = tmp_path_factory.mktemp("c")
    rows = [{"id": "a", "amount": amount} for amount in amounts]
    q = judged(folder, rows)
    bad = sum(amount < 0 for amount in amounts)
    for now_us, action in enumerate(actions if bad else []):
        if action == "replay":
            replay(q, LENIENT, folder / "out", now_us=now_us)
        elif action == "strict":
            assert replay(q, ORDERS, folder / "out", now_us=now_us).accepted == 0
        elif action == "discard":
            discard(q, "orders", reason="r", now_us=now_us)
        else:
            judged(folder, rows)
        found = counts(q, "orders")
        assert found["quarantined"] == bad == found["open"] + found["accepted"] + found["discarded"]
        written = [pq.read_metadata(path).num_rows for path in (folder / "out").glob("*.parquet")]
        assert sum(written) == found["accepted"]
