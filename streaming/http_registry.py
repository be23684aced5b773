"""How does a registry of schemas answer that speaks Confluent's HTTP interface?"""

import json
from typing import Final

import httpx

from streaming.source.records import SourceUnavailable
from validation.redaction import redacted

_LONGEST: Final = 4 << 20
_TIMEOUT_S: Final = 10.0


class HttpRegistry:
    """A registry at an address, which may carry a user and a password."""

    def __init__(self, url: str) -> None:
        self._url = httpx.URL(url)
        self._client = httpx.Client(timeout=_TIMEOUT_S)

    def __str__(self) -> str:
        """The way messages name it, without its password."""
        return f"the schema registry {self._url.copy_with(username=None, password=None)}"

    def schema(self, number: int) -> str | None:
        """See SchemaRegistry."""
        try:
            address = self._url.copy_with(path=f"{self._url.path.rstrip('/')}/schemas/ids/{number}")
            # As it is sent: what is compressed could say that it is gigabytes.
            with self._client.stream("GET", address, headers={"Accept-Encoding": "identity"}) as answer:
                if answer.status_code == httpx.codes.NOT_FOUND:
                    return None
                answer.raise_for_status()
                body = _bounded(answer)
            return str(json.loads(body)["schema"])
        except (httpx.HTTPError, ValueError, KeyError, TypeError, RecursionError) as error:
            raise SourceUnavailable(f"{self} did not tell schema {number}: {redacted(str(error))}") from error


def _bounded(answer: httpx.Response) -> bytes:
    body = b""
    for part in answer.iter_raw(1 << 16):
        body += part
        if len(body) > _LONGEST:
            raise ValueError(f"an answer of more than {_LONGEST} bytes")
    return body
