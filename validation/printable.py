"""Text from outside as one line that a terminal, a log or a page shows as it is."""

import unicodedata
from typing import Final

_HIDDEN: Final = frozenset({"Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Zp"})
"""Unicode categories that move the cursor, change the direction of text, or show nothing."""


def printable(text: object, *, most: int = 0, keep: str = "") -> str:
    r"""The text with characters that are not shown written as escapes; cut to `most` characters where it is given.

    Control characters would command a terminal, bidirectional marks reorder what is read, and half a surrogate pair
    fits no encoding. Characters in `keep` stay.

    >>> printable("a\x1b[31mb\u202ec")
    'a\\x1b[31mb\\u202ec'
    >>> printable("x" * 10, most=4)
    'xxx…'
    """
    plain = str(text)
    if most and len(plain) > most:
        plain = plain[: most - 1] + "…"
    if plain.isprintable():
        return plain
    return "".join(
        each if each in keep or unicodedata.category(each) not in _HIDDEN else _escaped(each) for each in plain
    )


def _escaped(character: str) -> str:
    return character.encode("unicode_escape").decode("ascii")
