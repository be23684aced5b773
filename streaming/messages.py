"""What is decoded, and why does a message hold no row? The reasons, and how a reader of one format says so."""

from typing import Final, Protocol

EMPTY: Final = "empty"
MALFORMED: Final = "malformed"
"""Not one document: torn, followed by a second one, not UTF-8, NaN in JSON, too deep; no record of its schema."""
WRONG_TYPE: Final = "wrong_type"
"""A document, but a column has another type or leaves its range (1e400, an integer beyond 64 bits)."""
NO_TIMESTAMP: Final = "no_timestamp"
BAD_KEY: Final = "bad_key"
"""A join key that cannot become its entity's type without loss."""
KEY_MISMATCH: Final = "key_mismatch"
"""The message key differs from the column that a keyed view is partitioned by."""
UNKNOWN_SCHEMA: Final = "unknown_schema"
"""Its schema id is not in the registry, or stands for something else than the topic's messages."""


class Message(Protocol):
    """What is decoded: the bytes of one record."""

    @property
    def key(self) -> bytes | None: ...
    @property
    def value(self) -> bytes | None: ...


class Refused(Exception):
    """No error: the control flow of one message."""

    def __init__(self, reason: str, detail: str) -> None:
        self.reason, self.detail = reason, detail
        super().__init__(detail)
