"""Documents and bytes of others with places changed: values of other types, keys misspelt or gone, bytes torn."""

import contextlib
import json
import math
import random
from collections.abc import Iterator
from typing import Any

TEXTS = (
    "", " ", "a", "null", "NaN", "NULL", "None", "-", "0", "1e999", "true", "2024-01-01", "2024-02-30T25:61:00Z",
    "\ufeffx",    "'; DROP TABLE x; --", '"', "a,b", "a\nb", "\x00", "\u202e", "😀", "é", "[/red]", "{}", "[]", "=1+1",
    "x" * 3_000, "\\", "%s",    "../../etc", "9" * 40, "0x10", "١٢", "\r", "\t", "1_000", "+1", "-0", "1.", "Infinity",
)  # fmt: skip
NUMBERS = (
    0, 1, -1, 2**31, 2**53, 2**53 + 1, 2**63 - 1, -(2**63), 2**63, 2**64 - 1, 2**64, 10**30, 0.1, -0.0, 1e308, 5e-324,
    math.nan, math.inf, -math.inf, 1.5,
)  # fmt: skip
NAMES = (
    "id", "amount", "ts", "Name", "name", "select", "a b", "a.b", "a\"b", "", " ", "ä", "x" * 300, "1",
    "__index_level_0__", "é\n", "row", "count", "*", "\ufeffid",
)  # fmt: skip


def value(dice: random.Random, depth: int = 0) -> Any:
    """Anything that JSON can say, and what Python's JSON says beyond."""
    kind = dice.randrange(9 if depth < 3 else 6)
    if kind < 2:
        return dice.choice(NUMBERS)
    if kind < 4:
        return dice.choice(TEXTS)
    if kind == 4:
        return dice.choice((None, True, False))
    if kind == 5:
        return dice.randrange(-5, 5)
    if kind == 6:
        return [value(dice, depth + 1) for _ in range(dice.randrange(4))]
    return {dice.choice(NAMES): value(dice, depth + 1) for _ in range(dice.randrange(4))}


def mutated(dice: random.Random, data: bytes) -> bytes:
    """Bytes torn, doubled, flipped or with others put between."""
    for _ in range(dice.randrange(1, 4)):
        at = dice.randrange(len(data) + 1)
        end = dice.randrange(at, min(len(data), at + 40) + 1)
        data = dice.choice(
            (
                data[:at],
                data[at:],
                data[:at] + data[end:],
                data[:end] + data[at:],
                data[:at] + bytes([dice.randrange(256)]) + data[at + 1 :],
                data[:at] + dice.choice(TEXTS).encode() + data[end:],
                b"\xef\xbb\xbf" + data,
                data + b"\x00",
                data.replace(b"\n", b"\r\n"),
            )
        )
    return data


def places(node: Any) -> Iterator[tuple[Any, Any]]:
    """Every container of a document with each of its keys or indices."""
    keys = list(node) if isinstance(node, dict) else list(range(len(node))) if isinstance(node, list) else []
    for key in keys:
        yield node, key
        yield from places(node[key])


def mutate_document(dice: random.Random, document: Any, times: int = 3) -> None:
    """Change some places of a document: others' values, other types, keys misspelt, gone or doubled."""
    for _ in range(dice.randrange(1, times + 1)):
        every = list(places(document))
        if not every:
            return
        node, key = dice.choice(every)
        kind = dice.randrange(6)
        if kind == 0:
            del node[key]
        elif kind == 1:
            node[key] = value(dice)
        elif kind == 2:
            other, place = dice.choice(every)
            with contextlib.suppress(KeyError, IndexError):
                node[key] = json.loads(json.dumps(other[place], default=str))
        elif kind == 3 and isinstance(node, dict):
            node[dice.choice((f"{key}s", f"{key}x", str(key).upper(), dice.choice(TEXTS)))] = node.pop(key)
        elif kind == 4 and isinstance(node, list):
            node.append(node[key])
        else:
            node[key] = dice.choice((None, [], {}, "", [node[key]], {"a": node[key]}, 2**70, -1, math.inf, True))
