"""Which columns of a stream view may it not see, and what does it see instead?

A contract classifies columns; a view's tag `clearance` says up to which classification it may read (public, internal,
confidential, restricted). A column beyond it is dropped (null), or, with the tag `beyond_clearance: mask`, text is
replaced by its SHA-256 in hexadecimal: equal texts stay equal, nothing else is left of them. It is done wherever the
view's events are read, in the stream, in a backfill and offline alike, before anything is computed of them; the event
log keeps what came. A classification that is not known counts as restricted.
"""

import hashlib
from collections.abc import Mapping
from typing import Final, Literal

import pyarrow as pa

from featurestore.errors import DefinitionError
from featurestore.plan import View
from validation.contract import Contract

CLEARANCE: Final = "clearance"
BEYOND: Final = "beyond_clearance"
How = Literal["dropped", "masked"]
_LEVELS: Final[Mapping[str, int]] = {"": 0, "public": 0, "internal": 1, "confidential": 2, "restricted": 3}
_DIGEST_CHARS: Final = 64
_ORDERED: Final = frozenset({"min", "max", "first", "last", "last_k"})


def withheld_of(view: View, contract: Contract | None) -> dict[str, How]:
    """By column (as the source calls it) what is done to it; nothing for a view without a clearance.

    Raises DefinitionError for a clearance that cannot be kept: one that means nothing, of a view that is no stream's or
    has a function, without a contract that classifies, or below the classification of a key or of the event's time.
    """
    if CLEARANCE not in view.tags:
        return {}
    place, level, beyond = f"view {view.name!r}", view.tags[CLEARANCE], view.tags.get(BEYOND, "drop")
    if level not in _LEVELS or not level:
        raise DefinitionError(f"{place}: tag {CLEARANCE} is {level!r}; expected {', '.join(filter(None, _LEVELS))}")
    if beyond not in ("drop", "mask"):
        raise DefinitionError(f"{place}: tag {BEYOND} is {beyond!r}; expected drop or mask")
    if view.source.topic is None or view.transform is not None:
        raise DefinitionError(f"{place}: a clearance is kept for views of a topic that have no function; drop the tag")
    if contract is None:
        raise DefinitionError(f"{place}: nothing classifies the columns of {view.source.name!r}; write a contract")
    stored = {name: column for column, name in view.source.field_mapping.items()}
    beyond_it = {column.name for column in contract.columns if _level(column.classification) > _LEVELS[level]}
    for name in (*(key.name for key in view.join_keys), view.source.timestamp_field):
        if stored.get(name, name) in beyond_it:
            raise DefinitionError(
                f"{place}: {name!r} is classified beyond its clearance {level!r}, and is its key or time"
            )
    read = {each.column: each.column_dtype for each in view.aggregations} or {
        field.name: field.dtype for field in view.features
    }
    found: dict[str, How] = {}
    for name, dtype in read.items():
        column = stored.get(name, name)
        if column not in beyond_it:
            continue
        found[column] = "masked" if beyond == "mask" and dtype == "STRING" else "dropped"
        for each in view.aggregations:
            short = each.function in _ORDERED and each.params.get("max_bytes", _DIGEST_CHARS) < _DIGEST_CHARS
            if found[column] == "masked" and each.column == name and short:
                raise DefinitionError(
                    f"{place}: {name!r} is masked by {_DIGEST_CHARS} characters, feature {each.feature!r} keeps fewer; "
                    f"raise the tag {each.feature}.max_bytes"
                )
    return found


def withhold(events: pa.Table, withheld: Mapping[str, str]) -> pa.Table:
    """The events without what is beyond a clearance; columns that are not there are no matter.

    >>> withhold(pa.table({"name": ["a", None], "x": [1, 2]}), {"x": "dropped"}).to_pylist()
    [{'name': 'a', 'x': None}, {'name': None, 'x': None}]
    """
    for name, how in withheld.items():
        place = events.schema.get_field_index(name)
        if place < 0:
            continue
        column = events.column(place)
        instead = _masked(column) if how == "masked" else pa.nulls(len(events), column.type)
        events = events.set_column(place, events.schema.field(place), instead)
    return events


def _masked(column: pa.ChunkedArray) -> pa.Array:
    encoded = column.combine_chunks().dictionary_encode()
    encoded = encoded.combine_chunks() if isinstance(encoded, pa.ChunkedArray) else encoded
    words = [
        None if text is None else hashlib.sha256(text.encode()).hexdigest() for text in encoded.dictionary.to_pylist()
    ]
    return pa.array(words, pa.string()).take(encoded.indices).cast(column.type)


def _level(classification: str) -> int:
    return _LEVELS.get(classification.lower(), max(_LEVELS.values()))
