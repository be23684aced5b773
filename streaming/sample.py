"""How do a topic's messages become a file that a contract can be inferred from?"""

from collections.abc import Iterable
from pathlib import Path

import msgspec

from featurestore.errors import UsageError


def write_sample(values: Iterable[bytes], output: Path) -> tuple[int, int]:
    """Writes each value that is a JSON object as a line; how many those are, and how many were none.

    Raises UsageError where the file exists, or is no .jsonl.
    """
    if output.suffix != ".jsonl":
        raise UsageError(f"{output}: found ending {output.suffix!r}; a sample of messages is JSON lines: .jsonl")
    written = others = 0
    try:
        with output.open("xb") as file:
            for value in values:
                try:
                    found = msgspec.json.decode(value)
                except (msgspec.DecodeError, UnicodeDecodeError):
                    found = None
                if isinstance(found, dict):
                    file.write(msgspec.json.encode(found) + b"\n")
                    written += 1
                else:
                    others += 1
    except FileExistsError as error:
        raise UsageError(f"{output}: exists already; remove it, or choose another --output") from error
    return written, others
