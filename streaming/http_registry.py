"""How does a registry of schemas answer that speaks Confluent's HTTP interface?"""

from typing import Final

import httpx

from streaming.source.records import SourceUnavailable

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
            answer = self._client.get(self._url.copy_with(path=f"{self._url.path.rstrip('/')}/schemas/ids/{number}"))
            if answer.status_code == httpx.codes.NOT_FOUND:
                return None
            answer.raise_for_status()
            return str(answer.json()["schema"])
        except (httpx.HTTPError, ValueError, KeyError, TypeError) as error:
            raise SourceUnavailable(f"{self} did not tell schema {number}: {error}") from error
