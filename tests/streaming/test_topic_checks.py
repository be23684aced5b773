"""Is a topic that would lose events told, by the doctor and by a worker that starts?"""

import msgspec
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from typer.testing import CliRunner

from featurestore.config import load_settings
from featurestore.doctor import examine
from featurestore.plan_store import PlanStore, write_plan_file
from streaming.commands import stream
from streaming.rehearsal import START_US, TOPIC, shop_plan
from streaming.topic_checks import doctors_checks, findings, of_views, warnings

SOUND = {"retention.ms": "604800000", "retention.bytes": "-1", "cleanup.policy": "delete"}
ARRIVAL = {"message.timestamp.type": "LogAppendTime"}


def test_a_sound_topic_has_no_findings():
    """A week by time alone, and the broker's clock."""
    assert list(findings(TOPIC, {**SOUND, **ARRIVAL})) == []
    assert list(findings(TOPIC, {**SOUND, **ARRIVAL, "retention.ms": "-1"})) == []


@pytest.mark.parametrize(
    ("change", "setting", "loses"),
    [
        ({"retention.ms": "3600000"}, "retention.ms", True),
        ({"retention.ms": "0"}, "retention.ms", True),
        ({"retention.bytes": "1000"}, "retention.bytes", True),
        ({"cleanup.policy": "compact,delete"}, "cleanup.policy", True),
        ({"message.timestamp.type": "CreateTime"}, "message.timestamp.type", False),
    ],
)
def test_each_unfit_setting_is_found(change, setting, loses):
    """One finding, which says what to do."""
    [found] = findings(TOPIC, {**SOUND, **ARRIVAL, **change})
    assert (found.setting, found.loses, bool(found.remedy)) == (setting, loses, True)


def test_retention_must_outlast_the_slowest_sink():
    """A day is enough for files of seconds, not for files of a day."""
    day = {**SOUND, **ARRIVAL, "retention.ms": "86400000"}
    assert list(findings(TOPIC, day, slowest_s=5)) == []
    assert [each.setting for each in findings(TOPIC, day, slowest_s=86_400)] == ["retention.ms"]


def test_messages_older_than_their_topic_keeps_them_are_told(tmp_path, each_broker):
    """Acknowledged is not kept: a broker goes by the time that a message bears. Where it keeps all, nothing is said."""
    file = tmp_path / "events.parquet"
    pq.write_table(pa.table({"ts": pa.array([START_US + 1, START_US], pa.timestamp("us", tz="UTC"))}), file)

    def produce(topic):
        servers = each_broker.bootstrap_servers
        words = ["produce", str(file), "--topic", topic, "--timestamp", "ts", "--bootstrap-servers", servers]
        done = CliRunner().invoke(stream, words)
        assert done.exit_code == 0, done.output
        assert "2 messages acknowledged" in done.stdout
        return done.stderr

    topic = each_broker.topic(retention_ms="604800000")
    assert f"topic {topic!r} has retention.ms 168.0 h: messages are up to " in produce(topic)
    assert produce(each_broker.topic(retention_ms="-1")).strip() == ""  # the progress bar ends its line


def test_a_real_topic_is_looked_at(tmp_path, online_url, store, each_broker):
    """The doctor's table and a worker's log, about a topic that keeps an hour and goes by producers' clocks."""
    servers = each_broker.bootstrap_servers
    topic = each_broker.topic(retention_ms="3600000", message_timestamp_type="CreateTime")
    repo = tmp_path / "feature_repo"
    repo.mkdir()
    text = f"project: shop\nregistry: ../data/registry.db\nonline_store:\n  connection: {online_url}\n"
    (repo / "feature_store.yaml").write_text(text)
    environ = {"KAFKA_BOOTSTRAP_SERVERS": servers}
    settings = load_settings(repo, environ)
    plan = shop_plan()
    view = plan.views["user_orders"]
    there = msgspec.structs.replace(view.source.topic, name=topic)
    view = msgspec.structs.replace(view, source=msgspec.structs.replace(view.source, topic=there))
    plan = msgspec.structs.replace(plan, views={view.name: view})
    PlanStore(store, "shop").publish(plan)
    write_plan_file(settings.plan_path, plan)
    checks = [check for check in examine(repo, environ, [doctors_checks]) if check.name == f"topic {topic}"]
    assert sorted((check.ok, check.found) for check in checks) == [
        (False, "retention.ms 1.0 h"),
        (True, "message.timestamp.type CreateTime"),
    ]
    [warning] = warnings(settings, [view], slowest_s=5)
    assert "retention.ms" in warning
    assert len(of_views(settings, [view])) == 2
