"""Do whole commands leave the same behind, to the bit, wherever event log and quarantine are?

One life of a deployment, command after command, on a disk and in an object store: what there is after each of them is
compared. The brokers of both give their topics the same ids.
"""

import contextlib
import io
import itertools
import json
import os
import random
import time
import uuid
from types import SimpleNamespace

import msgspec
import pytest
import yaml
from shop_contracts import lenient, odcs
from shop_deployment import VIEW, Deployment, wider

from featurestore.cli.main import main
from featurestore.clock import iso
from featurestore.config import EVENTS_URL
from featurestore.offline.event_log import ARRIVAL, read_events
from featurestore.online.connection import connect
from featurestore.plan_versions import kept_in_force
from streaming import history_run
from streaming.embedded import topics
from streaming.embedded.server import EmbeddedBroker
from streaming.rehearsal import START_US, TOPIC, shop_contract, shop_event
from validation.place import ObjectPath
from validation.quarantine import read_quarantine
from validation.replay import counts
from validation.violations import ViolationStore

pytestmark = pytest.mark.xdist_group("object store commands")  # the lives are lived once
STEPS = (
    "run",
    "verify",
    "compact",
    "verify after compaction",
    "rebuild",
    "run after rebuild",
    "replay",
    "replay again",
    "discard",
    "backfill with a file",
    "backfill of a range",
    "verify at the end",
)


class Life(Deployment):
    """A deployment whose commands run in this process, and what there is after each."""

    def put(self, held, plan):
        """The batch source of the topic is where its event log is, as a repo's `sources.py` has it."""
        path = str(self.settings.event_log / TOPIC)
        views = {
            name: msgspec.structs.replace(
                view, source=msgspec.structs.replace(view.source, path=path, created_field=ARRIVAL)
            )
            for name, view in plan.views.items()
        }
        super().put(held, msgspec.structs.replace(plan, views=views))

    def command(self, *words, code=0):
        """What a command printed."""
        told, wrong = io.TextIOWrapper(io.BytesIO(), "utf-8"), io.StringIO()
        with contextlib.redirect_stdout(told), contextlib.redirect_stderr(wrong):
            found = main([*words, "--repo", str(self.repo)])
        told.flush()
        said = told.buffer.getvalue().decode()
        assert found == code, f"{words}: {said}{wrong.getvalue()}"
        return said.replace(str(self.repo.parent), "")

    def caught_up(self):
        return self.command("stream", "run", "--until-caught-up", "--flush-rows", "40")

    def verified(self):
        """How many values differ. Which instants are looked at depends on the order of the files, and these on time."""
        values, _, found = self.command("verify", VIEW, "--keys", "8").partition(" compared ")
        assert int(values.split("': ")[1].split()[0]) > 500
        return found

    def after(self, said):
        """All that is stored."""
        return {
            "said": said,
            "tiles": {key: value.rstrip(b"\0") for key, value in self.tiles().items()},
            "events": rows_of(read_events(self.settings.event_log / TOPIC)),
            "quarantine": rows_of(read_quarantine(self.settings.quarantine)),
            "counts": counts(self.settings.quarantine, TOPIC),
            "violations": {
                (one.rule_id, one.boundary, one.origin_partition): one.rows
                for one in ViolationStore(self.settings.violations).find()
            },
        }

    def live(self):
        """What there is after each step."""
        self.produce(300)
        yield "run", self.after(self.caught_up())
        with contextlib.redirect_stdout(io.StringIO()) as told:
            assert main(["contract", "violations", "--json"]) == 0
        assert sum(json.loads(line)["rows"] for line in told.getvalue().splitlines()) > 20
        yield "verify", self.after(self.verified())
        yield "compact", self.after(self.command("stream", "compact", "--grace-s", "0"))
        yield "verify after compaction", self.after(self.verified())
        self.client.flushall()
        yield "rebuild", self.after(self.command("stream", "rebuild"))
        self.produce(60)
        yield "run after rebuild", self.after(self.caught_up())
        (self.repo / "contracts").mkdir()
        (self.repo / "next.yaml").write_text(yaml.safe_dump(odcs(lenient(), TOPIC)))
        (self.repo / "contracts" / "now.odcs.yaml").write_text(yaml.safe_dump(odcs(shop_contract(), TOPIC)))
        replay = ("quarantine", "replay", TOPIC, "--contract", str(self.repo / "next.yaml"))
        said = self.command(*replay, code=1)
        self.caught_up()
        yield "replay", self.after(said)
        yield "replay again", self.after(self.command(*replay, code=1))
        assert main(["quarantine", "discard", TOPIC, "--reason", "lost", "--rule", "currency_known"]) == 0
        yield "discard", self.after(self.caught_up())
        self.produce(60)
        before = self.plans.load()
        self.put(before, kept_in_force(wider(before, 2), before, lambda view: True))
        history = ("--file", str(self.history()))
        yield "backfill with a file", self.after(self.command("backfill", VIEW, *history, "--wait-s", "0"))
        begin, cut = (iso(START_US - ago_s * 1_000_000) for ago_s in (9_000, 3_000))
        yield (
            "backfill of a range",
            self.after(self.command("backfill", VIEW, "--from", begin, "--to", cut, "--wait-s", "0")),
        )
        plan = self.plans.load()
        assert (plan.views[VIEW].version, plan.building, plan.retiring) == (3, {}, ())
        self.caught_up()
        yield "verify at the end", self.after(self.verified())
        told = json.loads(self.command("stream", "status", "--json"))
        assert {each["lag_records"] for view in told["views"] for each in view["partitions"]} == {0, None}

    def history(self):
        """A file of events that the topic never had, some of them broken."""
        path = self.repo / "history.jsonl"
        rows = [shop_event(random.Random(each), 10**6 + each, START_US - 3_600_000_000 + each, 9) for each in range(50)]
        path.write_bytes(b"\n".join([*rows, *[b"broken"] * 10]))
        os.utime(path, (START_US / 1e6 - 1_800,) * 2)
        return path


def rows_of(table):
    """In one order; when what was replayed had arrived is the one thing that a clock says."""
    left = table.drop_columns([name for name in ("_arrival", "arrival") if name in table.column_names])
    return sorted(json.dumps(row, sort_keys=True, default=str) for row in left.to_pylist())


def lived(folder, server, events_url, *, steps=None):
    """Each step of one life, or so many of them, with what was there then."""
    ids = random.Random(1)
    named = SimpleNamespace(UUID=uuid.UUID, uuid4=lambda: uuid.UUID(int=ids.getrandbits(128), version=4))
    at_once = SimpleNamespace(sleep=lambda seconds: None, monotonic=time.monotonic)
    folder.mkdir()
    with pytest.MonkeyPatch.context() as patch, EmbeddedBroker() as broker:
        patch.setattr(topics, "uuid", named)
        patch.setattr(history_run, "HAND_OVER_S", 0.0)
        patch.setattr(history_run, "time", at_once)  # nobody reads meanwhile
        if events_url is not None:
            patch.setenv(EVENTS_URL, events_url)
        url = f"unix://{server.address}"
        client = connect(SimpleNamespace(url=url), folder)
        client.flushall()
        life = Life(folder, url, client, str(broker.address))
        patch.setenv("KAFKA_BOOTSTRAP_SERVERS", life.servers)
        patch.setenv("FEATURESTORE_CLOCK_OFFSET_S", str(life.offset_s))
        patch.chdir(life.repo)
        found = dict(itertools.islice(life.live(), steps))
        life.publisher.close()
        client.close()
    local = life.settings.data_dir
    there = {name: (local / name).exists() for name in ("event_log", "quarantine", "violations", "dead_letters")}
    assert there == dict.fromkeys(there, events_url is None)
    return found


@pytest.fixture(scope="module")
def lives(tmp_path_factory, embedded_server, bucket):
    """On a disk, and in the object store."""
    folder = tmp_path_factory.mktemp("lives")
    return [
        lived(folder / name, embedded_server, url) for name, url in (("disk", None), ("objects", str(bucket / "life")))
    ]


@pytest.mark.slow
@pytest.mark.parametrize("step", STEPS)
def test_a_command_leaves_the_same_in_an_object_store_as_on_a_disk(lives, step):
    """Tiles byte for byte, events, rows set aside, what became of them, and what it says."""
    disk, objects = (life[step] for life in lives)
    assert objects == disk


def test_the_steps_have_done_something(lives):
    """What is compared is not nothing."""
    life = lives[1]
    assert tuple(life) == STEPS
    assert len(life["run"]["events"]) > 200
    assert len(life["run"]["tiles"]) > 20
    assert "0 differ" in life["verify"]["said"]
    assert life["verify after compaction"]["said"] == life["verify"]["said"]
    assert life["rebuild"]["tiles"] == life["run"]["tiles"]
    assert life["replay"]["counts"]["accepted"] > 0
    assert life["replay again"]["counts"] == life["replay"]["counts"]
    assert life["discard"]["counts"]["discarded"] > 0
    assert len(life["backfill with a file"]["events"]) == len(life["discard"]["events"]) + 50
    assert life["backfill of a range"]["tiles"] != life["backfill with a file"]["tiles"]


def test_a_listing_that_leaves_a_file_out_is_caught(lives, embedded_server, tmp_path, in_bucket, monkeypatch):
    """A planted fault: tiles that are rebuilt of all files but one are not those of the disk."""
    listed = ObjectPath.rglob

    def without_one(self, pattern):
        found = sorted(listed(self, pattern))
        files = [each for each in found if each.name.endswith(".parquet") and "event_log" in each.parts]
        yield from (each for each in found if each not in files[1:2])

    monkeypatch.setattr(ObjectPath, "rglob", without_one)
    faulty = lived(tmp_path / "faulty", embedded_server, str(in_bucket), steps=STEPS.index("rebuild") + 1)
    assert faulty["run"]["tiles"] == lives[0]["run"]["tiles"]
    assert faulty["run"]["events"] != lives[0]["run"]["events"]
    assert faulty["rebuild"]["tiles"] != lives[0]["rebuild"]["tiles"]
