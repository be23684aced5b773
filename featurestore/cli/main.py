"""How does `featurestore COMMAND` find its command, and how does it fail?

Packages register Typer apps under the entry point group `featurestore.commands`, so that the CLI imports no package
above it. A failure is one line on standard error; exit code 2 for wrong usage or configuration, 1 for a failure.
"""

import os
import sys
import traceback
from collections.abc import Sequence
from typing import TYPE_CHECKING

from featurestore.cli.stopping import Stopping, grace_of
from featurestore.private_files import write_privately
from featurestore.secret_files import from_files
from validation.errors import PlatformError
from validation.printable import printable
from validation.redaction import redacted

if TYPE_CHECKING:
    import typer

GROUP = "featurestore.commands"
DEBUG = "--debug"


def build_app() -> "typer.Typer":
    """The command line with every registered command."""
    from importlib.metadata import entry_points
    from typing import Annotated

    import typer

    from validation.echo import echo_plainly

    echo_plainly()
    app = typer.Typer(
        name="featurestore",
        help="The engine that Feast lacks: training sets and online features that agree exactly.",
        no_args_is_help=True,
        pretty_exceptions_enable=False,
        # Help without markup: loading what renders it would cost two thirds of the time that help takes.
        rich_markup_mode=None,
        context_settings={"help_option_names": ["-h", "--help"]},
    )

    @app.callback()
    def root(
        *,
        debug: Annotated[bool, typer.Option(DEBUG, help="Show the traceback of a failure; after any command.")] = False,
    ) -> None:
        """Feast definitions in, exact features out: offline, online and in the stream."""

    for point in sorted(entry_points(group=GROUP), key=lambda point: point.name != "store"):
        app.add_typer(point.load())
    return app


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command and return its exit code; 130 and 143 where SIGINT or SIGTERM broke it off.

    Without `argv` it is this process's own command: a signal ends the process within the grace even after that.
    """
    import threading

    if threading.current_thread() is not threading.main_thread():
        return _main(argv, None)  # signals come to the main thread alone
    stopping = Stopping(grace_of(os.environ))
    try:
        code = _main(argv, stopping)
    finally:
        if argv is not None:
            stopping.close()
    if argv is None:
        stopping.last(code)
    return code


def _main(argv: Sequence[str] | None, stopping: Stopping | None) -> int:
    words = list(sys.argv[1:] if argv is None else argv)
    debug = DEBUG in words
    write_privately()
    try:
        # Slow enough that Ctrl-C meets them: inside, it is one line.
        import logging

        import typer

        from featurestore.cli.logs import PlainFormatter

        handler = logging.StreamHandler()
        handler.setFormatter(PlainFormatter("%(levelname)s %(name)s: %(message)s"))
        logging.basicConfig(level=logging.DEBUG if debug else logging.WARNING, handlers=[handler])
        for name, value in from_files(os.environ).items():
            os.environ[name] = value
            del os.environ[f"{name}_FILE"]  # a process that this one starts must not find both
        command = typer.main.get_command(build_app())
        command.main([word for word in words if word != DEBUG], prog_name="featurestore")
    except SystemExit as leaving:
        code = leaving.code if isinstance(leaving.code, int) else 0
        # A command that stops in order, by handlers of its own, says by its own exit code how it ended.
        return _stopped(stopping, debug=debug) if stopping is not None and stopping.raised and code else code
    except BaseException as error:
        if stopping is not None and stopping.number is not None:
            # Libraries make errors of their own of it: DuckDB says `RuntimeError: Query interrupted`.
            return _stopped(stopping, debug=debug)
        if isinstance(error, PlatformError):
            return _fail(str(error), error.exit_code, debug=debug)
        if not isinstance(error, Exception):
            raise
        # The process's outermost frame: a bug is told in one line too.
        return _fail(f"{type(error).__name__}: {error}; this is a bug: run again with {DEBUG}", 1, debug=debug)
    return 0


def _stopped(stopping: Stopping, *, debug: bool) -> int:
    if debug:
        traceback.print_exc()
    sys.stderr.write(f"{stopping.line}\n")
    return stopping.exit_code


def _fail(message: str, exit_code: int, *, debug: bool) -> int:
    if debug:
        sys.stderr.write(printable(redacted(traceback.format_exc()), keep="\n\t"))
    sys.stderr.write("error: " + printable(redacted(" ".join(message.split()))) + "\n")
    return exit_code


if __name__ == "__main__":
    sys.exit(main())
