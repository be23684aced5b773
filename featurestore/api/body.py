"""What is in the body of a request? Its bytes, as soon as they are known to be few enough, and what they say."""

from collections.abc import Mapping
from typing import TypeVar

import msgspec
from starlette.requests import ClientDisconnect
from starlette.types import Receive

from featurestore.api.faults import Refused

T = TypeVar("T")
_SIZE_DIGITS = 15


async def read_body(headers: Mapping[str, str], receive: Receive, most: int) -> bytes:
    """The whole body; raises Refused (413) as soon as it is known to be too large, and ClientDisconnect."""
    declared = headers.get("content-length", "")
    # Digits without end are no number that Python reads; nobody sends them in good faith.
    size = (int(declared) if len(declared) <= _SIZE_DIGITS else most + 1) if declared.isdecimal() else 0
    chunks: list[bytes] = []
    more = True
    while more and size <= most:
        message = await receive()
        if message["type"] == "http.disconnect":
            raise ClientDisconnect
        chunks.append(message.get("body", b""))
        more = message.get("more_body", False)
        size = sum(map(len, chunks))
    if size > most:
        raise Refused(413, "body_too_large", f"the body is larger than {most} bytes; ask in parts")
    return chunks[0] if len(chunks) == 1 else b"".join(chunks)


def decoded(body: bytes, kind: type[T]) -> T:
    """A body as a value of a type; raises Refused (400) where it is not JSON of that shape.

    >>> decoded(b'{"a": 1}', dict[str, int])
    {'a': 1}
    """
    try:
        return msgspec.json.decode(body, type=kind)
    except msgspec.ValidationError as error:
        raise Refused(400, "invalid_body", f"the body does not fit: {error}") from error
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise Refused(400, "malformed_json", f"the body is not JSON: {error}") from error
