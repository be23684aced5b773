"""What did the categories of slices look like? A column's words are told apart and hashed once, and counted by slice.

Short slices are counted together, in one table where the column has few words, else by sorting slice and word: what is
done once a word or a slice costs no time a value.
"""

from collections.abc import Sequence

import msgspec
import numpy as np
import numpy.typing as npt
import pyarrow as pa

from validation.profile.baseline import FeatureBaseline
from validation.profile.profile import NEW_CELLS, NEW_KEPT, Counts, Profile
from validation.profile.short_slices import SHORT, Slice, counted, groups_of
from validation.profile.sketch import REGISTERS, places_and_ranks, word_hash

Ints = npt.NDArray[np.int64]


class Words(msgspec.Struct, frozen=True, eq=False):
    """The values of a column as words, and what is known of each word."""

    codes: Ints
    """The word of each row; the number of words is null."""
    texts: list[str]
    named: Ints
    """The place of each word among the baseline's categories, or -1."""
    cells: Ints
    """The cell of each word, where it is not kept by name."""
    order: Ints
    """The place of each word in the order of hashes, by which new ones are kept."""
    registers: Ints
    ranks: npt.NDArray[np.uint8]


def words_of(column: pa.ChunkedArray, feature: FeatureBaseline) -> Words:
    """A column's words: values of whatever kind as text."""
    if pa.types.is_dictionary(column.type):
        column = column.cast(column.type.value_type)
    if pa.types.is_null(column.type) or pa.types.is_string_view(column.type):
        column = column.cast(pa.string())
    encoded = pa.chunked_array([column.combine_chunks()]).combine_chunks().dictionary_encode()
    texts = encoded.dictionary.cast(pa.string()).to_pylist()
    codes = encoded.indices.fill_null(len(texts)).to_numpy(zero_copy_only=False).astype(np.int64)
    places = {text: place for place, text in enumerate(feature.categories)}
    hashes = np.array([word_hash(text) for text in texts], np.uint64)
    order = np.empty(len(texts), np.int64)
    order[sorted(range(len(texts)), key=lambda word: (hashes[word], texts[word]))] = np.arange(len(texts))
    registers, ranks = places_and_ranks(hashes)
    return Words(
        codes=codes,
        texts=texts,
        named=np.array([places.get(text, -1) for text in texts], np.int64),
        cells=((hashes >> np.uint64(32)) % np.uint64(NEW_CELLS)).astype(np.int64),
        order=order,
        registers=registers.astype(np.int64),
        ranks=ranks.astype(np.uint8),
    )


def profiles_of_words(
    words: Words,
    order: npt.NDArray[np.int64] | None,
    slices: Sequence[Slice],
    feature: FeatureBaseline,
    baseline: str,
    boundary: str,
) -> list[Profile]:
    """One profile a slice, in their order; `order` is that of the rows, None as they are."""
    codes = words.codes if order is None else words.codes[order]
    short = [one for one in slices if one[3] - one[2] <= SHORT]
    groups = [*groups_of(short), *([one] for one in slices if one[3] - one[2] > SHORT)]
    made: dict[Slice, Profile] = {}
    for group in groups:
        part = codes[group[0][2] : group[-1][3]]
        made.update(zip(group, _together(words, part, group, feature, baseline, boundary), strict=True))
    return [made[one] for one in slices]


def _together(
    words: Words, codes: Ints, group: Sequence[Slice], feature: FeatureBaseline, baseline: str, boundary: str
) -> list[Profile]:
    slice_of, word, count = _counted(codes, [end - start for _, _, start, end in group], len(words.texts) + 1)
    nulls = np.zeros(len(group), np.int64)
    null = word == len(words.texts)
    nulls[slice_of[null]] = count[null]
    slice_of, word, count = slice_of[~null], word[~null], count[~null]
    registers = np.zeros((len(group), REGISTERS), np.uint8)
    np.maximum.at(registers.reshape(-1), slice_of * REGISTERS + words.registers[word], words.ranks[word])
    place = words.named[word]
    counts = np.zeros((len(group), len(feature.categories)), np.int64)
    is_new = place < 0
    counts[slice_of[~is_new], place[~is_new]] = count[~is_new]
    news = _new(words, slice_of[is_new], word[is_new], count[is_new], len(group))
    return [
        Profile(
            feature=feature.name,
            baseline=baseline,
            segment=segment,
            hour_us=hour_us,
            boundary=boundary,
            rows=end - start,
            nulls=int(nulls[number]),
            counts=counts[number],
            new=news[number][0],
            cells=news[number][1],
            registers=registers[number],
        )
        for number, (segment, hour_us, start, end) in enumerate(group)
    ]


def _counted(codes: Ints, rows: Sequence[int], width: int) -> tuple[Ints, Ints, Ints]:
    """Slice, word and count of what occurs, by slice."""
    both = codes if len(rows) == 1 else np.repeat(np.arange(0, len(rows) * width, width), rows) + codes
    held, counts = counted(both, len(rows) * width)
    return held // width, held % width, counts


def _new(words: Words, slice_of: Ints, word: Ints, count: Ints, slices: int) -> list[tuple[dict[str, int], Counts]]:
    """Of each slice's words that the baseline does not name: those that are kept, and the cells of the others."""
    cells = np.zeros((slices, NEW_CELLS), np.int64)
    ranked = np.lexsort((words.order[word], slice_of))
    slice_of, word, count = slice_of[ranked], word[ranked], count[ranked]
    begins = np.searchsorted(slice_of, np.arange(slices + 1))
    beyond = np.arange(len(word)) - begins[slice_of] >= NEW_KEPT
    np.add.at(cells, (slice_of[beyond], words.cells[word[beyond]]), count[beyond])
    kept: list[dict[str, int]] = [{} for _ in range(slices)]
    for number, text, size in zip(
        slice_of[~beyond].tolist(), map(words.texts.__getitem__, word[~beyond].tolist()), count[~beyond].tolist(),
        strict=True,
    ):  # fmt: skip
        kept[number][text] = size
    return [(dict(sorted(each.items())) if each else each, cells[number]) for number, each in enumerate(kept)]
