"""Refuse what the store holds from beyond the clock: no event is accepted that far ahead, so something is wrong."""

from typing import Final

from featurestore.errors import StaleStore

READ_AHEAD_US: Final = 60_000_000
"""How far ahead of the reader's clock a key's newest event may be: 5 s that an event may be ahead of its arrival, the
rest for clocks of machines that differ."""


def refuse_ahead(view: str, newest_us: int, now_us: int) -> None:
    """Raises StaleStore where the newest event of a key is dated beyond the tolerance."""
    ahead_us = newest_us - now_us
    if ahead_us > READ_AHEAD_US:
        raise StaleStore(
            f"view {view!r}: the online store holds an event that is dated {ahead_us / 1e6:,.0f} s after now, and none "
            f"is accepted that is more than {READ_AHEAD_US / 1e6:.0f} s ahead: the reader's clock is behind, producers "
            "date arrivals themselves (message.timestamp.type), or the stored state is damaged; after the clock is "
            "checked rebuild the view (`featurestore stream rebuild`, or materialize)"
        )
