"""Which topics are there, and where are their partitions kept?"""

import json
import re
import shutil
import uuid
from collections.abc import Iterator, Mapping
from pathlib import Path

from streaming.embedded.codes import ErrorCode
from streaming.embedded.log import PartitionLog
from streaming.embedded.storage import FileStorage, MemoryStorage, Storage

_LEGAL = re.compile(r"[a-zA-Z0-9._-]{1,249}")
TIMESTAMP_TYPE = "message.timestamp.type"
MAX_MESSAGE_BYTES = "max.message.bytes"
DEFAULTS = {
    TIMESTAMP_TYPE: "CreateTime",
    MAX_MESSAGE_BYTES: "1048588",
    "retention.ms": "-1",
    "cleanup.policy": "delete",
}


class Topic:
    """One topic: its lasting id, its settings as the protocol writes them, its partitions."""

    def __init__(self, name: str, topic_id: uuid.UUID, configs: Mapping[str, str]) -> None:
        self.name = name
        self.topic_id = topic_id
        self.configs = dict(configs)
        self.partitions: list[PartitionLog] = []

    def config(self, name: str) -> str:
        """A setting, or what holds without it."""
        return self.configs.get(name, DEFAULTS[name])

    @property
    def stamps_arrival(self) -> bool:
        """Whether records carry the time of their append and not the producer's."""
        return self.config(TIMESTAMP_TYPE) == "LogAppendTime"


class Topics:
    """All topics, in memory or under a folder: `topics.json` and one file a partition.

    Nothing is ever deleted by age: a laptop's broker keeps what it was given.
    """

    def __init__(self, folder: Path | None = None) -> None:
        self._folder = folder
        self._topics: dict[str, Topic] = {}
        if folder and (folder / "topics.json").exists():
            for name, held in json.loads((folder / "topics.json").read_text(encoding="utf-8")).items():
                topic = Topic(name, uuid.UUID(held["id"]), held["configs"])
                topic.partitions = [
                    PartitionLog(self._storage(topic, number), beginning=beginning)
                    for number, beginning in enumerate(held["beginnings"])
                ]
                self._topics[name] = topic

    def __iter__(self) -> Iterator[Topic]:
        """Topics in the order of their names."""
        return iter(sorted(self._topics.values(), key=lambda topic: topic.name))

    def get(self, name: str) -> Topic | None:
        """A topic by name."""
        return self._topics.get(name)

    def partition(self, name: str, number: int) -> PartitionLog | None:
        """A partition by topic and number."""
        topic = self._topics.get(name)
        return topic.partitions[number] if topic and 0 <= number < len(topic.partitions) else None

    def create(self, name: str, partitions: int, configs: Mapping[str, str]) -> ErrorCode:
        """Create a topic with a new id."""
        if not _LEGAL.fullmatch(name) or name in (".", ".."):
            return ErrorCode.INVALID_TOPIC
        if name in self._topics:
            return ErrorCode.TOPIC_ALREADY_EXISTS
        if partitions < 1:
            return ErrorCode.INVALID_PARTITIONS
        if configs.get(TIMESTAMP_TYPE, "CreateTime") not in ("CreateTime", "LogAppendTime"):
            return ErrorCode.INVALID_CONFIG
        topic = self._topics[name] = Topic(name, uuid.uuid4(), configs)
        return self.grow(topic, partitions)

    def grow(self, topic: Topic, partitions: int) -> ErrorCode:
        """Add partitions up to a count; a topic never shrinks."""
        if partitions <= len(topic.partitions):
            return ErrorCode.INVALID_PARTITIONS
        for number in range(len(topic.partitions), partitions):
            topic.partitions.append(PartitionLog(self._storage(topic, number)))
        self.save()
        return ErrorCode.NONE

    def delete(self, name: str) -> ErrorCode:
        """Delete a topic and its data."""
        topic = self._topics.pop(name, None)
        if topic is None:
            return ErrorCode.UNKNOWN_TOPIC_OR_PARTITION
        self.save()
        for log in topic.partitions:
            log.close()
        if self._folder:
            shutil.rmtree(self._home(topic), ignore_errors=True)
        return ErrorCode.NONE

    def save(self) -> None:
        """Write `topics.json`, whole or not at all."""
        if self._folder is None:
            return
        held = {
            topic.name: {
                "id": str(topic.topic_id),
                "configs": topic.configs,
                "beginnings": [log.beginning for log in topic.partitions],
            }
            for topic in self._topics.values()
        }
        fresh = self._folder / "topics.json.new"
        fresh.write_text(json.dumps(held, indent=1), encoding="utf-8")
        fresh.replace(self._folder / "topics.json")

    def close(self) -> None:
        """Close all logs."""
        for topic in self._topics.values():
            for log in topic.partitions:
                log.close()

    def _storage(self, topic: Topic, number: int) -> Storage:
        if self._folder is None:
            return MemoryStorage()
        home = self._home(topic)
        home.mkdir(parents=True, exist_ok=True)
        return FileStorage(home / f"{number}.log")

    def _home(self, topic: Topic) -> Path:
        # The id keeps a topic apart from an earlier one of the same name whose deletion was interrupted.
        assert self._folder is not None
        return self._folder / f"{topic.name}-{topic.topic_id}"
