"""Is every row in quarantine accepted once, or open, or discarded, whatever happens in between?"""

import json
from pathlib import Path
from typing import Any

import msgspec
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from typer.testing import CliRunner

from validation import replay as replay_module
from validation.commands import app
from validation.contract import Contract
from validation.errors import ContractError
from validation.judging import judge_file
from validation.quarantine import Origin, QuarantineSink, Rejected
from validation.replay import attempts, counts, discard, open_rows, replay
from validation.testing import ORDERS

RUN = CliRunner()
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


def test_events_become_a_file_to_produce(tmp_path: Path) -> None:
    """With their key, the replay's instant as arrival, and their origin as id where they have none."""
    q = sent(tmp_path, b'{"id": "mine", "amount": -1}', b'{"amount": -2}', b"\xff torn", b"[1]", b'{"amount": "x"}')
    run = replay(q, LENIENT, tmp_path / "out", now_us=1_000_000, event_id="id")
    assert (run.accepted, run.rejected, run.topic) == (2, 3, "orders.replay")
    rows = pq.read_table(run.outputs[0]).to_pylist()
    assert run.outputs[0].name.endswith(".events.parquet")
    assert [row["id"] for row in rows] == ["mine", "T0pic-Id-2-1"]
    assert [row["_key"] for row in rows] == ["k", "k"]
    assert {row["_replayed"].isoformat() for row in rows} == {"1970-01-01T00:00:01+00:00"}
    reasons = {row["offset"]: (row["reason"], row["detail"]) for row in open_rows(q, "orders").to_pylist()}
    assert reasons[2] == reasons[3] == ("malformed", "no JSON object")
    assert "column 'amount' is 'x'; promised: number" in reasons[4][1]


def test_the_sinks_cursor_does_not_move(tmp_path: Path) -> None:
    """Neither replay nor discard changes how far a topic was judged."""
    q = sent(tmp_path, b'{"amount": -1}', b'{"amount": -2}', offset=5)
    origin = Origin(name="orders", id="T0pic-Id", partition=2)
    sink = QuarantineSink(q, source="orders")
    before = sink.next_offset(origin)
    replay(q, LENIENT, tmp_path / "out", now_us=1)
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
    write, replace = replay_module._write, Path.replace
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
            patched.setattr(replay_module, "_write", crashing)
        else:
            patched.setattr(Path, "replace", never)
        with pytest.raises(KeyboardInterrupt):
            replay(q, LENIENT, out, now_us=7)
    sent(tmp_path, b'{"id": "e", "amount": -4}')
    replay(q, LENIENT, out, now_us=9)
    origins = [origin for path in out.iterdir() for origin in pq.read_table(path).column("_origin").to_pylist()]
    assert len(origins) == len(set(origins)) == 3
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


def contract_file(tmp_path: Path, contract: Contract) -> Path:
    """A contract as a file."""
    rule = contract.rules[0]
    body = {"type": rule.expectation, "kwargs": rule.arguments}
    quality: dict[str, Any] = {"id": rule.id, "type": "custom", "engine": "great-expectations", "implementation": body}
    quality["customProperties"] = [{"property": "mode", "value": "quarantine"}]
    properties = [{"name": c.name, "logicalType": c.logical_type} for c in contract.columns]
    schema = {"name": "orders", "properties": properties, "quality": [quality]}
    head = {"apiVersion": "v3.1.0", "kind": "DataContract", "id": "orders", "version": contract.version}
    path = tmp_path / "orders.odcs.yaml"
    path.write_text(json.dumps({**head, "status": "active", "schema": [schema]}))
    return path


def test_the_commands_say_what_became_of_rows(tmp_path: Path) -> None:
    """Replay under the contract in force and under a named one, with the command that produces the events; discard."""
    q = sent(tmp_path, b'{"id": "a", "amount": -1}', b'{"id": "b", "amount": -20}')
    folder = tmp_path / "contracts"
    folder.mkdir()
    contract_file(folder, ORDERS)
    options = ["--folder", str(q), "--contracts", str(folder), "--output", str(tmp_path / "out")]
    strict = RUN.invoke(app, ["quarantine", "replay", "orders", *options])
    assert strict.exit_code == 1
    assert "2 rows judged, 0 accepted, 2 rejected again; 2 open" in strict.output
    named = RUN.invoke(
        app, ["quarantine", "replay", "orders", *options, "--contract", str(contract_file(tmp_path, LENIENT))]
    )
    assert "contract orders 1.1.0: 2 rows judged, 1 accepted, 1 rejected again; 1 open" in named.output
    assert "--topic orders.replay --timestamp _replayed --key _key" in named.output
    done = RUN.invoke(app, ["quarantine", "discard", "orders", "--folder", str(q), "--reason", "gone"])
    assert "1 rows discarded; 0 open" in done.output
    assert "nothing is in quarantine" in RUN.invoke(app, ["quarantine", "list", "--folder", str(q)]).output
    unknown = RUN.invoke(app, ["quarantine", "replay", "order", *options])
    assert "did you mean 'orders'" in str(unknown.exception)
