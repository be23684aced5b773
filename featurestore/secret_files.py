"""Settings of the environment that are given as files: secrets are mounted, not exported."""

from collections.abc import Mapping
from pathlib import Path
from typing import Final

from featurestore.errors import ConfigurationError

_SUFFIX: Final = "_FILE"
_PREFIXES: Final = ("FEATURESTORE_", "KAFKA_")
_LARGEST: Final = 65_536


def from_files(environ: Mapping[str, str]) -> dict[str, str]:
    """The variables whose value is the content of the file that `NAME_FILE` names, without a newline at its end.

    Every variable of this product and of Kafka may be given so. Raises ConfigurationError where the file cannot be
    read, or where the variable is set as well: which of the two counts would be a guess.
    """
    found = {}
    for variable, place in environ.items():
        name = variable.removesuffix(_SUFFIX)
        if name == variable or not variable.startswith(_PREFIXES) or not place:
            continue
        if environ.get(name):
            raise ConfigurationError(f"{name} and {variable} are both set; set one of them")
        try:
            with Path(place).open(encoding="utf-8") as file:
                text = file.read(_LARGEST + 1)
        except (OSError, UnicodeDecodeError) as error:
            raise ConfigurationError(f"{variable}: {place} cannot be read: {error}") from error
        if len(text) > _LARGEST:
            raise ConfigurationError(f"{variable}: {place} is larger than {_LARGEST} characters")
        found[name] = text.rstrip("\r\n")
    return found
