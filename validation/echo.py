"""Echo lines that command no terminal and show no credential. Apart from the console, which takes long to import."""

from typing import Any

import typer

from validation.printable import printable
from validation.redaction import redacted

_echo = typer.echo


def echo(message: Any = None, *arguments: Any, **options: Any) -> None:
    """As `typer.echo`, of text whose control characters are shown and whose credentials are not."""
    plain = printable(redacted(message), keep="\n\t") if isinstance(message, str) else message
    _echo(plain, *arguments, **options)


def echo_plainly() -> None:
    """Let every command of this process echo so."""
    typer.echo = echo
