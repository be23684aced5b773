"""On which scale is a feature profiled? What is fixed by the reference, so that profiles can be added up.

Two profiles merge only if they share a baseline: the centre and scale of its buckets, the edges of its histogram, the
categories that are counted by name. A baseline is made once, from the reference, and has the digest of its content as
its id.
"""

import hashlib
import math
from collections.abc import Sequence
from typing import Final, Literal

import msgspec
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from validation.errors import PlatformError, did_you_mean
from validation.profile.sketch import HASH, HIGHEST, codes_of, distances

Kind = Literal["number", "category"]
BINS: Final = 20
NAMED: Final = 256
"""So many categories are counted by name: the reference's most frequent."""


_WORDS: Final = (pa.types.is_boolean, pa.types.is_string, pa.types.is_large_string, pa.types.is_string_view)


class ProfileError(PlatformError):
    """A table that cannot be profiled as asked, or profiles that cannot be merged."""

    exit_code = 2


class FeatureBaseline(msgspec.Struct, frozen=True, kw_only=True):
    """What the reference fixes of one feature."""

    name: str
    kind: Kind
    centre: float = 0.0
    """A number's median in the reference; distances are taken from it."""
    scale: float = 1.0
    """A power of two near the reference's spread."""
    edges: tuple[int, ...] = ()
    """Bucket codes that end a histogram bin, ascending: bin i holds codes up to and with edges[i], the last the rest.
    They are the reference's quantiles, moved to the end of the bucket they lie in."""
    categories: tuple[str, ...] = ()


class Baseline(msgspec.Struct, frozen=True, kw_only=True):
    """What the reference fixes of its features, in the order of their names."""

    features: tuple[FeatureBaseline, ...]
    hash: str = HASH

    @property
    def id(self) -> str:
        """The digest of the content: 16 hexadecimal digits."""
        return hashlib.sha256(msgspec.json.encode(self)).hexdigest()[:16]

    def feature(self, name: str) -> FeatureBaseline:
        """The baseline of one feature; raises ProfileError."""
        for feature in self.features:
            if feature.name == name:
                return feature
        known = [feature.name for feature in self.features]
        raise ProfileError(f"no feature {name!r} in the baseline; {did_you_mean(name, known)}")


def kind_of(type_: pa.DataType) -> Kind | None:
    """How a column is profiled; None where it is not: instants, lists, structs, bytes."""
    if pa.types.is_dictionary(type_):
        type_ = type_.value_type
    if any(is_one(type_) for is_one in _WORDS):
        return "category"
    if pa.types.is_integer(type_) or pa.types.is_floating(type_) or pa.types.is_decimal(type_):
        return "number"
    return None


def unprofiled_of(table: pa.Table) -> list[str]:
    """The columns that are not profiled, each with its type.

    >>> unprofiled_of(pa.table({"x": [1.0], "day": pa.array([0], pa.date32())}))
    ['day (date32[day] is not profiled)']
    """
    return [f"{field.name} ({field.type} is not profiled)" for field in table.schema if kind_of(field.type) is None]


def numbers(column: pa.ChunkedArray) -> tuple[np.ndarray[tuple[int], np.dtype[np.float64]], int]:
    """The non-null values as float64 (integers beyond 2**53 rounded to it), and how many are null."""
    if column.null_count:
        nulls = column.null_count
        column = column.drop_null()
    else:
        nulls = 0
    if column.type != pa.float64():
        column = column.cast(pa.float64(), safe=False)
    return column.to_numpy(), nulls


def words(column: pa.ChunkedArray) -> tuple[list[str], list[int], int]:
    """The different non-null values as text, how often each occurs, and how many are null."""
    if pa.types.is_dictionary(column.type):
        column = column.unify_dictionaries()
    if pa.types.is_string_view(column.type):
        column = column.cast(pa.string())
    found = column.value_counts()
    texts = found.field("values").cast(pa.string()).to_pylist()
    counts = found.field("counts").to_pylist()
    nulls = sum(count for text, count in zip(texts, counts, strict=True) if text is None)
    kept = [(text, count) for text, count in zip(texts, counts, strict=True) if text is not None]
    return [text for text, _ in kept], [count for _, count in kept], nulls


def baseline_of(
    reference: pa.Table, *, features: Sequence[str] | None = None, categorical: Sequence[str] = (), bins: int = BINS
) -> Baseline:
    """The baseline of a reference table; all columns that can be profiled where `features` names none.

    Numbers named in `categorical` (codes of something) are counted by value. Raises ProfileError.

    >>> made = baseline_of(pa.table({"x": [1.0, 2.0, 3.0], "c": ["a", "b", "a"]}), bins=2)
    >>> made.feature("x").centre, made.feature("c").categories
    (2.0, ('a', 'b'))
    """
    for name in (*(features or ()), *categorical):
        if name not in reference.column_names:
            raise ProfileError(f"no column {name!r} in the reference; {did_you_mean(name, reference.column_names)}")
    chosen = features if features is not None else reference.column_names
    made = []
    for name in sorted(chosen):
        kind = "category" if name in categorical else kind_of(reference.schema.field(name).type)
        if kind is None:
            if features is not None:
                type_ = reference.schema.field(name).type
                raise ProfileError(f"column {name!r} is {type_}; profiled are numbers, booleans and text")
            continue
        column = reference.column(name)
        made.append(_number(name, column, bins) if kind == "number" else _category(name, column))
    return Baseline(features=tuple(made))


def _category(name: str, column: pa.ChunkedArray) -> FeatureBaseline:
    texts, counts, _ = words(column)
    ranked = sorted(zip(texts, counts, strict=True), key=lambda one: (-one[1], one[0]))
    return FeatureBaseline(name=name, kind="category", categories=tuple(text for text, _ in ranked[:NAMED]))


def _number(name: str, column: pa.ChunkedArray, bins: int) -> FeatureBaseline:
    values, _ = numbers(column)
    values = values[np.isfinite(values)]
    if not len(values):
        return FeatureBaseline(name=name, kind="number")
    shares = np.arange(1, bins) / bins
    quantiles = np.quantile(values, shares, method="inverted_cdf")
    low, centre, high = (float(np.quantile(values, share, method="inverted_cdf")) for share in (0.25, 0.5, 0.75))
    with np.errstate(over="ignore", invalid="ignore"):
        ends = np.quantile(values, (0.01, 0.99), method="inverted_cdf")
        inner, own = values[(values >= ends[0]) & (values <= ends[1])], abs(centre) or 1.0
        whole = float(values.std())
        spreads = ((high - low) / 1.35, float(inner.std()), whole if whole < own * 2.0**HIGHEST else 0.0, own, 1.0)
    # The quartiles before the deviation: one wrong reading of 1e9 must not make all others one bucket.
    spread = next(one for one in spreads if math.isfinite(one) and one > 0)
    scale = 2.0 ** max(-900, min(900, round(math.log2(spread))))
    edges = np.unique(codes_of(distances(np.asarray(quantiles, np.float64), centre, scale)))
    return FeatureBaseline(
        name=name, kind="number", centre=centre, scale=scale, edges=tuple(int(edge) for edge in edges)
    )


def as_promised(column: pa.ChunkedArray, feature: FeatureBaseline) -> pa.ChunkedArray:
    """The column, if it is what its baseline says; raises ProfileError naming both."""
    kind = kind_of(column.type)
    if feature.kind == "number" and kind != "number":
        if pa.types.is_boolean(column.type):
            return pc.cast(column, pa.int8())
        if pa.types.is_null(column.type):
            return column.cast(pa.float64())
        raise ProfileError(f"column {feature.name!r} is {column.type}; in the reference it was a number")
    return column
