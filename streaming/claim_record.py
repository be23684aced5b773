"""Which shards were ever written?

Kept beside the event log and not in Redis: a Redis that has no state of a shard named here has lost it, and is not to
be taken for a new one.
"""

from pathlib import Path
from urllib.parse import quote

from featurestore.online.keys import Shard


class ClaimRecord:
    """Empty files, one a shard, in the topic's folder of the event log."""

    def __init__(self, event_log: Path) -> None:
        self.root = event_log

    def holds(self, topic: str, shard: Shard) -> bool:
        """Whether the shard has been claimed before."""
        return self._path(topic, shard).exists()

    def add(self, topic: str, shard: Shard) -> None:
        """Remember the shard; repeating it changes nothing."""
        path = self._path(topic, shard)
        if not path.exists():
            path.parent.mkdir(parents=True, exist_ok=True)
            path.touch()

    def _path(self, topic: str, shard: Shard) -> Path:
        parts = (shard.project, shard.view, str(shard.version), shard.topic_id, str(shard.partition))
        return self.root / topic / "_shards" / " ".join(quote(part, safe="") for part in parts)
