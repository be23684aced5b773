"""How are alerts told to a web service? As the signed bodies of a webhook."""

import hashlib

import msgspec

from featurestore.monitor.alerts import Alert, SinkFailed
from validation.webhook import Unreachable, Webhook


class WebhookSink(msgspec.Struct, frozen=True):
    """`featurestore.monitor.alerts.Sink` of one address; an alert that it refuses for good counts as told."""

    hook: Webhook

    @property
    def name(self) -> str:
        """Another address has not been told yet."""
        return f"webhook-{hashlib.sha256(self.hook.url.encode()).hexdigest()[:8]}"

    def send(self, alert: Alert) -> None:
        """See Sink."""
        try:
            self.hook.send(msgspec.json.encode(alert), f"{alert.finding.key} {alert.revision}")
        except Unreachable as error:
            raise SinkFailed(str(error)) from error
