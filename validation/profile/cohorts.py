"""Which cohorts of a column are kept, where it has very many?

A cohort is a segment, `column=value`. Those with the least hashes are kept: the same ones in every hour, file and
process. What was dropped had MOST smaller hashes beside it, which any union still holds, so that which cohorts are
kept, and what they count, depends on the rows alone. The profile of all rows has them all.
"""

from collections.abc import Iterable
from typing import Final

from validation.profile.profile import Profile
from validation.profile.sketch import word_hash

MOST: Final = 256
"""Of one column; a profile of a number and hour takes 2 KB."""


def kept_cohorts(segments: Iterable[str]) -> set[str]:
    """The segments that are kept; the empty one, of all rows, always is.

    >>> len(kept_cohorts(["", *(f"driver={n}" for n in range(1_000)), "town=a"]))
    258
    """
    by_column: dict[str, set[str]] = {}
    for segment in segments:
        by_column.setdefault(segment.partition("=")[0], set()).add(segment)
    kept: set[str] = set()
    for found in by_column.values():
        kept |= found if len(found) <= MOST else set(sorted(found, key=lambda text: (word_hash(text), text))[:MOST])
    return kept


def of_kept_cohorts(profiles: Iterable[Profile]) -> list[Profile]:
    """The profiles of those segments among them that are kept, in their order."""
    given = list(profiles)
    kept = kept_cohorts({profile.segment for profile in given})
    return [profile for profile in given if profile.segment in kept]
