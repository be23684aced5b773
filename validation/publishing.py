"""Who has to be told of which violations? Each channel of each change, from the store, at least once.

The store is the queue: it is bounded, folds what repeats, and never makes a stream or a service wait. A channel has a
cursor, up to which change of which source it has been told. The order is: 1. tell, 2. wait until it is acknowledged,
3. move the cursor. A crash before 3 tells again, under the same key (violation id and count), by which a receiver knows
a repetition. What is told is a violation as it is by then: changes in between are folded into it. Lines that the store
pushed out before they were told are lost, and counted.
"""

import contextlib
import fcntl
import hashlib
import logging
from collections import Counter
from collections.abc import Callable, Collection, Iterator
from typing import ClassVar, Final, Protocol

import msgspec

from validation.errors import PlatformError
from validation.place import ObjectPath, Place
from validation.violations import Folded, Mark, ViolationStore
from validation.webhook import Webhook
from validation.whole_file import replace_file

_LOG: Final = logging.getLogger(__name__)


class Channel(Protocol):
    """Where violations are told."""

    @property
    def name(self) -> str:
        """What its cursor and its metrics are called."""

    @property
    def group(self) -> int:
        """How many are told before they are waited for."""

    def send(self, key: str, violation: Folded) -> bool:
        """Tell one; False where it was refused for good. Raises PlatformError where it may be told later."""

    def flush(self) -> None:
        """Wait until all that was sent is acknowledged; raises PlatformError where something is not."""

    def close(self) -> None:
        """Let go of connections."""


class WebhookChannel(msgspec.Struct, frozen=True):
    """Violations as the bodies of a webhook."""

    group: ClassVar[int] = 1
    hook: Webhook

    @property
    def name(self) -> str:
        """Another address is another channel: it has not been told yet."""
        return f"webhook-{hashlib.sha256(self.hook.url.encode()).hexdigest()[:8]}"

    def send(self, key: str, violation: Folded) -> bool:
        """See Channel."""
        return self.hook.send(msgspec.json.encode(violation), key)

    def flush(self) -> None:
        """See Channel: the answer was the acknowledgement."""

    def close(self) -> None:
        """See Channel."""
        self.hook.close()


class Publication:
    """Tells one channel; several processes may try, one of them does.

    Of a store in an object store each of them does, the same under the same key: let one run.
    """

    def __init__(self, store: ViolationStore, channel: Channel, *, among: Collection[str] | None = None) -> None:
        """`among` are the producers whose violations are told; None: everybody's."""
        self.counters: Counter[str] = Counter()
        """sent, refused, failed (rounds that ended early), lost."""
        self.pending = 0
        self.channel = channel
        self._store = store
        self._among = None if among is None else frozenset(among)
        whose = "" if among is None else "-" + hashlib.sha256("\0".join(sorted(among)).encode()).hexdigest()[:8]
        self._path: Place = store.folder / "published" / f"{channel.name}{whose}.json"

    def round(self) -> int:
        """Tell what is new; how many were taken. Raises PlatformError where the channel does not take them now."""
        with self._alone() as mine:
            return self._round() if mine else 0

    def _round(self) -> int:
        marks = self._marks()
        news = self._store.news(marks)
        self.counters["lost"] += news.lost
        self.pending = len(news.changes)
        sent = 0
        for first in range(0, len(news.changes), self.channel.group):
            group = news.changes[first : first + self.channel.group]
            try:
                mine = [each for _, _, each in group if self._among is None or each.producer in self._among]
                taken = [self.channel.send(key_of(each), each) for each in mine]
                self.channel.flush()
            except PlatformError:
                self.counters["failed"] += 1
                raise
            marks |= {source: mark for source, mark, _ in group}
            # Last: a crash before this line tells them again, it never leaves one untold.
            self._move(marks)
            sent += sum(taken)
            self.counters["sent"] += sum(taken)
            self.counters["refused"] += len(taken) - sum(taken)
            self.pending -= len(group)
        if news.lost:
            self._move(news.marks)
        return sent

    def follow(self, stop: Callable[[], bool], sleep: Callable[[float], object], *, every_s: float = 2.0) -> None:
        """Round after round until `stop` says so; a channel that is away is asked again in the next one."""
        while not stop():
            try:
                self.round()
            except Exception as error:  # noqa: BLE001 - the loop's outermost frame: the next round may succeed
                foreseen = isinstance(error, (PlatformError, OSError))
                _LOG.warning("%s: %s; trying again in %g s", self.channel.name, error, every_s, exc_info=not foreseen)
            sleep(every_s)

    def _marks(self) -> dict[str, Mark]:
        try:
            return msgspec.json.decode(self._path.read_bytes(), type=dict[str, Mark])
        except (FileNotFoundError, msgspec.MsgspecError, UnicodeDecodeError):
            return {}  # everything is told again, under keys that say so

    def _move(self, marks: dict[str, Mark]) -> None:
        replace_file(self._path, msgspec.json.encode(marks))

    @contextlib.contextmanager
    def _alone(self) -> Iterator[bool]:
        if isinstance(self._path, ObjectPath):
            yield True
            return
        self._path.parent.mkdir(parents=True, exist_ok=True)
        with self._path.with_suffix(".lock").open("w") as lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                yield False
            else:
                yield True


def key_of(violation: Folded) -> str:
    """By what a receiver knows a repetition: the same violation with the same count is the same news."""
    return f"{violation.id}-{violation.count}"
