"""What is to be joined of a feature view?"""

import msgspec

from featurestore.offline.sources import Scan


class Key(msgspec.Struct, frozen=True):
    """One join key: its column in the source, its column in the entity rows, the entity's declared type."""

    column: str
    entity: str
    dtype: str


class Feature(msgspec.Struct, frozen=True):
    """One feature: its name in the result, its column in the source, its declared type (a Feast value type's name)."""

    name: str
    column: str
    dtype: str


class AsOfView(msgspec.Struct, frozen=True, kw_only=True):
    """What to join of one feature view. Without keys, one row of the source is everybody's."""

    name: str
    scan: Scan
    keys: tuple[Key, ...]
    timestamp: str
    created: str | None = None
    ttl_us: int = 0
    features: tuple[Feature, ...]
    every_feature: tuple[Feature, ...] = ()
    """All features of the view: their bytes order duplicates, whichever are asked for. Empty: `features`."""

    @property
    def order(self) -> tuple[Feature, ...]:
        """The features whose bytes order duplicates."""
        return self.every_feature or self.features
