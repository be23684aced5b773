"""What goes wrong with contracts, told so that the reader can act."""

from collections.abc import Iterable
from difflib import get_close_matches


class PlatformError(Exception):
    """The root of every error that this platform raises on purpose.

    `exit_code` is what a command exits with: 2 for wrong usage or configuration, 1 for a failure.
    The message is one line: the place, what was found, what exists, what to do.
    """

    exit_code = 1


class ContractError(PlatformError):
    """A contract file that cannot be read, or a rule that cannot be judged."""

    exit_code = 2


def did_you_mean(name: str, existing: Iterable[str]) -> str:
    """The tail of an error message about an unknown name: the nearest name, else what exists.

    >>> did_you_mean("wether", ["weather", "planes"])
    "did you mean 'weather'?"
    >>> did_you_mean("x", ["weather", "planes"])
    'what exists: planes, weather'
    >>> did_you_mean("x", [])
    'none exist yet'
    """
    names = sorted(existing)
    if near := get_close_matches(name, names, n=1):
        return f"did you mean {near[0]!r}?"
    return "what exists: " + ", ".join(names) if names else "none exist yet"
