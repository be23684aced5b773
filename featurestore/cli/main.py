"""How does `featurestore COMMAND` find its command, and how does it fail?

Packages register Typer apps under the entry point group `featurestore.commands`, so that the CLI imports no package
above it. A failure is one line on standard error; exit code 2 for wrong usage or configuration, 1 for a failure.
"""

import logging
import sys
import traceback
from collections.abc import Sequence
from importlib.metadata import entry_points
from typing import Annotated

import typer

from validation.errors import PlatformError

GROUP = "featurestore.commands"
DEBUG = "--debug"


def build_app() -> typer.Typer:
    """The command line with every registered command."""
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
    """Runs one command and returns its exit code."""
    words = list(sys.argv[1:] if argv is None else argv)
    debug = DEBUG in words
    logging.basicConfig(level=logging.DEBUG if debug else logging.WARNING, format="%(levelname)s %(name)s: %(message)s")
    try:
        command = typer.main.get_command(build_app())
        command.main([word for word in words if word != DEBUG], prog_name="featurestore")
    except SystemExit as leaving:
        return leaving.code if isinstance(leaving.code, int) else 0
    except PlatformError as error:
        return _fail(str(error), error.exit_code, debug=debug)
    except Exception as error:  # noqa: BLE001 - the process's outermost frame: a bug is told in one line too
        return _fail(f"{type(error).__name__}: {error}; this is a bug: run again with {DEBUG}", 1, debug=debug)
    return 0


def _fail(message: str, exit_code: int, *, debug: bool) -> int:
    if debug:
        traceback.print_exc()
    sys.stderr.write("error: " + " ".join(message.split()) + "\n")
    return exit_code


if __name__ == "__main__":
    sys.exit(main())
