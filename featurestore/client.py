"""How does a Python program ask the feature API? A small client with typed answers.

    with FeatureClient("http://127.0.0.1:6566") as client:
        answer = client.get_online_features("departure_delay", {"origin": ["EWR"], "carrier": ["UA"]})
        answer.to_pandas()

AsyncFeatureClient does the same for asyncio; the two share all but the calls that wait.
Answers travel as Arrow, so that an INT64 stays one beside a null and NaN is not null.
"""

import asyncio
import base64
import math
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from datetime import datetime
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

import httpx
import msgspec
import orjson
import pyarrow as pa

from featurestore.errors import FeatureStoreError, StoreUnavailable, UnknownName, UsageError
from featurestore.online.types import to_python

if TYPE_CHECKING:
    import pandas as pd

_PATH = "/get-online-features"
_HEADERS = {"Content-Type": "application/json", "Accept": "application/vnd.apache.arrow.stream"}


class _Feature(msgspec.Struct, frozen=True, array_like=True):
    """Where the statuses and times of a column stand in the API's Arrow answer."""

    name: str
    dtype: str
    status: int
    times: int


class RequestRefused(UsageError):
    """The API refused a request: `status` and `code` say why to programs, `exists` lists what would have been right."""

    def __init__(self, status: int, code: str, message: str, exists: Sequence[str]) -> None:
        self.status, self.code, self.exists = status, code, list(exists)
        super().__init__(message)


class OnlineFeatures:
    """An answer of the API: one row per entity row, in their order, with statuses and ages beside the values."""

    def __init__(self, table: pa.Table) -> None:
        self._table = table
        told = table.schema.metadata[b"features"]
        self._features = {each.name: each for each in msgspec.json.decode(told, type=list[_Feature])}

    def __len__(self) -> int:
        return int(self._table.num_rows)

    @property
    def names(self) -> list[str]:
        """The join keys and features, in the order of the answer."""
        return list(self._features)

    @property
    def instant(self) -> str:
        """The reading instant (RFC 3339): what the values hold at, unless `instants` says later."""
        told: bytes = self._table.schema.metadata[b"instant"]
        return told.decode()

    def to_arrow(self) -> pa.Table:
        """Join keys and features as an Arrow table, typed as declared (maps and structs as packed binary)."""
        return self._table.select(self.names)

    def to_pandas(self) -> "pd.DataFrame":
        """Join keys and features as a data frame of Arrow-backed columns: integers beside nulls stay integers."""
        # Only callers that ask for a frame pay for importing pandas.
        import pandas as pd

        frame: pd.DataFrame = self.to_arrow().to_pandas(types_mapper=pd.ArrowDtype)
        return frame

    def to_dict(self) -> dict[str, list[Any]]:
        """Join keys and features as lists of Python values; maps and structs as dicts."""
        return {
            name: to_python(self._table.column(name).combine_chunks(), each.dtype)
            for name, each in self._features.items()
        }

    def statuses(self, name: str) -> list[str]:
        """PRESENT, NULL_VALUE, NOT_FOUND, OUTSIDE_MAX_AGE or INCOMPLETE for every row of a feature."""
        return list(self._table.column(f"status:{self._of(name).status}").to_pylist())

    def event_timestamps(self, name: str) -> list[datetime | None]:
        """The event time of every value of a feature, in UTC; None where there is none."""
        return list(self._table.column(f"event_timestamp:{self._of(name).times}").to_pylist())

    def instants(self, name: str) -> list[datetime | None]:
        """The instant that every value of a feature holds at, in UTC; None for join keys and computed features."""
        return list(self._table.column(f"instant:{self._of(name).times}").to_pylist())

    def _of(self, name: str) -> "_Feature":
        try:
            return self._features[name]
        except KeyError:
            raise UnknownName("feature in this answer", name, self._features) from None


class FeatureClient:
    """A connection pool to one feature API; a context manager, safe to share between threads.

    Reads are repeated, at most `retries` times: after a 503 or 429 (waiting as Retry-After says) and after a connection
    that failed or was cut. A reading changes nothing, so a repetition is safe; a time-out is not repeated, for the
    caller has waited long enough.
    """

    def __init__(
        self,
        url: str,
        *,
        api_key: str | None = None,
        timeout_s: float = 5.0,
        retries: int = 2,
        transport: httpx.BaseTransport | None = None,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        self._http = httpx.Client(base_url=url, headers=_credentials(api_key), timeout=timeout_s, transport=transport)
        self._url = url
        self._retries = retries
        self._sleep = sleep

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Closes the connections."""
        self._http.close()

    def get_online_features(
        self,
        features: str | Sequence[str],
        entities: Mapping[str, Sequence[object]],
        *,
        full_feature_names: bool = False,
        as_of: datetime | None = None,
    ) -> OnlineFeatures:
        """The features of a service (its name) or of references ("view:feature") for every entity row.

        `entities` holds one column per join key and per request-time input. `as_of` asks for the values at an earlier
        instant: exact, or refused. Raises RequestRefused where the request is wrong, StoreUnavailable where the API or
        its store does not answer.
        """
        content = _content(features, entities, full_feature_names=full_feature_names, as_of=as_of)
        attempts = Attempts(self._url, self._retries)
        while True:
            try:
                response = self._http.post(_PATH, content=content, headers=_HEADERS)
            except httpx.TransportError as error:
                self._sleep(attempts.failed(error))
                continue
            if (wait_s := attempts.answered(response)) is None:
                return _features_of(response)
            self._sleep(wait_s)


class AsyncFeatureClient:
    """FeatureClient for asyncio: the same requests, answers, errors and repetitions; an async context manager."""

    def __init__(
        self,
        url: str,
        *,
        api_key: str | None = None,
        timeout_s: float = 5.0,
        retries: int = 2,
        transport: httpx.AsyncBaseTransport | None = None,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
    ) -> None:
        self._http = httpx.AsyncClient(
            base_url=url, headers=_credentials(api_key), timeout=timeout_s, transport=transport
        )
        self._url = url
        self._retries = retries
        self._sleep = sleep

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    async def close(self) -> None:
        """Closes the connections."""
        await self._http.aclose()

    async def get_online_features(
        self,
        features: str | Sequence[str],
        entities: Mapping[str, Sequence[object]],
        *,
        full_feature_names: bool = False,
        as_of: datetime | None = None,
    ) -> OnlineFeatures:
        """As FeatureClient.get_online_features."""
        content = _content(features, entities, full_feature_names=full_feature_names, as_of=as_of)
        attempts = Attempts(self._url, self._retries)
        while True:
            try:
                response = await self._http.post(_PATH, content=content, headers=_HEADERS)
            except httpx.TransportError as error:
                await self._sleep(attempts.failed(error))
                continue
            if (wait_s := attempts.answered(response)) is None:
                return _features_of(response)
            await self._sleep(wait_s)


class Attempts:
    """What to do after each attempt of one reading: answer, wait and ask again, or give up. It sends nothing itself."""

    def __init__(self, url: str, retries: int) -> None:
        self._url = url
        self._left = retries
        self._failures = 0

    def failed(self, error: httpx.TransportError) -> float:
        """Seconds to wait after a call that got no answer; raises StoreUnavailable where it is not to be repeated."""
        if isinstance(error, httpx.TimeoutException):
            raise StoreUnavailable(f"the feature API at {self._url} did not answer in time") from error
        if not self._left:
            raise StoreUnavailable(f"the feature API at {self._url} cannot be reached: {error}") from error
        self._left -= 1
        self._failures += 1
        return 0.05 * float(2 ** (self._failures - 1))

    def answered(self, response: httpx.Response) -> float | None:
        """Seconds to wait before asking again, None where this is the answer; raises what a refusal means."""
        if response.status_code in (429, 503) and self._left:
            self._left -= 1
            self._failures += 1
            return _retry_after_s(response)
        _check(self._url, response)
        return None


def _credentials(api_key: str | None) -> dict[str, str]:
    return {"Authorization": f"Bearer {api_key}"} if api_key else {}


def _content(
    features: str | Sequence[str],
    entities: Mapping[str, Sequence[object]],
    *,
    full_feature_names: bool,
    as_of: datetime | None,
) -> bytes:
    body: dict[str, Any] = {"entities": {name: [_sent(value) for value in values] for name, values in entities.items()}}
    body |= {"feature_service": features} if isinstance(features, str) else {"features": list(features)}
    if full_feature_names:
        body["full_feature_names"] = True
    if as_of is not None:
        if as_of.tzinfo is None:
            raise UsageError("as_of has no time zone; give an aware datetime")
        body["as_of"] = as_of.isoformat()
    try:
        return orjson.dumps(body, option=orjson.OPT_SERIALIZE_NUMPY)
    except orjson.JSONEncodeError as error:
        raise UsageError(f"the entity rows cannot be sent: {error}") from error


def _features_of(response: httpx.Response) -> OnlineFeatures:
    with pa.ipc.open_stream(response.content) as stream:
        return OnlineFeatures(stream.read_all())


def _sent(value: object) -> object:
    """A value as JSON carries it: what has no JSON form goes as the API reads it."""
    if isinstance(value, float) and not math.isfinite(value):
        return "NaN" if math.isnan(value) else "Infinity" if value > 0 else "-Infinity"
    if isinstance(value, bytes):
        return base64.b64encode(value).decode("ascii")
    return [_sent(item) for item in value] if isinstance(value, (list, tuple)) else value


def _retry_after_s(response: httpx.Response) -> float:
    told = response.headers.get("retry-after", "")
    return min(float(told), 10.0) if told.isdecimal() else 1.0


def _check(url: str, response: httpx.Response) -> None:
    if response.status_code == 200:
        return
    try:
        told = orjson.loads(response.content)
        code, message, exists = str(told["code"]), str(told["message"]), list(told["exists"])
    except (orjson.JSONDecodeError, KeyError, TypeError):
        code, message, exists = "unknown", f"{url} answered {response.status_code} without saying why", []
    if response.status_code == 503:
        raise StoreUnavailable(message)
    if response.status_code < 500:
        raise RequestRefused(response.status_code, code, message, exists)
    raise FeatureStoreError(f"{message} (HTTP {response.status_code})")
