"""How are violations told to a topic and a webhook from the command line?

A process of its own, so that nothing it waits for can make a stream or a service wait. Several may run: one tells; of
violations in an object store each does.
"""

import os
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from featurestore.cli.settings import HERE, Repo, settings_of
from validation.folders import VIOLATIONS, place_here

if TYPE_CHECKING:
    from validation.publishing import Channel, Publication

SECRET = "FEATURESTORE_VIOLATIONS_SECRET"  # noqa: S105 - the name of the variable


def publish_command(
    *,
    repo: Repo = HERE,
    folder: Annotated[
        Path, typer.Option("--folder", help="The folder of the violations, or its address (s3://…).")
    ] = VIOLATIONS,
    topic: Annotated[
        str | None, typer.Option("--topic", envvar="FEATURESTORE_VIOLATIONS_TOPIC", help="Topic to write them to.")
    ] = None,
    webhook: Annotated[
        str | None,
        typer.Option(
            "--webhook",
            envvar="FEATURESTORE_VIOLATIONS_WEBHOOK",
            help="Address to post them to, signed with the secret in FEATURESTORE_VIOLATIONS_SECRET.",
        ),
    ] = None,
    producer: Annotated[
        list[str] | None, typer.Option("--producer", help="Only violations of this producer; repeatable.")
    ] = None,
    once: Annotated[bool, typer.Option("--once", help="Tell what is new and leave.")] = False,
    every_s: Annotated[float, typer.Option("--every-s", min=0.1, help="Seconds between two looks.")] = 2.0,
    metrics_port: Annotated[
        int | None, typer.Option(help="Serve /metrics on this port of 127.0.0.1; 0 takes a free one.")
    ] = None,
) -> None:
    """Tell a topic and a webhook of violations, each change at least once, until SIGTERM.

    Exit code 1 where, with --once, somebody could not be told everything.
    """
    import signal
    import threading
    import time

    from validation.publishing import Publication
    from validation.violations import ViolationStore

    stopping = threading.Event()
    channels = _channels(repo, topic, webhook, stopping.wait)
    store = ViolationStore(place_here(folder, os.environ))
    publications = [Publication(store, channel, among=producer) for channel in channels]
    if once:
        failed = [line for line in map(_once, publications) if line]
        for each in publications:
            typer.echo(_told(each))
        for line in failed:
            typer.echo(line, err=True)
        raise typer.Exit(1 if failed else 0)
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stopping.set())
    if metrics_port is not None:
        _serve_metrics(publications, metrics_port)
    # A channel each: one that is slow or away holds no other up.
    threads = [
        threading.Thread(target=_follow, args=(each, stopping.is_set, stopping.wait, every_s)) for each in publications
    ]
    for thread in threads:
        thread.start()
    while not stopping.is_set() and all(thread.is_alive() for thread in threads):
        time.sleep(0.2)
    stopping.set()
    for thread in threads:
        thread.join()
    for each in publications:
        typer.echo(_told(each))


def _follow(
    publication: "Publication", stop: Callable[[], bool], sleep: Callable[[float], object], every_s: float
) -> None:
    try:
        publication.follow(stop, sleep, every_s=every_s)
    finally:
        publication.channel.close()


def _once(publication: "Publication") -> str:
    """Why not everything was told; empty where it was."""
    from validation.errors import PlatformError

    try:
        publication.round()
    except PlatformError as error:
        return str(error)
    finally:
        publication.channel.close()
    return ""


def _told(publication: "Publication") -> str:
    counters = publication.counters
    counts = ", ".join(f"{counters[name]} {name}" for name in ("sent", "refused", "lost"))
    return f"{publication.channel.name}: {counts}, {publication.pending} pending"


def _channels(repo: Path, topic: str | None, webhook: str | None, sleep: Callable[[float], object]) -> "list[Channel]":
    from featurestore.clock import system_clock
    from featurestore.errors import ConfigurationError
    from featurestore.plan_store import load_plan_file
    from streaming.cluster import outbox_of
    from streaming.violation_topic import TopicChannel
    from streaming.webhooks import webhook_of
    from validation.publishing import WebhookChannel

    found: list[Channel] = []
    if topic is not None:
        settings = settings_of(repo)
        views = [] if settings.bootstrap_servers else load_plan_file(settings.plan_path).views.values()
        found.append(TopicChannel(topic, outbox_of(settings, views), system_clock()))
    if webhook is not None:
        found.append(WebhookChannel(webhook_of(webhook, SECRET, os.environ, sleep)))
    if not found:
        raise ConfigurationError("nobody to tell: name a --topic or a --webhook")
    return found


def _serve_metrics(publications: "list[Publication]", port: int) -> None:
    from prometheus_client import CollectorRegistry, start_http_server

    from streaming.publish_metrics import PublishMetrics

    registry = CollectorRegistry()
    registry.register(PublishMetrics(publications))
    server, _ = start_http_server(port, addr="127.0.0.1", registry=registry)
    typer.echo(f"metrics: http://127.0.0.1:{server.server_port}/metrics", err=True)
