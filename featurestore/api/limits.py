"""How large may a request be?"""

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Limits:
    """Bounds of one request; they keep a single caller from taking the process's memory or time."""

    body_bytes: int = 8 << 20
    entities: int = 10_000
    features: int = 2_000
    values: int = 1_000_000
    """Entities times features."""
    text_chars: int = 4_096
    """Of one join key value, feature reference or service name, in characters."""
