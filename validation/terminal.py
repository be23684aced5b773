"""Print text from outside as it is: no markup, no control characters, nothing that commands a terminal."""

from typing import Any

import rich.console
from rich.text import Text

from validation.printable import printable

_LINES = "\n\t"


class Console(rich.console.Console):
    """Rich's console for names and values that others chose: `[/red]` is text, an escape is shown as `\\x1b`."""

    def __init__(self, **options: Any) -> None:
        super().__init__(**{"emoji": False, **options, "markup": False})

    def render_str(self, text: str, **options: Any) -> Text:
        """The text, whatever markup is asked for."""
        options |= {"markup": False, "emoji": False}
        return super().render_str(printable(text, keep=_LINES), **options)


def styled(*parts: str | tuple[str, str]) -> Text:
    """Text of parts, each alone or with the style it is shown in; names among them are made plain.

    >>> styled(("ok", "green"), " [/red]").plain
    'ok [/red]'
    """
    return Text.assemble(
        *(
            (printable(part, keep=_LINES), "") if isinstance(part, str) else (printable(part[0], keep=_LINES), part[1])
            for part in parts
        )
    )
