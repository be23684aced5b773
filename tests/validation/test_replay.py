"""Is every row in quarantine accepted once, or open, or discarded, whatever happens in between?"""

import json
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
from validation.errors import ContractError, PlatformError
from validation.judging import judge_file
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


def judged(folder: Path, rows: list[dict[str, Any]] = ROWS) -> Path:
    """A file of rows, judged; its rejected rows are in quarantine. The file's folder."""
    file = folder / "orders.jsonl"
    file.write_text("\n".join(json.dumps({k: v for k, v in row.items() if v == v}) for row in rows))
    judge_file(file, ORDERS, now_us=0, quarantine=folder / "q")
    return folder / "q"


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


def sent(folder: Path, *values: bytes, offset: int = 0) -> Path:
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
    q, log, finish = sent(tmp_path, b'{"amount": -1}'), Log(), replay_module._finish
    log.crash = True

    def early(folder: Path, source: str, place: Path, events: Any) -> Any:
        pending = place / replay_module._PENDING
        if pending.exists():
            (place / "early.parquet").write_bytes(pending.read_bytes())
        try:
            return finish(folder, source, place, events)
        finally:
            pending.unlink(missing_ok=True)

    with monkeypatch.context() as patched:
        patched.setattr(replay_module, "_finish", early)
        with pytest.raises(KeyboardInterrupt):
            replay(q, LENIENT, tmp_path / "out", now_us=7, events=log)
    log.crash, log.sent = False, []
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
    tmp_path: Path, step: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Before the decisions, before the accepted rows, before the end: the next run leaves each row accepted once.

    Meanwhile more rows arrive, so that the next run is not the same one.
    """
    q, out = judged(tmp_path), tmp_path / "out"
    write, replace = replay_module.put_table, Path.replace
    calls = []

    def crashing(table: Any, path: Path) -> None:
        calls.append(path)
        if len(calls) == step + 1:
            raise KeyboardInterrupt
        write(table, path)

    def never(self: Path, target: Path) -> Path:
        if self.name == replay_module._PENDING:
            raise KeyboardInterrupt
        return replace(self, target)

    with monkeypatch.context() as patched:
        if step < 2:
            patched.setattr(replay_module, "put_table", crashing)
        else:
            patched.setattr(Path, "replace", never)
        with pytest.raises(KeyboardInterrupt):
            replay(q, LENIENT, out, now_us=7)
    sent(tmp_path, b'{"id": "e", "amount": -4}')
    log = Log()
    replay(q, LENIENT, out, now_us=9, events=log)
    origins = [origin for path in out.iterdir() for origin in pq.read_table(path).column("_origin").to_pylist()]
    assert len(origins) == len(set(origins)) == 2
    assert log.sent == ["T0pic-Id-2-0"]
    assert counts(q, "orders") == {"quarantined": 4, "open": 1, "accepted": 3, "discarded": 0}


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
