"""How does a process that is asked to stop finish what it has in hand?"""

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType


class Asked:
    """Whether SIGTERM or SIGINT came, and the exit code of a command that stopped for it before its end."""

    def __init__(self) -> None:
        self.number: int | None = None

    def __call__(self) -> bool:
        """Whether one came."""
        return self.number is not None

    @property
    def exit_code(self) -> int:
        """130 for SIGINT, 143 for SIGTERM; 1 where neither came."""
        return 1 if self.number is None else 128 + self.number


@contextmanager
def stop_on_signals() -> Iterator[Asked]:
    """Note SIGTERM and SIGINT only, so that the batch in hand is finished; the command line's grace holds for it."""
    asked = Asked()

    def note(number: int, frame: FrameType | None) -> None:  # noqa: ARG001 - the signature of a handler
        asked.number = asked.number or number

    before = {number: signal.signal(number, note) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield asked
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
