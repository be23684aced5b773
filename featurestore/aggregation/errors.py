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


class ValueTooLong(UsageError):
    """Text or bytes longer than their column's slots; `rows` are their positions in what was given."""

    def __init__(self, column: str, rows: Sequence[int], max_bytes: int) -> None:
        self.column, self.rows, self.max_bytes = column, list(rows), max_bytes
        super().__init__(
            f"column {column!r} holds values of more than {max_bytes} bytes in {_listed(self.rows)}, and its features "
            "declare no more: set those rows aside or raise their max_bytes"
        )


class NoResult(FeatureStoreError):
    """A window whose value cannot be told as declared; `rows` are the positions of such results."""

    def __init__(self, feature: str, rows: Sequence[int], reason: str, advice: str) -> None:
        self.feature, self.rows, self._reason, self._advice = feature, list(rows), reason, advice
        super().__init__(f"feature {feature!r} {reason} in {_listed(self.rows)}; {advice}")

    def at(self, rows: Sequence[int]) -> "NoResult":
        """The same error, of results at other positions."""
        return type(self)(self.feature, rows, self._reason, self._advice)


class LeavesType(NoResult):
    """An exact integer result that its feature's type cannot hold."""


class TooManyDistinct(NoResult):
    """A window holds more distinct values than the cap that its count_distinct declares."""


class BelowSketch(NoResult):
    """A percentile of values so widely spread that their sketch does not reach down to it."""


class TornTiles(FeatureStoreError):
    """Stored tiles whose length is no whole number of slots: another layout's, or cut short."""


def _listed(rows: Sequence[int]) -> str:
    shown = ", ".join(str(row) for row in rows[:_SHOWN])
    more = f" and {len(rows) - _SHOWN} more" if len(rows) > _SHOWN else ""
    return f"{'row' if len(rows) == 1 else 'rows'} {shown}{more}"
