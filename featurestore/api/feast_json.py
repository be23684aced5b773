"""How does the answer to a request look in Feast's JSON?

It is written from fragments: the statuses and times of a view are mostly the same for all its features, so each
distinct array is encoded once and its bytes are used again; the numbers of a view are encoded in one call and cut.
"""

from collections.abc import Iterator, Sequence
from functools import lru_cache
from typing import Any

import numpy as np
import orjson

from featurestore.api.answer import Answered, instants_json, json_values, rfc3339
from featurestore.online.numbers import Numbers
from featurestore.online.result import Block, Status

_NAMES = [b'"INVALID"', *(orjson.dumps(status.name) for status in Status)]
_NUMBERS = frozenset({"INT32", "INT64", "BOOL", "FLOAT", "DOUBLE"})


def feast_json(parts: Sequence[Answered | Block], instant_us: int, names: bytes | None = None) -> bytes:
    """The answer as Feast's feature server gives it, with two additions.

    `metadata.instant` is the reading instant; a result whose values hold at later ones (its key has an event ahead of
    the clock) lists them as `instants`. Timestamps are whole seconds, bytes base64, NaN and infinities words. `names`
    are those of the columns as JSON; without them no part may be a Block, whose columns have none.
    """
    statuses: dict[int, bytes] = {}
    times: dict[int, bytes] = {}
    results: list[bytes] = []
    columns: list[Answered] = []
    for part in parts:
        if isinstance(part, Answered):
            columns.append(part)
            continue
        results += _columns_json(columns, instant_us, statuses, times)
        columns = []
        written = _block_json(part, instant_us)
        if written is None:
            columns += [Answered.of(column) for column in part.columns()]
        else:
            results.append(written)
    results += _columns_json(columns, instant_us, statuses, times)
    if names is None:
        names = orjson.dumps([part.name for part in parts if isinstance(part, Answered)])
    # Joined with what comes before and after: a large answer is not copied once more.
    results[0] = b'{"results":[' + results[0]
    results[-1] += b'],"metadata":{"feature_names":' + names + b',"instant":"' + rfc3339(instant_us).encode() + b'"}}'
    return b",".join(results)


def _block_json(block: Block, instant_us: int) -> bytes | None:
    """The results of a block's features, comma separated; None where one of its values is no plain number."""
    held = block.held
    if not _NUMBERS.issuperset(block.dtypes):
        return None
    # Cut by single bytes, which numbers have not: searching for more of them costs ten times as much.
    if isinstance(held, list) and len(held) == 1:
        written = orjson.dumps(held[0])
        values = written[1:-1].split(b",")
        between = b"],"
    else:
        if isinstance(held, list):
            written = orjson.dumps([*zip(*held, strict=True)])
        else:
            # float32 as the doubles that they become in Python: JSON tells their digits.
            doubled = held.astype(np.float64) if held.dtype == np.float32 else held
            written = orjson.dumps(doubled, option=orjson.OPT_SERIALIZE_NUMPY)
        # All but the last end with "],".
        values = written[2:-2].split(b"[")
        between = b""
    # A null may be a NaN, for which there is a word.
    if b"n" in written:
        return None
    tail = b'"statuses":' + _statuses(block.statuses) + b',"event_timestamps":' + instants_json(block.event_us)
    instants = block.instant_us
    if instants is None and block.t_us != instant_us:
        instants = [block.t_us] * len(block.statuses)
    if instants is not None and any(each != instant_us for each in instants):
        tail += b',"instants":' + instants_json(instants)
    return b'{"values":[' + (between + tail + b'},{"values":[').join(values) + b"]," + tail + b"}"


def _columns_json(
    columns: Sequence[Answered], instant_us: int, statuses: dict[int, bytes], times: dict[int, bytes]
) -> Iterator[bytes]:
    """The results of columns; statuses and times that are the same array are written once."""
    for group in _alike_columns(columns):
        tail = _tail(group[0], instant_us, statuses, times)
        written = _numbers_json(group)
        if written is not None:
            # As in a block.
            yield b'{"values":' + written.replace(b"],[", b"]" + tail + b',{"values":[') + tail
            continue
        for column in group:
            yield b'{"values":' + _values_json(column) + tail


def _alike_columns(columns: Sequence[Answered]) -> Iterator[Sequence[Answered]]:
    """Runs of columns that share statuses and times, as those of a view mostly do: equal bytes follow their values."""
    start, end = 0, len(columns)
    while start < end:
        first = columns[start]
        statuses, event_us, instant_us = first.statuses, first.event_us, first.instant_us
        until = start + 1
        while until < end:
            column = columns[until]
            if column.statuses is not statuses or column.event_us is not event_us:
                break
            if column.instant_us is not instant_us:
                break
            until += 1
        yield columns[start:until]
        start = until


def _numbers_json(group: Sequence[Answered]) -> bytes | None:
    """The values of columns as JSON arrays, comma separated, all in one call; None where one is no plain number."""
    values: list[Any] = []
    for column in group:
        held = column.values
        if column.dtype not in _NUMBERS:
            return None
        if type(held) is list:
            values.append(held)
        elif isinstance(held, Numbers) and held.nulls is None:
            values.append(held.doubled())
        else:
            return None
    written = orjson.dumps(values, option=orjson.OPT_SERIALIZE_NUMPY)
    # A null may be a NaN, for which there is a word.
    return None if b"null" in written else written[1:-1]


def _values_json(column: Answered) -> bytes:
    values = column.values
    if isinstance(values, Numbers):
        written = values.json()
        if written is not None:
            return written
        values = values.tolist()
    return orjson.dumps(json_values(values, column.dtype))


def _tail(column: Answered, instant_us: int, statuses: dict[int, bytes], times: dict[int, bytes]) -> bytes:
    told = statuses.get(id(column.statuses))
    if told is None:
        found = column.statuses.tobytes()
        told = statuses[id(column.statuses)] = _statuses(found)
    if column.instant_us is None:
        since: bytes | None = none_times(len(column.statuses))
    else:
        since = times.get(id(column.event_us))
    if since is None:
        since = times[id(column.event_us)] = instants_json(column.event_us)
    tail = b',"statuses":' + told + b',"event_timestamps":' + since
    instants = column.instant_us
    if instants is not None and (instants != instant_us).any():
        if id(instants) not in times:
            times[id(instants)] = instants_json(instants)
        tail += b',"instants":' + times[id(instants)]
    return tail + b"}"


def _statuses(found: bytes) -> bytes:
    """The names of statuses as a JSON array."""
    if found.count(found[:1]) == len(found):
        return alike(found[0], len(found))
    return b"[" + b",".join([_NAMES[status] for status in found]) + b"]"


@lru_cache(maxsize=256)
def alike(status: int, count: int) -> bytes:
    return b"[" + b",".join([_NAMES[status]] * count) + b"]"


@lru_cache(maxsize=256)
def none_times(count: int) -> bytes:
    """The event times of values that have none."""
    return instants_json(np.zeros(count, np.int64))
