"""By which definitions is the event at an offset judged, whoever judges it and whenever?

What is accepted must be a function of the log alone, and definitions change while the log is read: by several workers,
by sinks that are behind, by backfills, by replays after a crash. So each topic keeps, beside its events, what was in
force from which offset on:

    <event log>/<topic>/_in_force/<digest>.json    definitions: the readers' columns, the contract, the tolerance
    <event log>/<topic>/_in_force/000002.next      the second definitions to come into force; from where is not said yet
    <event log>/<topic>/_in_force/000002.json      ... in force from these offsets on
    <event log>/<topic>/_in_force/of-<id>.json     what all of a file is judged by

A file is made once and never changed, so that all agree. New definitions take effect at the ends that the partitions
have *after* `.next` is there. Everybody looks for it after a poll and before judging what was polled: whoever did not
find it holds offsets below those ends alone, whoever finds it settles it first, and the first to settle decides.
Nothing here trusts the online store: one that came back older must not change a verdict that a file tells already.
"""

import hashlib
from collections.abc import Iterable, Mapping
from itertools import accumulate
from typing import Final
from urllib.parse import quote, unquote

import msgspec

from featurestore.errors import StaleStore
from featurestore.plan import Plan, View
from streaming.event_columns import by_topic
from streaming.pipeline import AHEAD_TOLERANCE_US
from streaming.sinks import SinkUnavailable
from streaming.source.records import TopicPartition
from validation.contract import Contract
from validation.place import Place
from validation.whole_file import first_file

_FOLDER: Final = "_in_force"


class Definitions(msgspec.Struct, frozen=True, kw_only=True):
    """All that the verdict on a topic's events depends on."""

    views: tuple[View, ...]
    """Those that read the topic, by name."""
    contract: Contract | None
    tolerance_us: int
    plan_version: int
    """Of the plan that they came into force with; no part of the digest."""
    created_us: int

    @property
    def digest(self) -> str:
        """What stands for the definitions: equal verdicts on every event have equal digests."""
        views = [
            msgspec.structs.replace(view, version=0, description="", owner="", tags={}, ttl_us=0) for view in self.views
        ]
        told = msgspec.json.encode((views, self.contract, self.tolerance_us), order="sorted")
        return hashlib.sha256(told).hexdigest()[:32]

    def replaces(self, held: "Definitions") -> bool:
        """Whether they are another, later definition than `held`."""
        later = self.plan_version >= held.plan_version or self.created_us > held.created_us
        return later and self.digest != held.digest


class Piece(msgspec.Struct, frozen=True):
    """Offsets `first` to before `after` of a partition, and what is in force there."""

    first: int
    after: int
    definitions: Definitions


class _Entry(msgspec.Struct, frozen=True):
    """One change: `offsets` by `TOPIC ID/PARTITION`; a partition that is not named did not hold anything then."""

    digest: str
    offsets: dict[str, int] = {}


class InForce:
    """What is in force at each offset of one topic. Any number of processes may share the folder."""

    def __init__(self, event_log: Place, topic: str) -> None:
        self.topic = topic
        self._folder = event_log / topic / _FOLDER
        self._known: dict[str, Definitions] = {}
        self._entries: list[_Entry] = []
        self._pending: str | None = None
        self._pinned: dict[str, str] = {}

    @property
    def pending(self) -> bool:
        """Whether new definitions wait for their offsets, as of the last `look`."""
        return self._pending is not None

    @property
    def latest(self) -> Definitions | None:
        """The last definitions that have offsets, as of the last `look`."""
        return self._definitions(self._entries[-1].digest) if self._entries else None

    def look(self) -> None:
        """Read what others decided. To be called after every poll, before its batches are judged.

        Mostly there is nothing new, and one question tells.
        """
        if self._entries and not self._asked(f"{len(self._entries) + 1:06d}.next"):
            self._pending = None
            return
        self._read_all()

    def _read_all(self) -> None:
        names = self._names()
        self._pending = None
        while (name := f"{len(self._entries) + 1:06d}") + ".json" in names:
            self._entries.append(msgspec.json.decode(self._read(f"{name}.json"), type=_Entry))
        if f"{name}.next" in names:
            self._pending = name
        for pin in (each for each in names if each.startswith("of-")):
            topic_id = unquote(pin.removeprefix("of-").removesuffix(".json"))
            if topic_id not in self._pinned:
                entry = msgspec.json.decode(self._read(pin), type=_Entry)
                self._pinned[topic_id] = entry.digest

    def propose(self, definitions: Definitions) -> bool:
        """Let these definitions follow those in force, where they are others and later; `settle` says from where on.

        False where others are pending: propose again once they are settled. The first definitions of a topic are in
        force from the beginning.
        """
        self.look()
        held = self.latest
        if self.pending:
            return False
        if held is not None and not definitions.replaces(held):
            return True
        self._make(f"{definitions.digest}.json", msgspec.json.encode(definitions))
        name = f"{len(self._entries) + 1:06d}"
        entry = msgspec.json.encode(_Entry(definitions.digest))
        ours = self._make(f"{name}.json" if held is None else f"{name}.next", entry)
        self.look()
        return ours

    def settle(self, ends: Mapping[TopicPartition, int]) -> None:
        """Say from which offsets on what is pending is in force: `ends`, asked for after `look` told of it."""
        if self._pending is None:
            return
        digest = msgspec.json.decode(self._read(f"{self._pending}.next"), type=_Entry).digest
        offsets = {_place(partition): end for partition, end in sorted(ends.items())}
        self._make(f"{self._pending}.json", msgspec.json.encode(_Entry(digest, offsets)))
        self.look()

    def pin(self, topic_id: str) -> None:
        """Judge all of a file, which is a topic of its own, by what is in force now, also when it is read again."""
        self.look()
        if self.latest is not None:
            self._make(f"of-{quote(topic_id, safe='')}.json", msgspec.json.encode(_Entry(self.latest.digest)))
        self._read_all()

    def pieces(self, partition: TopicPartition, first: int, after: int) -> tuple[Piece, ...]:
        """The range `first` to before `after`, cut where definitions change. Raises StaleStore where none are known."""
        if not self._entries:
            raise StaleStore(f"{self._folder} does not say how events of topic {self.topic!r} are judged")
        if (digest := self._pinned.get(partition.topic_id)) is not None:
            return (Piece(first, after, self._definitions(digest)),)
        place = _place(partition)
        starts = list(accumulate((entry.offsets.get(place, 0) for entry in self._entries), max))
        found = []
        for entry, start, end in zip(self._entries, starts, [*starts[1:], after], strict=True):
            low, high = max(start, first), min(end, after)
            if low < high:
                found.append(Piece(low, high, self._definitions(entry.digest)))
        return tuple(found)

    def _definitions(self, digest: str) -> Definitions:
        found = self._known.get(digest)
        if found is None:
            found = msgspec.json.decode(self._read(f"{digest}.json"), type=Definitions)
            self._known[digest] = found
        return found

    def _names(self) -> set[str]:
        try:
            return {path.name for path in self._folder.iterdir()}
        except FileNotFoundError:
            return set()
        except OSError as error:
            raise SinkUnavailable(f"cannot read {self._folder}: {error}") from error

    def _asked(self, name: str) -> bool:
        try:
            return (self._folder / name).exists()
        except OSError as error:
            raise SinkUnavailable(f"cannot read {self._folder}: {error}") from error

    def _read(self, name: str) -> bytes:
        try:
            return (self._folder / name).read_bytes()
        except OSError as error:
            raise SinkUnavailable(f"cannot read {self._folder}: {error}") from error

    def _make(self, name: str, data: bytes) -> bool:
        """A file that appears whole, unless there is one: then that one counts. Whether it says the same."""
        try:
            return first_file(self._folder / name, data) == data
        except OSError as error:
            raise SinkUnavailable(f"cannot write to {self._folder}: {error}") from error


def definitions_of(
    plan: Plan, views: Iterable[View], *, tolerance_us: int = AHEAD_TOLERANCE_US
) -> dict[str, Definitions]:
    """By topic, what the plan says of the verdicts on its events; `views` are those that count."""
    readers = by_topic(views)
    contracts = contracts_by_topic(plan, readers)
    return {
        topic: Definitions(
            views=views,
            contract=contracts.get(topic),
            tolerance_us=tolerance_us,
            plan_version=plan.version,
            created_us=plan.created_us,
        )
        for topic, views in readers.items()
    }


def contracts_by_topic(plan: Plan, readers: Mapping[str, tuple[View, ...]]) -> dict[str, Contract]:
    """The contract of each topic that has one: about the topic by name, or about the source that is its event log."""
    by_source = {contract.source: contract for contract in plan.contracts.values()}
    found = {topic: by_source.get(topic) or by_source.get(views[0].source.name) for topic, views in readers.items()}
    return {topic: contract for topic, contract in found.items() if contract is not None}


def _place(partition: TopicPartition) -> str:
    return f"{partition.topic_id}/{partition.partition}"
