"""In which bucket does a number lie, and how many different values were there?

Both sketches are functions of the multiset of values alone: adding up bucket counts, and taking the greater of two
registers, give the same bits in any order of merging.

Buckets follow DDSketch (Masson, Rim, Lee, VLDB 2019) with a linearly interpolated mapping: sign, exponent and the first
five bits of the mantissa of (value - centre) / scale. They are read from the float's own bits, so that no logarithm
rounds one value two ways. A bucket's middle is within 1/64 of each of its values' distance from the centre.
"""

import hashlib
from typing import Final

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]
Codes = npt.NDArray[np.int32]
Hashes = npt.NDArray[np.uint64]
Registers = npt.NDArray[np.uint8]

PER_OCTAVE_BITS: Final = 5
LOWEST, HIGHEST = -7, 20
"""Distances from the centre below 2**LOWEST scales are one bucket; those from 2**HIGHEST scales on are the last."""
LAST: Final = (HIGHEST - LOWEST) * 2**PER_OCTAVE_BITS + 1
"""Codes go from -LAST to LAST; 0 is the centre's own bucket."""
_SHIFT: Final = np.uint64(52 - PER_OCTAVE_BITS)
_BASE: Final = (1023 + LOWEST) << PER_OCTAVE_BITS

HASH: Final = "splitmix64-v1"
"""The hash of numbers; changing it makes profiles unmergeable, so its name is part of every baseline."""
_GREATEST: Final = float(np.finfo(np.float64).max)
REGISTER_BITS: Final = 10
REGISTERS: Final = 2**REGISTER_BITS
_FEW: Final = 8_192
"""The standard error of the distinct estimate is 1.04 / sqrt(1024) = 3.25 %."""


def _codes_by_bits() -> npt.NDArray[np.int16]:
    """Sign, exponent and leading mantissa bits of a float -> its code: a table is cheaper than computing each."""
    bits = np.arange(1 << (12 + PER_OCTAVE_BITS), dtype=np.int64)
    half = 1 << (11 + PER_OCTAVE_BITS)
    code = np.clip((bits & (half - 1)) - (_BASE - 1), 0, LAST)
    out: npt.NDArray[np.int16] = np.where(bits >= half, -code, code).astype(np.int16)
    return out


_CODES: Final = _codes_by_bits()


def distances(values: Floats, centre: float, scale: float) -> Floats:
    """How many scales each value lies above the centre; `scale` is a power of two, so that only one step rounds."""
    with np.errstate(over="ignore"):
        away = values - centre
        away *= 1.0 / scale
    return away


def codes_of(distance: Floats) -> npt.NDArray[np.int16]:
    """The bucket of each distance, infinite ones included.

    >>> codes_of(np.array([0.0, 0.001, 1.0, -1.0, 1e300])).tolist() == [0, 0, 225, -225, LAST]
    True
    """
    out: npt.NDArray[np.int16] = _CODES.take((distance.view(np.uint64) >> _SHIFT).view(np.int64))
    return out


def middles(codes: Codes, centre: float, scale: float) -> Floats:
    """The middle of each bucket; of the last ones their inner edge.

    >>> middles(np.array([-225, 0, 225], np.int32), 5.0, 1.0).tolist()
    [3.984375, 5.0, 6.015625]
    """
    magnitude = np.abs(codes).astype(np.uint64) + np.uint64(_BASE - 1)
    low = (magnitude << _SHIFT).view(np.float64)
    high = ((magnitude + np.uint64(1)) << _SHIFT).view(np.float64)
    middle = np.where(np.abs(codes) == LAST, low, (low + high) / 2)
    with np.errstate(over="ignore"):
        out: Floats = centre + scale * np.where(codes == 0, 0.0, np.sign(codes) * middle)
    # Beyond the last value that a double holds there is none.
    return np.clip(out, -_GREATEST, _GREATEST)


def hashes_of(values: Floats) -> Hashes:
    """A 64-bit hash of each float's bits; -0.0 is 0.0."""
    return mixed((values + 0.0).view(np.uint64))


def mixed(x: Hashes) -> Hashes:
    """A hash of 64 bits (splitmix64), one to one; a new array."""
    x = x + np.uint64(0x9E3779B97F4A7C15)
    x ^= x >> np.uint64(30)
    x *= np.uint64(0xBF58476D1CE4E5B9)
    x ^= x >> np.uint64(27)
    x *= np.uint64(0x94D049BB133111EB)
    x ^= x >> np.uint64(31)
    return x


def word_hash(text: str) -> int:
    """64 bits of a text's hash."""
    return int.from_bytes(hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=8).digest(), "little")


def no_registers() -> Registers:
    """The registers of no value."""
    return np.zeros(REGISTERS, np.uint8)


def register(hashes: Hashes, registers: Registers) -> Registers:
    """HyperLogLog registers (Flajolet et al. 2007) with 64-bit hashes added: the greatest rank of a first one bit."""
    least = int(registers.min())
    if least and len(hashes) > _FEW:
        # Only hashes whose rank is above every register's can change one: one in 2**least.
        hashes = hashes[hashes < np.uint64(1 << (64 - least))]
    place, rank = places_and_ranks(hashes)
    if len(hashes) <= _FEW:
        out = registers.copy()
        np.maximum.at(out, place, rank.astype(np.uint8))
        return out
    place <<= 6
    place |= rank
    seen = np.bincount(place, minlength=REGISTERS * 64).reshape(REGISTERS, 64) > 0
    greatest = np.where(seen.any(axis=1), 63 - np.argmax(seen[:, ::-1], axis=1), 0)
    return np.maximum(registers, greatest.astype(np.uint8))


def places_and_ranks(hashes: Hashes) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """The register that each hash goes to, and the rank of its first one bit."""
    place = (hashes & np.uint64(REGISTERS - 1)).view(np.int64)
    # The exponent of the float is the place of the first one bit: 53 bits are left, so the conversion is exact.
    rest = (hashes >> np.uint64(11)).astype(np.float64)
    rank = np.int64(1023 + 53) - (rest.view(np.int64) >> np.int64(52))
    np.minimum(rank, 54, out=rank)
    return place, rank


def distinct_of(registers: Registers) -> float:
    """The estimated number of different values: HyperLogLog's, below 2.5 registers' worth linear counting.

    >>> 950 < distinct_of(register(hashes_of(np.arange(1000.0)), no_registers())) < 1050
    True
    """
    empty = int(np.count_nonzero(registers == 0))
    alpha = 0.7213 / (1 + 1.079 / REGISTERS)
    raw = float(alpha * REGISTERS**2 / np.exp2(-registers.astype(np.float64)).sum())
    return float(REGISTERS * np.log(REGISTERS / empty)) if raw <= 2.5 * REGISTERS and empty else raw
