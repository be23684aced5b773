"""How do answers reach the serve log? A Look: of services with an `audit_rate`, the answers of whole keys are kept."""

from featurestore.api.again import Served
from featurestore.monitor.served import Answer, ServeLog, audit_rate
from featurestore.plan import Plan


class ServeLogLook:
    """Keeps sampled answers for skew audits."""

    name = "serve_log"

    def __init__(self, log: ServeLog) -> None:
        self._log = log

    def share(self, plan: Plan, service: str | None) -> float:
        """See Look; all answers of a service that declares a rate: the log chooses among their keys."""
        return 1.0 if service is not None and audit_rate(plan.service(service)) > 0 else 0.0

    def look(self, served: Served) -> None:
        """See Look."""
        assert served.service is not None  # others have no share
        outputs = zip(served.selection.outputs, served.answered[len(served.keys) :], strict=True)
        self._log.add(
            Answer(
                plan=served.plan,
                service=served.service,
                requested_us=served.requested_us,
                reads=served.selection.reads,
                read=served.read,
                keys=served.keys,
                request=served.given,
                given={(output.view, output.feature): list(column.values) for output, column in outputs},
            )
        )

    def rest(self) -> None:
        """See Look."""
        self._log.flush_due()

    def finish(self) -> None:
        """See Look."""
        self._log.flush()
