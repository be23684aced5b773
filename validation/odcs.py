"""Where in a contract file is this value, and is it what was expected there?

YAML is read with two differences from YAML 1.1's habits: dates stay text, and a key written twice is an error.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any, Self

import yaml

from validation.errors import ContractError, did_you_mean


class _Loader(yaml.SafeLoader):
    """SafeLoader without dates and without silent duplicates."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:  # noqa: FBT001, FBT002
        seen: set[Any] = set()
        for key_node, _ in node.value:
            key = self.construct_object(key_node, deep=True)
            if key in seen:
                raise yaml.constructor.ConstructorError(None, None, f"key {key!r} is given twice", key_node.start_mark)
            seen.add(key)
        return super().construct_mapping(node, deep=deep)


_Loader.yaml_implicit_resolvers = {
    first: [(tag, pattern) for tag, pattern in resolvers if tag != "tag:yaml.org,2002:timestamp"]
    for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
}

Route = tuple[str | int, ...]


class Place:
    """A value in a contract file, which knows its file, line and path for messages."""

    def __init__(self, file: Path, root: yaml.Node, path: Route, value: Any) -> None:
        self.file, self._root, self.path, self.value = file, root, path, value

    @classmethod
    def open(cls, file: Path) -> Self:
        """The root of a YAML file; raises ContractError where it cannot be read or is no mapping."""
        try:
            text = file.read_text("utf-8")
            root = yaml.compose(text, Loader=_Loader)
            value = yaml.load(text, Loader=_Loader)  # noqa: S506  # a SafeLoader
        except OSError as error:
            raise ContractError(f"{file}: the contract cannot be read: {error.strerror}") from error
        except (yaml.YAMLError, UnicodeDecodeError) as error:
            raise ContractError(f"{file}: no readable YAML: {' '.join(str(error).split())}") from error
        if not isinstance(value, dict) or root is None:
            raise ContractError(f"{file}: found no mapping; a contract is an Open Data Contract Standard 3.x file")
        return cls(file, root, (), value)

    def error(self, message: str) -> ContractError:
        """The message with file, line and path before it."""
        where = "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in self.path).lstrip(".")
        place = f"{self.file}:{self.line}: {where}: " if where else f"{self.file}: "
        return ContractError(place + message)

    @property
    def line(self) -> int:
        """The line on which the value stands, from 1; of an absent one the line of what should hold it."""
        node = self._root
        for part in self.path:
            inner: Iterator[yaml.Node] = iter(())
            if isinstance(node, yaml.MappingNode):
                inner = (value for key, value in node.value if key.value == str(part))
            elif isinstance(node, yaml.SequenceNode) and isinstance(part, int):
                inner = iter(node.value[part : part + 1])
            node = next(inner, node)
        return int(node.start_mark.line) + 1

    def child(self, key: str | int) -> Self:
        """The value under a key; None where it is absent."""
        if isinstance(key, int):
            return type(self)(self.file, self._root, (*self.path, key), self.value[key])
        value = self.value.get(key) if isinstance(self.value, dict) else None
        return type(self)(self.file, self._root, (*self.path, key), value)

    def text(self, key: str, default: str | None = None) -> str:
        """The text under a key; numbers become text; raises where it is neither, or absent without a default."""
        found = self.child(key)
        if found.value is None and default is not None:
            return default
        if isinstance(found.value, bool) or not isinstance(found.value, str | int | float):
            raise found.error(f"found {found.value!r}; expected text")
        return str(found.value)

    def flag(self, key: str) -> bool:
        """The boolean under a key; absent is false."""
        found = self.child(key)
        if found.value is not None and not isinstance(found.value, bool):
            raise found.error(f"found {found.value!r}; allowed: true, false")
        return found.value is True

    def choice(self, key: str, choices: tuple[str, ...], default: str | None = None) -> str:
        """One of the given texts."""
        found = self.text(key, default)
        if found not in choices:
            raise self.child(key).error(f"found {found!r}; allowed: {', '.join(choices)}")
        return found

    def items(self, key: str) -> list[Self]:
        """The members of the list under a key, all mappings; absent is empty."""
        found = self.child(key)
        if found.value is None:
            return []
        if not isinstance(found.value, list):
            raise found.error(f"found {type(found.value).__name__}; expected a list")
        members = [found.child(index) for index in range(len(found.value))]
        for member in members:
            if not isinstance(member.value, dict):
                raise member.error(f"found {member.value!r}; expected a mapping")
        return members

    def mapping(self, key: str) -> dict[str, Any]:
        """The mapping under a key; absent is empty."""
        found = self.child(key)
        if found.value is None:
            return {}
        if not isinstance(found.value, dict):
            raise found.error(f"found {found.value!r}; expected a mapping")
        return dict(found.value)

    def custom(self, name: str, choices: tuple[str, ...], default: str) -> str:
        """A value of ODCS `customProperties`, one of the given texts."""
        for item in self.items("customProperties"):
            if item.text("property") == name:
                return item.choice("value", choices)
        return default

    def custom_text(self, name: str, default: str) -> str:
        """A value of ODCS `customProperties` that may be any text."""
        for item in self.items("customProperties"):
            if item.text("property") == name:
                return item.text("value")
        return default

    def only(self, allowed: tuple[str, ...]) -> None:
        """Raises where the mapping has a key that is not allowed."""
        for key in self.value:
            if key not in allowed:
                raise self.child(str(key)).error(f"unknown key {key!r}; {did_you_mean(str(key), allowed)}")
