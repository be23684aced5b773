"""How do alerts become messages of a topic? One JSON object each; the alert's key is the message's."""

from typing import Final

import msgspec

from featurestore.clock import Clock
from featurestore.errors import FeatureStoreError
from featurestore.monitor.alerts import Alert, SinkFailed
from streaming.outbox import Outbox

SEVERITY: Final = "featurestore-severity"
REVISION: Final = "featurestore-revision"


class AlertTopic(msgspec.Struct, frozen=True):
    """`featurestore.monitor.alerts.Sink` of one topic: an alert counts as told once the broker has it."""

    topic: str
    outbox: Outbox
    clock: Clock

    @property
    def name(self) -> str:
        """See Sink."""
        return f"topic-{self.topic}"

    def send(self, alert: Alert) -> None:
        """See Sink."""
        found = alert.finding
        headers = ((SEVERITY, found.severity.encode()), (REVISION, str(alert.revision).encode()))
        try:
            self.outbox.send(
                self.topic,
                found.key.encode(),
                msgspec.json.encode(alert),
                timestamp_us=self.clock(),
                headers=headers,
            )
            self.outbox.flush()
        except FeatureStoreError as error:
            raise SinkFailed(f"topic {self.topic}: {error}") from error
