"""What can be said to the stream on the command line?"""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from featurestore.cli.looks import LOOKS, SETTLES
from streaming.backfill_commands import add_to as add_backfill
from streaming.monitor_command import monitor
from streaming.publish_command import publish_command
from streaming.replay_command import replay_command
from streaming.run_command import run
from streaming.skip_command import skip
from streaming.status_command import status
from streaming.upkeep_commands import compact, profile
from streaming.verify_command import verify
from validation.groups import contract_app, quarantine_app

if TYPE_CHECKING:
    from featurestore.changes import Settle
    from featurestore.doctor import Looks

stream = typer.Typer(no_args_is_help=True, help="Events: a broker for the laptop, producing, consuming.")
app = typer.Typer(no_args_is_help=True)
app.add_typer(stream, name="stream")
app.command()(verify)
for each in (run, status, skip, compact, profile):
    stream.command()(each)
# Commands of the packages below that need a broker: only this one has it.
contract_app.command("publish")(publish_command)
app.command()(monitor)
quarantine_app.command("replay")(replay_command)
add_backfill(app, stream)


def _topic_checks() -> "Looks":
    from streaming.topic_checks import doctors_checks

    return doctors_checks


def _settle_plan() -> "Settle":
    from streaming.settlement import settle_plan

    return settle_plan


LOOKS.append(_topic_checks)
SETTLES.append(_settle_plan)

Servers = Annotated[
    str, typer.Option(envvar="KAFKA_BOOTSTRAP_SERVERS", metavar="HOST:PORT,…", help="Brokers to connect to first.")
]


@stream.command()
def broker(
    port: Annotated[int, typer.Option(help="Port on 127.0.0.1; 0 takes a free one.")] = 0,
    data: Annotated[Path | None, typer.Option(help="Folder to keep topics in; without it they end with it.")] = None,
    partitions: Annotated[int, typer.Option(help="Partitions of topics that are not created but only named.")] = 4,
) -> None:
    """Run the embedded broker until it is asked to stop; the first line printed is its address."""
    import signal
    import threading

    from streaming.embedded.server import EmbeddedBroker

    stopping = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stopping.set())
    with EmbeddedBroker(data, port=port, auto_partitions=partitions) as running:
        print(running.address, flush=True)  # noqa: T201 - for a script to read, without colours or wrapping
        stopping.wait()


@stream.command()
def produce(
    file: Annotated[Path, typer.Argument(help="A Parquet file, one event a row.")],
    topic: Annotated[str, typer.Option(help="Topic to write to; created where it does not exist.")],
    timestamp: Annotated[str, typer.Option(metavar="COLUMN", help="Column that is the record's time.")],
    bootstrap_servers: Servers,
    key: Annotated[str | None, typer.Option(metavar="COLUMN", help="Column that is the message key.")] = None,
    partitions: Annotated[int | None, typer.Option(help="Partitions of a new topic.")] = None,
) -> None:
    """Write the rows of a file to a topic as JSON messages, and wait until every one is acknowledged.

    Where the topic does not keep messages of that age, that is said: a broker goes by the time that they bear.
    """
    import os
    from contextlib import suppress

    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    from featurestore.clock import system_clock
    from streaming.produce import produce_file
    from streaming.source.kafka import KafkaSettings, security_from, topic_configs
    from streaming.source.parquet_events import check_columns, open_parquet
    from streaming.source.publisher import Publisher
    from streaming.source.records import SourceUnavailable
    from streaming.topic_checks import outlived
    from validation.terminal import Console

    with open_parquet(file) as opened:
        check_columns(file, opened.schema_arrow, key=key, timestamp=timestamp)  # before a topic is created
        rows = opened.metadata.num_rows
    settings = KafkaSettings(bootstrap_servers, security_from(os.environ))
    publisher = Publisher(settings, topic, partitions=partitions)
    columns = (TextColumn("{task.description}", markup=False), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    try:
        with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
            task = bar.add_task(f"{file.name} -> {topic}", total=rows)
            done = produce_file(
                file, publisher, key=key, timestamp=timestamp, progress=lambda sent: bar.update(task, completed=sent)
            )
    finally:
        publisher.close()
    rate = done.messages / done.seconds if done.seconds else 0
    Console().print(
        f"{done.messages:,} messages acknowledged in topic {done.topic!r} "
        f"({done.partitions} partitions, {done.seconds:.1f} s, {rate:,.0f}/s)"
    )
    with suppress(SourceUnavailable):  # not everybody may ask for a topic's settings, and all is acknowledged
        configs = topic_configs(settings, [topic]).get(topic, {})
        finding = done.oldest_us is not None and outlived(
            topic, configs, oldest_us=done.oldest_us, now_us=system_clock()()
        )
        if finding:
            typer.echo(finding.line, err=True)


@stream.command()
def sample(
    topic: Annotated[str, typer.Argument(help="Topic to look at.")],
    bootstrap_servers: Servers,
    output: Annotated[Path, typer.Option(help="File to write, one JSON object a line (.jsonl). Never overwrites.")],
    rows: Annotated[int, typer.Option(min=1, help="How many of the newest messages at most.")] = 1_000,
) -> None:
    """Write the newest JSON messages of a topic to a file: what `contract init` infers a first contract from."""
    import os

    from streaming.sample import write_sample
    from streaming.source.kafka import KafkaSettings, security_from
    from streaming.source.sample import newest_values

    settings = KafkaSettings(bootstrap_servers, security_from(os.environ))
    written, others = write_sample(newest_values(settings, topic, rows), output)
    left = f", {others} messages were no JSON objects" if others else ""
    typer.echo(f"{output}: {written} messages of topic {topic!r}{left}; next: featurestore contract init {output}")
