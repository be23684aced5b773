"""An operator gets past a record that ends every worker, and what was stepped past is accounted for."""

import json
import random
from pathlib import Path

import msgspec
import pytest
from typer.testing import CliRunner

from featurestore.cli.main import build_app
from featurestore.errors import UsageError
from featurestore.online.connection import StoreClient
from featurestore.online.keys import Shard
from featurestore.plan_store import PlanStore
from streaming.claim_record import ClaimRecord
from streaming.commit import ShardStore
from streaming.decode import Decoder
from streaming.rehearsal import START_US, TOPIC, shop_events, shop_plan
from streaming.sinks import EventLog, Quarantine, RangeSink
from streaming.skips import Skip, Skips
from streaming.source.records import CorruptLog
from streaming.source.scripted import ScriptedLog, ScriptedSource
from streaming.worker import Pace, Worker
from validation.quarantine import read_quarantine

DEADLY = b'{"this": "ends every worker"}'


class Shop:
    """One partition of 40 events, the one at offset 17 deadly."""

    def __init__(self, client: StoreClient, folder: Path) -> None:
        self.client, self.folder, self.plan, self.now_us = client, folder, shop_plan(), START_US
        self.log = ScriptedLog()
        self.log.create(TOPIC, partitions=1, topic_id="id-1")
        for place, event in enumerate(shop_events(random.Random(3), 40, start_us=START_US)):
            value = DEADLY if place == 17 else event.value
            self.log.append(TOPIC, 0, value, key=event.key, timestamp_us=event.arrival_us)
            self.now_us = event.arrival_us

    def run(self, source: ScriptedSource | None = None) -> Worker:
        source = source or ScriptedSource(self.log, [TOPIC], max_records=10)
        worker = Worker(
            source,
            ShardStore(self.client, lambda: self.now_us),
            [
                RangeSink(storage, lambda: self.now_us, flush_rows=5)
                for storage in (
                    EventLog(self.folder / "log"),
                    Quarantine(self.folder / "quarantine", self.plan.contracts),
                )
            ],
            self.plan,
            views=tuple(self.plan.views.values()),
            record=ClaimRecord(self.folder / "log"),
            clock=lambda: self.now_us,
            new_token=iter(map(str, range(1 << 20))).__next__,
            pace=Pace(poll_ms=0),
            sleep=lambda seconds: None,
        )
        try:
            worker.run(lambda: False, until_caught_up=True)
        finally:
            source.close()
        return worker

    def skip(self, *, unreadable: bool, first: int = 17, last: int = 17) -> None:
        Skips(self.folder / "log").add(
            TOPIC,
            Skip(
                topic_id="id-1", partition=0, first=first, last=last, unreadable=unreadable, reason="r", by="b", at_us=1
            ),
        )


@pytest.fixture
def shop(store: StoreClient, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Shop:
    """With a decoder that dies of the deadly record, as a defect of ours would."""
    good = Decoder.decode

    def mortal(self: Decoder, messages: object) -> object:
        if any(message.value == DEADLY for message in messages):
            raise RuntimeError("a defect")
        return good(self, messages)

    monkeypatch.setattr(Decoder, "decode", mortal)
    return Shop(store, tmp_path)


def test_a_deadly_record_ends_the_worker_and_names_its_place(shop: Shop) -> None:
    """Without a step past it every worker ends there, after some tries, and says where it was."""
    with pytest.raises(RuntimeError) as caught:
        shop.run()
    assert "stream skip" in "".join(caught.value.__notes__)


def test_a_record_that_is_stepped_past_is_set_aside_and_all_others_count(shop: Shop) -> None:
    """39 events count, one is in quarantine as empty, and in = accepted + set aside."""
    with pytest.raises(RuntimeError):
        shop.run()
    shop.skip(unreadable=False)
    counters = shop.run().counters
    rejected = sum(count for name, count in counters.items() if name.startswith("rejected:"))
    assert counters["accepted"] + rejected == counters["events"]
    aside = read_quarantine(shop.folder / "quarantine", TOPIC)
    rows = [str(row) for row in aside.to_pylist()]
    assert len([row for row in rows if "'empty'" in row and "17" in row]) == 1
    assert DEADLY.decode() not in json.dumps([str(row) for row in aside.to_pylist()])


class Torn(ScriptedSource):
    """A source whose batch from offset 15 to 19 cannot be read at all."""

    def poll(self, timeout_ms):
        found = super().poll(timeout_ms)
        for batch in found:
            if batch.position_before < 20 and batch.position_after > 15:
                raise CorruptLog("the batch at offset 15 cannot be uncompressed")
        return found


def test_a_batch_that_cannot_be_read_is_stepped_past_as_a_hole(shop: Shop) -> None:
    """Nothing of its range is fetched, the offset moves past it, and what follows counts."""
    with pytest.raises(CorruptLog):
        shop.run(Torn(shop.log, [TOPIC], max_records=5))
    shop.skip(unreadable=True, first=15, last=19)
    worker = shop.run(Torn(shop.log, [TOPIC], max_records=5))
    control = ShardStore(shop.client, lambda: 1).control(Shard("shop", "user_orders", 1, "id-1", 0))
    assert control is not None
    assert control.offset == 40
    assert worker.counters["unforeseen"] == 0


def test_the_command_keeps_who_when_and_why(
    store: StoreClient, online_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`stream skip` writes a file beside the event log; an unknown partition is refused, a range is bounded."""
    monkeypatch.delenv("FEATURESTORE_REDIS_URL", raising=False)
    plan = msgspec.structs.replace(shop_plan(), project="shop")
    PlanStore(store, "shop").publish(plan)
    (tmp_path / "feature_store.yaml").write_text(f"project: shop\nonline_store:\n  connection: {online_url}\n")
    words = ["stream", "skip", TOPIC, "0", "17", "--reason", "it ends workers", "--repo", str(tmp_path)]
    assert isinstance(CliRunner().invoke(build_app(), words).exception, UsageError)
    shop = Shop(store, tmp_path / "data")
    shop.log = ScriptedLog()
    shop.log.create(TOPIC, partitions=1, topic_id="id-1")
    event = next(iter(shop_events(random.Random(3), 1, start_us=START_US)))
    shop.log.append(TOPIC, 0, event.value, key=event.key, timestamp_us=event.arrival_us)
    shop.run()
    done = CliRunner().invoke(build_app(), words)
    assert done.exit_code == 0, done.exception
    (kept,) = (tmp_path / "data" / "event_log" / TOPIC / "_skips").iterdir()
    found = json.loads(kept.read_text())
    assert (found["topic_id"], found["first"], found["last"], found["reason"]) == ("id-1", 17, 17, "it ends workers")
    assert found["by"]
    assert isinstance(CliRunner().invoke(build_app(), [*words, "--to", "90000"]).exception, UsageError)
