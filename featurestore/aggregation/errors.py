"""What can keep a window from having a value?"""

from collections.abc import Sequence

from featurestore.errors import FeatureStoreError, UsageError

_SHOWN = 5


class MagnitudeTooLarge(UsageError):
    """Floats of 2**78 and more cannot be summed exactly; `rows` are their positions in what was given."""

    def __init__(self, column: str, rows: Sequence[int]) -> None:
        self.column, self.rows = column, list(rows)
        super().__init__(
            f"column {column!r} holds magnitudes of 2**78 (about 3e23) or more in {_listed(self.rows)}; "
            "their sums would not be exact: set those rows aside or aggregate another unit"
        )


class LeavesType(FeatureStoreError):
    """An exact integer result that its feature's type cannot hold; `rows` are the positions of the results."""

    def __init__(self, feature: str, dtype: str, rows: Sequence[int]) -> None:
        self.feature, self.dtype, self.rows = feature, dtype, list(rows)
        super().__init__(
            f"feature {feature!r} does not fit {dtype} in {_listed(self.rows)}; declare a wider type (INT64, DOUBLE)"
        )


class TooManyDistinct(FeatureStoreError):
    """A window holds more distinct values than the cap that its count_distinct declares."""

    def __init__(self, feature: str, cap: int, rows: Sequence[int]) -> None:
        self.feature, self.cap, self.rows = feature, cap, list(rows)
        super().__init__(
            f"feature {feature!r} counts more than its declared cap of {cap} distinct values in {_listed(self.rows)}; "
            "raise the cap or use approx_count_distinct"
        )


class TornTiles(FeatureStoreError):
    """Stored tiles whose length is no whole number of slots: another layout's, or cut short."""


def _listed(rows: Sequence[int]) -> str:
    shown = ", ".join(str(row) for row in rows[:_SHOWN])
    more = f" and {len(rows) - _SHOWN} more" if len(rows) > _SHOWN else ""
    return f"{'row' if len(rows) == 1 else 'rows'} {shown}{more}"
