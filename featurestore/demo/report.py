"""How does a person see what the demo does and did?"""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from typing import Self
from zoneinfo import ZoneInfo

from rich.console import Console
from rich.progress import BarColumn, Progress, SpinnerColumn, TaskProgressColumn, TextColumn, TimeElapsedColumn
from rich.table import Table

from featurestore.demo.recorded import HOME_ZONE
from featurestore.demo.run import Answered, Outcome

_TICK_S = 0.5
_SHOWN = 4
"""Flights shown on either side of now."""
_DIFFERENCES_SHOWN = 10


class Bars:
    """A progress bar for every step, with its time; a context manager. Without a terminal it prints a line a step."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._progress = Progress(
            SpinnerColumn(finished_text="[green]✓[/]"),
            TextColumn("{task.description}"),
            BarColumn(bar_width=16),
            TaskProgressColumn(),
            TimeElapsedColumn(),
            console=console,
            disable=not console.is_terminal,
        )

    def __enter__(self) -> Self:
        self._progress.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """No more steps: what is printed from now on stays below the bars."""
        self._progress.stop()

    @contextmanager
    def step(self, title: str, *, total: int | None = None) -> Iterator[Callable[[Callable[[], int]], None]]:
        """A bar that pulses, or fills up to `total`; the block's value asks now and then how much is done."""
        began = time.monotonic()
        task = self._progress.add_task(title, total=total)
        looked = began

        def advance(count: Callable[[], int]) -> None:
            nonlocal looked
            if time.monotonic() - looked >= _TICK_S:
                self._progress.update(task, completed=count())
                looked = time.monotonic()

        yield advance
        self._progress.update(task, total=total or 1, completed=total or 1)
        if self._progress.disable:
            self._console.print(f"{title}: {time.monotonic() - began:.1f} s")


def show(console: Console, outcome: Outcome, seconds: float) -> None:
    """Prints what was predicted, and the closing table."""
    console.print(_predictions(outcome.answered, outcome.now_us))
    console.print(_closing(outcome, seconds))
    for each in outcome.answered.comparison.differences[:_DIFFERENCES_SHOWN]:
        console.print(
            f"[red]differs[/] {each.column}, row {each.row}: served {each.served!r} ({each.status}), "
            f"offline {each.offline!r} ({each.expected_status})"
        )


def _predictions(answered: Answered, now_us: int) -> Table:
    rows = answered.flights.to_pylist()
    chances = answered.chances.to_pylist()
    now = datetime.fromtimestamp(now_us / 1_000_000, UTC)
    left = [place for place, row in enumerate(rows) if row["scheduled"] <= now]
    ahead = [place for place, row in enumerate(rows) if row["scheduled"] > now]
    table = Table(
        "flight", "route", "scheduled", "late?", "what happened", title="Chance to leave over 15 minutes late"
    )
    for place in [*left[-_SHOWN:], *ahead[:_SHOWN]]:
        row = rows[place]
        scheduled = row["scheduled"].astimezone(ZoneInfo(HOME_ZONE))
        table.add_row(
            f"{row['carrier']} {row['flight']}",
            row["route"],
            f"{scheduled:%a %d %b %H:%M}",
            f"{chances[place]:.0%}",
            _what_happened(row),
        )
    return table


def _what_happened(row: dict[str, object]) -> str:
    delay = row["dep_delay_min"]
    if isinstance(delay, float):
        return f"left {abs(delay):.0f} min {'late' if delay > 0 else 'early'}" if delay else "left on time"
    return "cancelled" if row["cancelled"] else "not known yet"


def _closing(outcome: Outcome, seconds: float) -> Table:
    landed, learned, answered = outcome.landed, outcome.learned, outcome.answered
    found = answered.comparison
    trial = learned.with_features
    ended = datetime.fromtimestamp(outcome.now_us / 1_000_000, UTC).astimezone(ZoneInfo(HOME_ZONE))
    moved = f"2013, moved by {outcome.weeks} weeks" if outcome.weeks else "2013, as recorded"
    table = Table("what", "result", title=f"From raw files to served predictions in {seconds:.0f} s")
    table.add_row("the year", f"{moved}; now is {ended:%a %d %b %Y %H:%M} in New York")
    table.add_row(
        "landed",
        f"{landed['schedule']:,} scheduled flights, {landed['weather']:,} weather readings, "
        f"{landed['planes']:,} planes",
    )
    table.add_row(
        "streamed",
        f"{outcome.streamed.events:,} departures and arrivals: {outcome.streamed.accepted:,} accepted, "
        f"{outcome.streamed.set_aside:,} set aside",
    )
    table.add_row(
        "training set",
        f"{trial.train_rows + trial.test_rows:,} flights two hours before schedule, {learned.columns} features; "
        f"the last {trial.test_rows:,} to score",
    )
    table.add_row("AUC, timetable alone", f"{learned.without.auc:.3f}")
    gain = trial.auc - learned.without.auc
    table.add_row("AUC with the store's features", f"[bold]{trial.auc:.3f}[/] ({gain:+.3f})")
    statuses = ", ".join(
        f"{count:,} {name}" for name, count in sorted(found.statuses.items(), key=lambda each: -each[1])
    )
    table.add_row("served over HTTP", f"{found.rows:,} flights x {found.columns} features: {statuses}")
    colour = "red" if found.differences else "green"
    table.add_row(
        "compared with an offline read",
        f"[bold {colour}]{found.compared:,} values, {len(found.differences):,} differ[/]",
    )
    for name, address in outcome.addresses.items():
        table.add_row(name, address)
    return table
