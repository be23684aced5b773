"""What is in the body of a request? Its bytes, as soon as they are known to be few enough, and what they say."""

from typing import TypeVar

import msgspec
from starlette.requests import Request

from featurestore.api.faults import Refused

T = TypeVar("T")


async def read_body(request: Request, most: int) -> bytes:
    """The whole body; raises Refused (413) as soon as it is known to be too large."""
    chunks: list[bytes] = []
    size = int(length) if (length := request.headers.get("content-length", "")).isdecimal() else 0
    if size <= most:
        size = 0
        async for chunk in request.stream():
            size += len(chunk)
            if size > most:
                break
            chunks.append(chunk)
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
