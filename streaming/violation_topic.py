"""How do violations become messages of a topic? One JSON object each; the violation's id is the key.

A topic that is compacted keeps the latest of each violation. Headers: `featurestore-idempotency-key` (id and count:
what is told again after a crash has the same) and `featurestore-producer`.
"""

from typing import ClassVar, Final

import msgspec

from featurestore.clock import Clock
from streaming.outbox import Outbox
from validation.violations import Folded

KEY: Final = "featurestore-idempotency-key"
PRODUCER: Final = "featurestore-producer"


class TopicChannel(msgspec.Struct, frozen=True):
    """`validation.publishing.Channel` of one topic."""

    group: ClassVar[int] = 200
    topic: str
    outbox: Outbox
    clock: Clock

    @property
    def name(self) -> str:
        """See Channel."""
        return f"topic-{self.topic}"

    def send(self, key: str, violation: Folded) -> bool:
        """See Channel."""
        self.outbox.send(
            self.topic,
            violation.id.encode(),
            msgspec.json.encode(violation),
            timestamp_us=self.clock(),
            headers=((KEY, key.encode()), (PRODUCER, violation.producer.encode())),
        )
        return True

    def flush(self) -> None:
        """See Channel."""
        self.outbox.flush()

    def close(self) -> None:
        """See Channel."""
        self.outbox.close()
