"""Which shards were ever written?

Kept beside the event log and not in Redis: a Redis that has no state of a shard named here has lost it, and is not to
be taken for a new one.
"""

from urllib.parse import quote

from featurestore.online.keys import Shard
from streaming.sinks import SinkUnavailable
from validation.place import Place
from validation.whole_file import hint_file


class ClaimRecord:
    """Empty files, one a shard, in the topic's folder of the event log."""

    def __init__(self, event_log: Place) -> None:
        self.root = event_log

    def holds(self, topic: str, shard: Shard) -> bool:
        """Whether the shard has been claimed before; raises SinkUnavailable."""
        path = self._path(topic, shard)
        try:
            return path.exists()
        except OSError as error:
            raise SinkUnavailable(f"{path} cannot be looked for: {error}") from error

    def add(self, topic: str, shard: Shard) -> None:
        """Remember the shard; repeating it changes nothing. Raises SinkUnavailable."""
        path = self._path(topic, shard)
        try:
            if not path.exists():
                hint_file(path, b"")
        except OSError as error:
            raise SinkUnavailable(f"{path} cannot be made: {error}") from error

    def _path(self, topic: str, shard: Shard) -> Place:
        parts = (shard.project, shard.view, str(shard.version), shard.topic_id, str(shard.partition))
        return self.root / topic / "_shards" / " ".join(quote(part, safe="") for part in parts)
