"""How does a monitor run? The process that looks at a deployment over and over, and the sinks that it tells.

It is here, above the feature store, since alerts may go to a topic.
"""

import time
from typing import TYPE_CHECKING, Annotated

import typer

from featurestore.cli.settings import HERE, Repo, settings_of

if TYPE_CHECKING:
    from featurestore.config import Settings
    from featurestore.monitor.alerts import Sink
    from featurestore.plan import Plan

SECRET = "FEATURESTORE_ALERTS_SECRET"  # noqa: S105 - the name of a variable


def monitor(
    repo: Repo = HERE,
    *,
    once: Annotated[bool, typer.Option("--once", help="Look once, and leave.")] = False,
    every_s: Annotated[float, typer.Option(min=1, help="Seconds between two rounds.")] = 300.0,
    metrics_port: Annotated[int | None, typer.Option(help="Port of /metrics on loopback; default: none.")] = None,
    topic: Annotated[
        str | None, typer.Option(envvar="FEATURESTORE_ALERTS_TOPIC", help="Topic to write alerts to.")
    ] = None,
    webhook: Annotated[
        str | None,
        typer.Option(
            envvar="FEATURESTORE_ALERTS_WEBHOOK",
            help="Address to post alerts to, signed with the secret in FEATURESTORE_ALERTS_SECRET.",
        ),
    ] = None,
) -> None:
    """Look at skew, drift and objectives over and over, and tell of what somebody has to know.

    With --once the exit code is 1 where a critical alert is open.
    """
    from functools import partial

    from featurestore.clock import system_clock
    from featurestore.fallback import Fallbacks
    from featurestore.monitor.metrics import MonitorMetrics
    from featurestore.monitor.round import Monitor
    from featurestore.monitor.workspace import workspace
    from featurestore.online.connection import connect
    from featurestore.plan_store import load_plan_file
    from featurestore.plan_users import PlanUsers
    from featurestore.promises_kept import PromiseMetrics
    from featurestore.repeated import attempt
    from validation.terminal import Console

    settings = settings_of(repo)
    plan = load_plan_file(settings.plan_path)
    clock = system_clock(settings.clock_offset_us)
    metrics = MonitorMetrics(PromiseMetrics(settings.promises))
    client = connect(settings.online, settings.data_dir)
    users = PlanUsers(client, settings.project, system_clock())
    watch = Monitor(
        workspace(settings),
        settings.repo,
        clock,
        sinks=_sinks(settings, plan, topic, webhook),
        switches=Fallbacks(client, settings.project),
        hold=partial(users.report, holds_s=4 * every_s),
    )
    if metrics_port is not None:
        metrics.serve("127.0.0.1", metrics_port)
    console = Console()

    def look() -> int:
        found = watch.round(load_plan_file(settings.plan_path))
        alarms = watch.book.open()
        metrics.take(found, alarms, clock())
        compared = sum(each.compared for each in found.audits)
        console.print(
            f"{compared} served values audited, {len(found.budgets)} objectives measured, {len(alarms)} alerts open"
        )
        return 1 if any(each.finding.severity == "critical" for each in alarms) else 0

    if once:
        raise typer.Exit(look())
    while True:
        began = time.monotonic()
        attempt("a round of the monitor", look, lambda _: metrics.round_failed())
        time.sleep(max(0.0, every_s - (time.monotonic() - began)))


def _sinks(settings: "Settings", plan: "Plan", topic: str | None, webhook: str | None) -> "list[Sink]":
    import os

    from featurestore.clock import system_clock
    from featurestore.monitor.alerts import LogSink
    from featurestore.monitor.webhook_sink import WebhookSink
    from streaming.alert_topic import AlertTopic
    from streaming.cluster import outbox_of
    from streaming.webhooks import webhook_of

    found: list[Sink] = [LogSink()]
    if topic is not None:
        views = () if settings.bootstrap_servers else plan.views.values()
        found.append(AlertTopic(topic, outbox_of(settings, views), system_clock()))
    if webhook is not None:
        found.append(WebhookSink(webhook_of(webhook, SECRET, os.environ)))
    return found
