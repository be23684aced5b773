"""What can make a served value differ from what holds offline?"""

from enum import StrEnum


class Cause(StrEnum):
    """Why a served value is not the one that an offline read of the same instant gives today."""

    LATE_EVENT = "late_event"
    """What is newest offline had not arrived when the value was served."""
    CORRECTION = "correction"
    """The row that was served has been corrected since, at its own event time."""
    TTL = "ttl"
    """The store and the definition disagree about when the row expires."""
    MATERIALIZATION_LAG = "materialization_lag"
    """What is newest had arrived, but was not loaded."""
    DEFINITION = "definition_version"
    """The view has been defined otherwise since."""
    DEFAULT = "default_applied"
    """The service's policy put another value in its place."""
    IN_FLIGHT = "in_flight"
    """Events had arrived, but were not committed yet."""
    UNKNOWN = "unknown"
    """None of these: the platform is at fault, or history was changed."""
