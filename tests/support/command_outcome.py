"""Run a command in this process, through its real outermost frame, and judge how it ended."""

import contextlib
import io
import os
import signal
import time
import warnings
from collections.abc import Iterator, Sequence
from typing import NamedTuple

from featurestore.cli.main import main

PATIENCE_S = 60
EXIT_CODES = range(6)
SECONDS = float(os.environ.get("TORTURE_SECONDS", "0"))
"""How long all kinds together go on; 0 takes a few seeds of each, as `make test` does."""
FIRST = int(os.environ.get("TORTURE_SEED", "0"))
KINDS = 13


class Outcome(NamedTuple):
    """How a command ended."""

    code: int
    out: str
    err: str

    def faults(self) -> list[str]:
        """What a user should never see; empty where the command gave an answer or one clear line."""
        found = []
        if self.code not in EXIT_CODES:
            found.append(f"exit code {self.code}")
        if "this is a bug" in self.err:
            found.append("an unforeseen error")
        if "Traceback" in self.err + self.out:
            found.append("a traceback")
        if "Warning" in self.err:
            found.append("a library's warning")
        if len(self.err.splitlines()) > 1:
            found.append(f"{len(self.err.splitlines())} lines of errors")
        if self.code and not (self.out + self.err).strip():
            found.append("a failure without a word")
        return found


def run(words: Sequence[str], *, patience_s: int = PATIENCE_S) -> Outcome:
    """The command's outcome; raises TimeoutError where it takes longer than `patience_s`."""
    out, err = io.StringIO(), io.StringIO()
    with (
        contextlib.redirect_stdout(out),
        contextlib.redirect_stderr(err),
        _limited(words, patience_s),
        warnings.catch_warnings(),
    ):
        warnings.simplefilter("default")
        code = main(list(words))
    return Outcome(code, out.getvalue(), err.getvalue())


@contextlib.contextmanager
def _limited(words: Sequence[str], patience_s: int) -> Iterator[None]:
    def late(signum: int, frame: object) -> None:
        raise TimeoutError(f"{' '.join(words)} took longer than {patience_s} s")

    before = signal.signal(signal.SIGALRM, late)
    signal.alarm(patience_s)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


def seeds(few: int) -> Iterator[int]:
    """Seeds for one kind of input: `few`, or as many as the time allows."""
    if not SECONDS:
        yield from range(FIRST, FIRST + few)
        return
    end = time.monotonic() + SECONDS / KINDS
    seed = FIRST
    while time.monotonic() < end:
        yield seed
        seed += 1


def check(outcome: Outcome, seed: int, words: list[str], kept: list[str]) -> None:
    """Note what a user should not have seen."""
    if found := outcome.faults():
        kept.append(f"seed {seed}: {' '.join(words)}: {'; '.join(found)}\n  {outcome.err.strip()[-600:]}")


def report(faults: list[str]) -> None:
    """Fail with all faults; each names its seed."""
    assert not faults, f"{len(faults)} faults; TORTURE_SEED=n starts there\n" + "\n".join(faults[:25])
