"""How are values that are no numbers compared, and kept in slots of one size?

As *words*: a value is a few uint64 that sort as it does, the first most significant, and none of it is all zeros, so
that zeros stay the identity of every maximum. Text and bytes are their bytes, padded with zeros to a declared length,
and a last word of 1 + their length: words sort as bytes do, which for UTF-8 is the order of code points. Decimals of
more than 18 digits are 128-bit integers, biased.

Reading a column sorts its distinct values once: events then hold *places* in a `Lexicon`, which are plain integers in
the values' order, and words are made of the few that win.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import xxhash

from featurestore.aggregation import fixedpoint as fp

Codes = npt.NDArray[np.uint64]
Ints = npt.NDArray[np.int64]
Mask = npt.NDArray[np.bool_]

DECIMAL_WORDS: Final = 2
_WORD: Final = 8
_SIGN: Final = np.uint64(1 << 63)
_BIAS: Final = 1 << 127


def text_words(max_bytes: int) -> int:
    """How many words hold text of up to that many bytes.

    >>> text_words(8), text_words(9)
    (2, 3)
    """
    return -(-max_bytes // _WORD) + 1


@dataclass(frozen=True)
class Lexicon:
    """The distinct values of a column, ascending; `words` is uint64[words, values]."""

    words: Codes
    scale: int | None = None
    """Of decimals: the digits behind their point; None: the values are text or bytes."""

    @cached_property
    def hashes(self) -> Codes:
        """xxh3_64 of every value: text as UTF-8, decimals as 16 bytes, most significant first."""
        if self.scale is None:
            values = to_binary(self.words, None, pa.binary()).to_pylist()
        else:
            values = [row.tobytes() for row in _as_bytes(self.words)]
        return np.array([xxhash.xxh3_64_intdigest(value) for value in values], np.uint64)

    @cached_property
    def limbs(self) -> fp.Limbs:
        """Limbs (SUM_LIMBS) of every decimal, in units of its last digit."""
        out = np.zeros((fp.SUM_LIMBS, self.words.shape[1]), np.int64)
        for place, word in ((2, self.words[0] ^ _SIGN), (0, self.words[1])):
            out[place] = (word & np.uint64(fp.MASK)).view(np.int64)
            out[place + 1] = (word >> np.uint64(32)).view(np.int64)
        out[3] -= (out[3] >> 31) << 32
        return out

    @cached_property
    def square_limbs(self) -> fp.Limbs:
        """Limbs (SQUARE_LIMBS) of the square of every decimal."""
        size = 4 * fp.SQUARE_LIMBS
        squares = [(value * value).to_bytes(size, "little") for value in self.ints]
        words = np.frombuffer(b"".join(squares), "<u4").reshape(len(squares), fp.SQUARE_LIMBS)
        return fp.unpack(words)

    @property
    def ints(self) -> list[int]:
        """Every decimal in units of its last digit."""
        return to_ints(self.words)

    @cached_property
    def floats(self) -> npt.NDArray[np.float64]:
        """Every decimal as a double: its digits and the power of ten, each rounded, divided."""
        return np.array([float(value) for value in self.ints], np.float64) / float(10 ** (self.scale or 0))


def of_text(column: Any, max_bytes: int) -> tuple[Ints, Lexicon, Mask]:
    """Places of the values of an Arrow array of text or bytes (0 where null), and which values are too long.

    Values that are too long have any place: they must not be aggregated.

    >>> places, lexicon, long = of_text(pa.array(["b", None, "a", "b"]), 8)
    >>> places.tolist(), to_binary(lexicon.words, None, pa.string()).to_pylist(), long.any()
    ([1, 0, 0, 1], ['a', 'b'], np.False_)
    """
    coded = column if pa.types.is_dictionary(column.type) else column.dictionary_encode()
    distinct = coded.dictionary.cast(pa.large_binary())
    order = pc.sort_indices(distinct)
    distinct = distinct.take(order)
    place = np.zeros(len(order) + 1, np.int64)
    place[1 + order.to_numpy()] = np.arange(len(order))
    index = coded.indices.cast(pa.int64()).fill_null(-1).to_numpy() + 1
    _, offsets, data = distinct.buffers()
    bounds = np.frombuffer(offsets, np.int64)[distinct.offset : distinct.offset + len(distinct) + 1]
    length = np.diff(bounds)
    long = length > max_bytes
    kept = np.minimum(length, max_bytes)
    rows = np.repeat(np.arange(len(kept)), kept)
    inside = np.arange(len(rows)) - np.repeat(np.cumsum(kept) - kept, kept)
    words = text_words(max_bytes)
    padded = np.zeros((len(kept), (words - 1) * _WORD), np.uint8)
    if len(rows):
        padded[rows, inside] = np.frombuffer(data, np.uint8)[np.repeat(bounds[:-1], kept) + inside]
    out = np.empty((words, len(kept)), np.uint64)
    out[:-1] = padded.view(">u8").T
    out[-1] = kept + 1
    places = place[index]
    return places, Lexicon(out), (long[places] & (index > 0)) if len(kept) else np.zeros(len(places), np.bool_)


def of_decimals(high: Ints, low: Ints, scale: int) -> tuple[Ints, Lexicon]:
    """Places of 128-bit integers, given by their halves."""
    words = np.stack([high.view(np.uint64) ^ _SIGN, low.view(np.uint64)])
    order = np.lexsort((words[1], words[0]))
    sorted_words = words[:, order]
    new = np.ones(len(order), np.bool_)
    new[1:] = (sorted_words[:, 1:] != sorted_words[:, :-1]).any(axis=0)
    places = np.empty(len(order), np.int64)
    places[order] = np.cumsum(new) - 1
    return places, Lexicon(np.ascontiguousarray(sorted_words[:, new]), scale)


def greatest(words: Codes, starts: Ints) -> Codes:
    """The greatest column of every contiguous run of columns; `starts` are the positions where runs begin.

    >>> greatest(np.array([[1, 2, 2], [9, 3, 4]], np.uint64), np.array([0, 1])).tolist()
    [[1, 2], [9, 4]]
    """
    count = words.shape[1]
    if len(starts) == count:
        return words
    run = np.repeat(np.arange(len(starts)), np.diff(starts, append=count))
    alive = np.arange(count)
    for word in words:
        own = run[alive]
        first = np.flatnonzero(np.diff(own, prepend=-1))
        if len(first) == len(alive):
            break
        best = np.maximum.reduceat(word[alive], first)
        alive = alive[word[alive] == best[own]]
    own = run[alive]
    return words[:, alive[np.flatnonzero(np.diff(own, prepend=-1))]]


def greater(a: Codes, b: Codes) -> Mask:
    """Which columns of `a` sort after those of `b`.

    >>> greater(np.array([[1, 2], [5, 0]], np.uint64), np.array([[1, 3], [4, 9]], np.uint64)).tolist()
    [True, False]
    """
    found: Mask = np.zeros(a.shape[1], np.bool_)
    for one, other in zip(a[::-1], b[::-1], strict=True):
        found = (one > other) | ((one == other) & found)
    return found


def to_binary(words: Codes, nulls: Mask | None, kind: Any) -> Any:
    """pa.Array of text or bytes from words; all zeros are the empty value."""
    matrix = _as_bytes(words[:-1])
    length = np.clip(words[-1].astype(np.int64) - 1, 0, matrix.shape[1])
    if nulls is not None:
        length = np.where(nulls, 0, length)
    data = matrix[np.arange(matrix.shape[1]) < length[:, None]]
    offsets = np.zeros(len(length) + 1, np.int32)
    np.cumsum(length, out=offsets[1:])
    valid = None if nulls is None else pa.py_buffer(np.packbits(~nulls, bitorder="little"))
    return pa.Array.from_buffers(kind, len(length), [valid, pa.py_buffer(offsets), pa.py_buffer(data)])


def to_ints(words: Codes) -> list[int]:
    """The 128-bit integers that words of decimals stand for."""
    return [(high << 64 | low) - _BIAS for high, low in zip(words[0].tolist(), words[1].tolist(), strict=True)]


def decimal_text(units: Sequence[int | None], scale: int) -> Any:
    """pa.Array of text: so many units of the last digit, with exactly `scale` digits behind the point.

    >>> decimal_text([-5, 1234, None], 2).to_pylist()
    ['-0.05', '12.34', None]
    """
    return pa.array([None if value is None else _spelled(value, scale) for value in units], pa.string())


def _spelled(value: int, scale: int) -> str:
    digits = f"{abs(value):0{scale + 1}d}"
    sign = "-" if value < 0 else ""
    return f"{sign}{digits[:-scale]}.{digits[-scale:]}" if scale else f"{sign}{digits}"


def _as_bytes(words: Codes) -> npt.NDArray[np.uint8]:
    return np.ascontiguousarray(words.T).astype(">u8").view(np.uint8).reshape(words.shape[1], _WORD * len(words))
