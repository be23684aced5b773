"""Who else is running for the demo, and how does all of it end?

Every child is a session of its own: Ctrl-C in the terminal reaches the demo alone, which then stops its children in
reverse order, each with all that it may have started. SIGTERM and SIGHUP end the demo like Ctrl-C. Children write to
log files, where they also announce that they are ready.
"""

import atexit
import contextlib
import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import FrameType, TracebackType
from typing import Self

from featurestore.cli.stopping import before_the_end
from featurestore.errors import FeatureStoreError

_POLL_S = 0.02
_LAST_LINES = 5


class Interrupted(KeyboardInterrupt):
    """The demo was asked to end, by Ctrl-C or a signal; not an error."""

    @property
    def exit_code(self) -> int:
        """130 for Ctrl-C, 143 for SIGTERM, 129 for a closed terminal."""
        return 128 + signal.Signals.__members__.get(str(self), signal.SIGINT)


class ChildFailed(FeatureStoreError):
    """A process of the demo ended, or was not ready in time; the message carries its last lines."""


@dataclass(frozen=True)
class Child:
    """A running process and the file that it writes to."""

    name: str
    process: subprocess.Popen[bytes]
    log: Path

    @property
    def pid(self) -> int:
        """Process id, and id of the session and process group."""
        return self.process.pid

    def said(self) -> str:
        """Everything it wrote so far."""
        return self.log.read_text(encoding="utf-8", errors="replace")

    def failure(self, what: str) -> ChildFailed:
        """What went wrong with it, with its last lines."""
        lines = [line for line in self.said().splitlines() if line.strip()][-_LAST_LINES:]
        return ChildFailed(f"{self.name} {what}: {' | '.join(lines) or 'it wrote nothing'}; see {self.log}")


class Processes:
    """The children of one demo; a context manager that leaves none behind, however the block ends.

    While it is open, SIGINT, SIGTERM and SIGHUP raise Interrupted in the main thread, except at the moment when a child
    has been started but is not yet known here: then right after. Where they meet code that cannot be left that way (the
    end of an object's life), they are sent again. Further signals while children are being stopped
    are ignored. A killed demo (SIGKILL) cannot clean up.
    """

    def __init__(self, logs: Path, environ: Mapping[str, str], *, patience_s: float = 10.0) -> None:
        self._logs = logs
        self._environ = dict(environ)
        self._patience_s = patience_s
        self._children: list[Child] = []
        self._handlers: dict[int, signal.Handlers | Callable[[int, FrameType | None], object] | int | None] = {}
        self._held = 0
        self._asked: signal.Signals | None = None
        self._guard = contextlib.ExitStack()
        self._last: list[Callable[[], None]] = []
        self._unraisable = sys.unraisablehook

    def at_last(self, stop: Callable[[], None]) -> None:
        """Has `stop` called once all children have ended, signals still held; the last one given comes first."""
        self._last.append(stop)

    def start(self, name: str, command: Sequence[str], **environ: str) -> Child:
        """Starts a child with these variables added to the environment; returns at once."""
        self._logs.mkdir(parents=True, exist_ok=True)
        log = self._logs / f"{name.replace(' ', '-')}.log"
        with self._unbroken(), log.open("wb") as out:
            process = subprocess.Popen(  # noqa: S603 - our own commands, no shell
                list(command),
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=subprocess.STDOUT,
                env=self._environ | environ,
                start_new_session=True,
            )
            child = Child(name=name, process=process, log=log)
            self._children.append(child)
        return child

    def await_line(self, child: Child, pattern: str, *, timeout_s: float = 60.0) -> re.Match[str]:
        """Waits until the child has written a line that matches; raises ChildFailed where it ends or takes too long."""
        deadline = time.monotonic() + timeout_s
        while True:
            ended = child.process.poll() is not None
            # Read after the poll: what a child wrote before it ended is not missed.
            if found := re.search(pattern, child.said(), re.MULTILINE):
                return found
            if ended:
                raise child.failure(f"ended with exit code {child.process.returncode}")
            if time.monotonic() > deadline:
                raise child.failure(f"was not ready within {timeout_s:g} s")
            time.sleep(_POLL_S)

    def finish(self, child: Child, *, timeout_s: float = 600.0, tick: Callable[[], None] | None = None) -> None:
        """Waits until the child ends by itself, calling `tick` now and then; raises ChildFailed unless it ends well."""
        deadline = time.monotonic() + timeout_s
        while child.process.poll() is None:
            if time.monotonic() > deadline:
                raise child.failure(f"had not finished after {timeout_s:g} s")
            if tick:
                tick()
            time.sleep(_POLL_S)
        if child.process.returncode:
            raise child.failure(f"failed with exit code {child.process.returncode}")
        self.stop(child)

    def check(self) -> None:
        """Raises ChildFailed where a child has ended badly."""
        for child in self._children:
            if child.process.poll():
                raise child.failure(f"ended with exit code {child.process.returncode}")

    def wait_for_interrupt(self, tick: Callable[[], object] | None = None) -> None:
        """Keeps the children running until the demo is asked to end (raises Interrupted) or one of them fails."""
        while True:
            self.check()
            if tick:
                tick()
            time.sleep(10 * _POLL_S)

    def stop(self, child: Child) -> None:
        """Ends a child and everything in its session: asked first, killed when its patience is over."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(child.pid, signal.SIGTERM)
        with contextlib.suppress(subprocess.TimeoutExpired):
            child.process.wait(self._patience_s)
        # The child itself may be gone while something that it started is not.
        with contextlib.suppress(ProcessLookupError):
            os.killpg(child.pid, signal.SIGKILL)
        child.process.wait()
        self._children.remove(child)

    def __enter__(self) -> Self:
        # A signal on the very threshold of __exit__ would skip it; the interpreter's own end still sees to the rest.
        atexit.register(self._stop_all)
        self._guard.enter_context(before_the_end(self._kill_all))
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            self._handlers[number] = signal.signal(number, self._on_signal)
        self._unraisable, sys.unraisablehook = sys.unraisablehook, self._on_unraisable
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._held += 1  # from here on signals wait for ever: the work that they ask for is being done
        self._stop_all()
        atexit.unregister(self._stop_all)
        self._guard.close()
        for number, handler in self._handlers.items():
            signal.signal(number, handler)
        sys.unraisablehook = self._unraisable

    def _stop_all(self) -> None:
        for child in reversed(self._children.copy()):
            self.stop(child)
        while self._last:
            self._last.pop()()

    def _kill_all(self) -> None:
        for child in self._children:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(child.pid, signal.SIGKILL)

    def _on_signal(self, number: int, _frame: FrameType | None) -> None:
        if self._held:
            self._asked = signal.Signals(number)
            return
        raise Interrupted(signal.Signals(number).name)

    def _on_unraisable(self, swallowed: "sys.UnraisableHookArgs") -> None:
        if not isinstance(swallowed.exc_value, Interrupted):
            self._unraisable(swallowed)
            return
        again = signal.Signals.__members__.get(str(swallowed.exc_value), signal.SIGINT)
        threading.Timer(_POLL_S, os.kill, (os.getpid(), again)).start()  # by then this, too, is over

    @contextlib.contextmanager
    def _unbroken(self) -> Iterator[None]:
        self._held += 1
        try:
            yield
        finally:
            self._held -= 1
        if self._asked and not self._held:
            raise Interrupted(self._asked.name)
