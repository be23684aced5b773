"""How are rows in quarantine given up from the command line?

Replaying them needs a broker where they are events: `streaming.replay_command`. As in `validation.commands`, every
command imports what it runs inside its own body.
"""

import os
from pathlib import Path
from typing import Annotated

import typer

from validation.folders import QUARANTINE, place_here

Source = Annotated[str, typer.Argument(help="The source.")]
Quarantine = Annotated[Path, typer.Option("--folder", help="The folder of the quarantine, or its address (s3://…).")]
Rule = Annotated[str | None, typer.Option("--rule", help="Only rows that broke this rule.")]


def discard_command(
    source: Source,
    *,
    reason: Annotated[str, typer.Option("--reason", help="Why they are given up.")],
    folder: Quarantine = QUARANTINE,
    rule: Rule = None,
) -> None:
    """Give up the open rows of a source, for a reason that is kept. The rows stay in the quarantine's files."""
    import time

    from validation.replay import counts, discard

    where = place_here(folder, os.environ)
    run = discard(where, source, reason=reason, now_us=time.time_ns() // 1000, rule=rule)
    typer.echo(f"{source}: {run.discarded} rows discarded; {counts(where, source)['open']} open")
