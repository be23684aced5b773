r"""Translate Python's regular expressions for RE2, which searches in time linear in the text.

What an event or a write holds comes from outside; Python's own engine tries every way to match and can be made to try
for years. RE2 cannot, and has no look-around and no back references: such patterns are refused. What is translated
means the same: `\d`, `\w`, `\s` and case are Python's own Unicode tables, `$` also matches before a last newline.
"""

import re
from collections.abc import Callable, Iterable, Sequence
from functools import lru_cache
from re import _constants as sre  # type: ignore[attr-defined]  # the parser behind `re`, which has no stubs
from re import _parser  # type: ignore[attr-defined]
from typing import Any, Final

import numpy as np
import re2

from validation.errors import PlatformError

LONGEST: Final = 2_000
"""Characters of a pattern."""
_MOST_REPEATS: Final = 1_000
"""RE2's own bound of `{n}`."""
_LARGEST_PROGRAM: Final = 100_000
"""Instructions of a compiled pattern: a search takes at most as many steps for each byte."""
_DEEPEST: Final = 50
_HALVES: Final = range(0xD800, 0xE000)
_REFUSED: Final = {
    sre.ASSERT: "look-around",
    sre.ASSERT_NOT: "look-around",
    sre.GROUPREF: "a back reference",
    sre.GROUPREF_EXISTS: "a condition on a group",
    sre.ATOMIC_GROUP: "an atomic group",
    sre.POSSESSIVE_REPEAT: "a possessive repetition",
}
_CATEGORIES: Final = {
    sre.CATEGORY_DIGIT: r"\d",
    sre.CATEGORY_NOT_DIGIT: r"\D",
    sre.CATEGORY_SPACE: r"\s",
    sre.CATEGORY_NOT_SPACE: r"\S",
    sre.CATEGORY_WORD: r"\w",
    sre.CATEGORY_NOT_WORD: r"\W",
}


class NotLinear(PlatformError):
    """A pattern that is no regular expression, or that no linear-time engine can search."""


def searcher(pattern: str) -> Callable[[str], bool]:
    r"""A function of a text: whether Python's `re.search` finds the pattern in it. Raises NotLinear.

    Half a surrogate pair, which no encoding holds, counts as a question mark.

    >>> found = searcher(r"^\d+$")
    >>> found("٣٤\n"), found("3x")
    (True, False)
    """
    options = re2.Options()
    options.log_errors, options.never_capture, options.max_mem = False, True, 64 << 20
    translated = linear(pattern)
    try:
        compiled = re2.compile(translated.encode(), options)
    except re2.error as error:
        raise NotLinear(f"{pattern!r} is too large for a linear-time search ({_words(error)})") from error
    if compiled.programsize > _LARGEST_PROGRAM:
        raise NotLinear(
            f"{pattern!r} is too large for a linear-time search: {compiled.programsize} steps a byte, at most "
            f"{_LARGEST_PROGRAM}; repeat less"
        )
    search = compiled.search

    def found(text: str) -> bool:
        return search(text.encode("utf-8", "replace")) is not None

    return found


@lru_cache(maxsize=1024)
def linear(pattern: str) -> str:
    r"""The pattern in RE2's syntax. Raises NotLinear, which says what stands in the way.

    >>> linear("^[A-Z]{2}$")
    '\\A[\\x{41}-\\x{5a}]{2}(?:\\n?\\z)'
    >>> linear("(?=a)b")
    Traceback (most recent call last):
    ...
    validation.pattern.NotLinear: '(?=a)b' needs look-around, which no linear-time search has; say it without
    """
    if not isinstance(pattern, str):
        raise NotLinear(f"{pattern!r} is no text")
    if len(pattern) > LONGEST:
        raise NotLinear(f"a pattern of {len(pattern)} characters, at most {LONGEST}")
    try:
        parsed = _parser.parse(pattern)
    except (re.error, OverflowError, RecursionError) as error:
        raise NotLinear(f"{pattern!r} is no regular expression of Python: {error}") from error
    try:
        return _sequence(parsed, parsed.state.flags, last=True, depth=0)
    except _Unsupported as why:
        raise NotLinear(f"{pattern!r} needs {why}, which no linear-time search has; say it without") from None


class _Unsupported(Exception):
    """What a pattern needs and RE2 lacks."""


def _words(error: Exception) -> str:
    text = error.args[0] if error.args else ""
    return text.decode(errors="replace") if isinstance(text, bytes) else str(text)


def _sequence(nodes: Iterable[Any], flags: int, *, last: bool, depth: int) -> str:
    if depth > _DEEPEST:
        raise _Unsupported(f"more than {_DEEPEST} groups within each other")
    every = list(nodes)
    return "".join(
        _node(op, argument, flags, last=last and place == len(every) - 1, depth=depth)
        for place, (op, argument) in enumerate(every)
    )


def _node(op: Any, argument: Any, flags: int, *, last: bool, depth: int) -> str:
    """One node; `last`: nothing follows that could take up characters."""
    if op in _REFUSED:
        raise _Unsupported(_REFUSED[op])
    if op is sre.LITERAL:
        return _class([(op, argument)], flags) if flags & re.IGNORECASE else _character(argument)
    if op is sre.NOT_LITERAL:
        return _class([(sre.NEGATE, None), (sre.LITERAL, argument)], flags)
    if op is sre.ANY:
        return "(?s:.)" if flags & re.DOTALL else r"[^\n]"
    if op is sre.IN:
        return _class(argument, flags)
    if op is sre.AT:
        return _place(argument, flags, last=last)
    if op is sre.BRANCH:
        return f"(?:{'|'.join(_sequence(each, flags, last=last, depth=depth + 1) for each in argument[1])})"
    if op is sre.SUBPATTERN:
        _, added, removed, inner = argument
        return f"(?:{_sequence(inner, (flags | added) & ~removed, last=last, depth=depth + 1)})"
    if op in (sre.MAX_REPEAT, sre.MIN_REPEAT):
        return _repeat(argument, flags, depth=depth)
    if op is sre.FAILURE:
        return r"[^\x{0}-\x{10ffff}]"
    raise _Unsupported(str(op).lower())


def _repeat(argument: tuple[int, Any, Sequence[Any]], flags: int, *, depth: int) -> str:
    least, most, inner = argument
    bound = "" if most is sre.MAXREPEAT else int(most)
    if least > _MOST_REPEATS or (bound != "" and int(bound) > _MOST_REPEATS):
        raise _Unsupported(f"a repetition of more than {_MOST_REPEATS}")
    repeated = _sequence(inner, flags, last=False, depth=depth + 1)
    count = {(0, ""): "*", (1, ""): "+", (0, 1): "?"}.get((least, bound), f"{{{least},{bound}}}")
    return f"{_single(inner, repeated)}{count if least != bound else f'{{{least}}}'}"


def _single(inner: Sequence[Any], text: str) -> str:
    """What a repetition may follow."""
    plain = len(inner) == 1 and inner[0][0] in (sre.LITERAL, sre.IN, sre.ANY, sre.NOT_LITERAL, sre.SUBPATTERN)
    return text if plain else f"(?:{text})"


def _place(place: Any, flags: int, *, last: bool) -> str:
    if place is sre.AT_BEGINNING_STRING or (place is sre.AT_BEGINNING and not flags & re.MULTILINE):
        return r"\A"
    if place is sre.AT_BEGINNING:
        return "(?m:^)"
    if place is sre.AT_END_STRING:
        return r"\z"
    if place is sre.AT_END and flags & re.MULTILINE:
        return "(?m:$)"
    if place is sre.AT_END:
        if not last:
            raise _Unsupported("an end ($) that something follows or that repeats")
        return r"(?:\n?\z)"
    if flags & re.ASCII:
        return r"\b" if place is sre.AT_BOUNDARY else r"\B"
    raise _Unsupported(r"a word boundary (\b) among all letters: among ASCII ones, (?a), it can be had")


def _class(items: Sequence[Any], flags: int) -> str:
    negated = items[0][0] is sre.NEGATE
    parts: list[str] = []
    ranges: list[tuple[int, int]] = []
    for op, argument in items[1:] if negated else items:
        if op is sre.LITERAL:
            ranges.append((argument, argument))
        elif op is sre.RANGE:
            ranges.append(argument)
        elif op is sre.CATEGORY:
            parts.append(_category(_CATEGORIES[argument], ascii_only=bool(flags & re.ASCII)))
        else:
            raise _Unsupported(str(op).lower())
    if flags & re.IGNORECASE:
        ranges += _other_cases(tuple(ranges), ascii_only=bool(flags & re.ASCII))
    body = "".join([*(_span(first, last) for first, last in ranges), *parts])
    return f"[{'^' if negated else ''}{body}]"


def _character(code: int) -> str:
    if code in _HALVES:
        raise _Unsupported("half a surrogate pair")
    text = chr(code)
    return text if text.isascii() and text.isalnum() else rf"\x{{{code:x}}}"


def _span(first: int, last: int) -> str:
    """A range in a class; halves of surrogate pairs, which no text holds, are left out of it."""
    if first in _HALVES and last in _HALVES:
        raise _Unsupported("half a surrogate pair")
    return rf"\x{{{first:x}}}" if first == last else rf"\x{{{first:x}}}-\x{{{last:x}}}"


@lru_cache(maxsize=1)
def _every() -> str:
    """Every code point, in order, halves of surrogate pairs included."""
    return np.arange(0x110000, dtype="<u4").tobytes().decode("utf-32-le", "surrogatepass")


@lru_cache(maxsize=16)
def _category(name: str, *, ascii_only: bool) -> str:
    """The members of a category by Python's own tables, as ranges of a class."""
    found = re.finditer(f"{name}+", _every(), re.ASCII if ascii_only else 0)
    return "".join(_span(each.start(), each.end() - 1) for each in found)


@lru_cache(maxsize=1)
def _cased() -> str:
    """Every character that has another case, or is the other case of one."""
    return "".join(each for each in _every() if each.lower() != each or each.upper() != each)


@lru_cache(maxsize=4096)
def _other_cases(ranges: tuple[tuple[int, int], ...], *, ascii_only: bool) -> list[tuple[int, int]]:
    """What Python takes for the same as these characters where case is ignored."""
    if not ranges:
        return []
    members = "".join(rf"\U{first:08x}-\U{last:08x}" for first, last in ranges)
    found = re.findall(f"[{members}]", _cased(), re.IGNORECASE | (re.ASCII if ascii_only else 0))
    return [(ord(each), ord(each)) for each in found]
