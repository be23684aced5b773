"""`featurestore demo`: how is the main job started from the command line?"""

from pathlib import Path
from typing import Annotated

import typer

from featurestore.cli.settings import HERE, Repo, settings_of


def demo(
    repo: Repo = HERE,
    *,
    as_recorded: Annotated[
        bool, typer.Option("--as-recorded", help="Keep the year 2013 and set the clock to its end.")
    ] = False,
    keep_running: Annotated[
        bool, typer.Option("--keep-running", help="Leave API, stream and broker up until Ctrl-C.")
    ] = False,
    days: Annotated[
        int, typer.Option(min=28, max=366, help="Days of the year to replay, counted from its end: fewer is quicker.")
    ] = 366,
    data: Annotated[
        Path | None, typer.Option(help="Folder to work in, with a copy of the repo; default: the repo's data folder.")
    ] = None,
) -> None:
    """Replay a year of New York's flights: land, stream, train, serve, and compare served with offline values.

    Exit code 0 only if every served value equals the offline one, to the bit. Nothing keeps running afterwards.
    """
    import importlib.util
    import os
    import time
    import warnings

    from rich.console import Console

    from featurestore.errors import ConfigurationError

    if importlib.util.find_spec("sklearn") is None:
        raise ConfigurationError(
            "the demo trains with scikit-learn, which is missing; pip install 'featurestore[demo]'"
        )
    repo = settings_of(repo).repo
    # Feast says so of every stream view, each time it reads one.
    warnings.filterwarnings("ignore", message="Stream feature views are experimental", category=RuntimeWarning)
    console = Console()
    began = time.monotonic()
    console.print("Replaying the flights of 2013 …")
    # Feast is among these: seconds of importing, after the first line is out.
    from featurestore.clock import system_clock
    from featurestore.demo.flights import recorded_end_us
    from featurestore.demo.processes import Interrupted
    from featurestore.demo.report import Bars, show
    from featurestore.demo.run import Options, Outcome, run
    from featurestore.demo.workspace import own_environ

    offset_us = recorded_end_us() - system_clock()() if as_recorded else 0
    environ = own_environ(os.environ, clock_offset_us=offset_us)
    # Feast's plug-ins are loaded into this process and read its environment.
    os.environ.clear()
    os.environ.update(environ)
    options = Options(repo=repo, data=data, days=days, as_recorded=as_recorded, keep_running=keep_running)
    try:
        with Bars(console) as bars:

            def done(outcome: Outcome) -> None:
                bars.close()
                show(console, outcome, time.monotonic() - began)
                if keep_running:
                    console.print("Everything stays up, and flights go on as they come due; Ctrl-C ends it.")

            outcome = run(options, environ, system_clock(offset_us), steps=bars, done=done)
    except Interrupted as asked:
        console.print(f"asked to end ({asked}); everything has been stopped")
        raise typer.Exit(asked.exit_code) from None
    if outcome.answered.comparison.differences:
        raise typer.Exit(1)
