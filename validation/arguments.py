"""Are an expectation's arguments what it takes?

Every wrong argument is a ContractError that names it, what was found and what is allowed.
"""

import math
from collections.abc import Mapping

from validation.check import INSTANTS, UNTYPED, Bound, Ignore
from validation.errors import ContractError, did_you_mean
from validation.instant import to_us
from validation.pattern import NotLinear, searcher


class Arguments:
    """The arguments of one expectation, taken one by one; what remains unread is refused."""

    def __init__(self, expectation: str, arguments: Mapping[str, object], types: Mapping[str, str]) -> None:
        self.expectation, self.types = expectation, types
        self.left = dict(arguments)
        self.allowed: list[str] = []

    def take(self, name: str, default: object = None) -> object:
        self.allowed.append(name)
        value = self.left.pop(name, None)
        return default if value is None else value

    def wrong(self, name: str, value: object, allowed: str) -> ContractError:
        return ContractError(f"{self.expectation}: argument {name!r} is {value!r}; allowed: {allowed}")

    def flag(self, name: str) -> bool:
        value = self.take(name, default=False)
        if not isinstance(value, bool):
            raise self.wrong(name, value, "true or false")
        return value

    def choice(self, name: str, choices: Mapping[str, Ignore], default: str) -> Ignore:
        value = self.take(name, default)
        if value not in choices:
            raise self.wrong(name, value, ", ".join(choices))
        return choices[str(value)]

    def column(self, name: str = "column") -> str:
        value = self.take(name)
        return self.known(name, value)

    def known(self, name: str, value: object) -> str:
        if not isinstance(value, str) or value not in self.types:
            raise ContractError(
                f"{self.expectation}: argument {name!r} names no promised column: {value!r}; "
                f"{did_you_mean(str(value), self.types)}"
            )
        return value

    def column_list(self, name: str, least: int = 1) -> tuple[str, ...]:
        value = self.take(name)
        if not isinstance(value, list | tuple) or len(value) < least:
            raise self.wrong(name, value, f"a list of at least {least} column names")
        return tuple(self.known(name, item) for item in value)

    def integer(self, name: str) -> int | None:
        value = self.take(name)
        if value is not None and (not isinstance(value, int) or isinstance(value, bool)):
            raise self.wrong(name, value, "an integer")
        return value

    def number(self, name: str) -> float | None:
        value = self.take(name)
        if value is not None and not is_number(value):
            raise self.wrong(name, value, "a finite number")
        return value  # type: ignore[return-value]  # is_number has just proved it

    def patterns(self, name: str) -> tuple[str, ...]:
        value = self.take(name)
        found = [value] if isinstance(value, str) else value
        if not isinstance(found, list | tuple) or not found:
            raise self.wrong(name, value, "a regular expression")
        for pattern in found:
            try:
                searcher(pattern)
            except NotLinear as error:
                raise self.wrong(
                    name, pattern, f"a Python regular expression that a linear-time search has ({error})"
                ) from error
        return tuple(found)

    def typed(self, name: str, value: object, column: str) -> Bound | bool:
        """A constant as the column's values are compared: instants as microseconds."""
        logical = self.types[column]
        if logical in INSTANTS:
            try:
                instant = to_us(value) if isinstance(value, str) else None
            except ValueError:
                instant = None
            if instant is None:
                raise self.wrong(name, value, f"ISO 8601 text, as {column!r} is a {logical}")
            return instant
        if logical == UNTYPED and isinstance(value, str | bool | int | float):
            return value
        fits = {
            "string": isinstance(value, str),
            "boolean": isinstance(value, bool),
            "integer": is_number(value),
            "number": is_number(value),
        }
        if not fits.get(logical, False):
            raise self.wrong(name, value, f"a {logical}, as {column!r} is one")
        return value  # type: ignore[return-value]  # proved by `fits`

    def bound(self, name: str, column: str) -> Bound | None:
        value = self.take(name)
        return None if value is None else self.typed(name, value, column)

    def values(self, name: str, column: str) -> tuple[Bound | bool, ...]:
        value = self.take(name)
        if not isinstance(value, list | tuple):
            raise self.wrong(name, value, "a list of values")
        return tuple(self.typed(name, item, column) for item in value)

    def between(self, low: Bound | None, high: Bound | None) -> tuple[Bound | None, Bound | None, bool, bool]:
        strict_low, strict_high = self.flag("strict_min"), self.flag("strict_max")
        if low is None and high is None:
            raise ContractError(f"{self.expectation}: neither min_value nor max_value is given")
        if low is not None and high is not None and low > high:  # type: ignore[operator]  # of one logical type
            raise ContractError(f"{self.expectation}: min_value {low!r} is greater than max_value {high!r}")
        return low, high, strict_low, strict_high

    def finish(self) -> None:
        for name, value in self.left.items():
            if value is not None:
                raise ContractError(
                    f"{self.expectation}: unknown argument {name!r}; {did_you_mean(name, self.allowed)}"
                )


def is_number(value: object) -> bool:
    """Whether the value is a finite int or float, and no bool.

    >>> is_number(1.5), is_number(True), is_number(float("nan"))
    (True, False, False)
    """
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
