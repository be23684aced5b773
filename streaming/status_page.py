"""How does the standing of the stream look to a person?"""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from featurestore.clock import iso

if TYPE_CHECKING:
    from streaming.run_record import RunRecord
    from streaming.status import PartitionStatus, ViewStatus


def show(views: "Sequence[ViewStatus]", runs: "Sequence[RunRecord]") -> None:
    """Print a table for each version of a view, and a line for each run over history that is not done."""
    # Slow, and `featurestore --help` must not wait for it.
    from rich.table import Table

    from validation.terminal import Console

    console = Console()
    for view in views:
        reads = view.reads if view.reads in (view.declared, "latest") else f"{view.reads}, declared {view.declared}"
        role = "" if view.role == "read" else f" ({view.role})"
        title = f"{view.view}, version {view.version}{role}: topic {view.topic}, {reads}"
        table = Table(
            "partition",
            "offset",
            "lag",
            "behind",
            "watermark",
            "complete from",
            "stored",
            "retention",
            "plan",
            title=title,
        )
        table.title_justify = "left"
        for each in view.partitions:
            table.add_row(*_row(each))
        console.print(table)
        if view.duplicates or view.reused_ids:
            line = f"{view.duplicates} duplicates left out; {view.reused_ids} events under the id of another"
            console.print(line, highlight=False)
    for run in runs:
        rest = "" if run.eta_s is None or run.state != "log" else f", {run.eta_s:.0f} s to go"
        done = run.offsets - run.offsets_left
        line = f"{run.kind} of {run.view}, version {run.version}: {run.state}, {done} of {run.offsets} offsets{rest}"
        console.print(line + (f"; {run.message}" if run.message else ""), highlight=False)


def _row(each: "PartitionStatus") -> tuple[str, ...]:
    name = f"{each.partition} replayed" if each.replayed else str(each.partition)
    since = "not yet" if not each.complete else "ever" if each.complete_from_us is None else iso(each.complete_from_us)
    return (
        name,
        "never claimed" if each.offset is None else str(each.offset),
        "?" if each.lag_records is None else str(each.lag_records),
        "?" if each.lag_s is None else f"{each.lag_s:.0f} s",
        "-" if each.watermark_us is None else iso(each.watermark_us),
        since,
        "?" if each.stored is None else str(each.stored),
        "?" if each.retention_used is None else "LOST" if each.retention_used >= 1 else f"{each.retention_used:.0%}",
        "-" if each.plan_version is None else str(each.plan_version),
    )
