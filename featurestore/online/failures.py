"""The product's error for each failure of the online store, mapped in one place.

Three kinds are told apart: the store does not answer, it answers and refuses (too few replicas, a failed snapshot, no
memory, still loading, a script that runs), and it refuses this user. Each may pass, so each is a StoreUnavailable.
"""

import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

import redis

from featurestore.errors import StoreDenied, StoreRefused, StoreUnavailable

_CODE: Final = re.compile(r"-?([A-Z][A-Z0-9]{2,30})(?: |$)")
_DENIED: Final = frozenset({"NOPERM", "NOAUTH", "WRONGPASS"})
_LONGEST: Final = 300
_CODES: Final[dict[type[Exception], str]] = {
    redis.exceptions.NoPermissionError: "NOPERM",
    redis.exceptions.AuthenticationError: "WRONGPASS",
    redis.exceptions.AuthorizationError: "NOPERM",
    redis.exceptions.OutOfMemoryError: "OOM",
    redis.exceptions.ReadOnlyError: "READONLY",
    redis.exceptions.BusyLoadingError: "LOADING",
    redis.exceptions.NoScriptError: "NOSCRIPT",
    redis.exceptions.ExecAbortError: "EXECABORT",
    redis.exceptions.TryAgainError: "TRYAGAIN",
    redis.exceptions.MasterDownError: "MASTERDOWN",
    redis.exceptions.ClusterDownError: "CLUSTERDOWN",
    redis.exceptions.ClusterCrossSlotError: "CROSSSLOT",
    redis.exceptions.MovedError: "MOVED",
    redis.exceptions.AskError: "ASK",
}
"""The client library cuts these words off a reply and raises a class of its own instead."""
_PASSED: Final = (redis.exceptions.NoScriptError, redis.exceptions.DataError, redis.exceptions.WatchError)
"""Answered where they are raised: load the script, correct the call, try the transaction again."""


@contextmanager
def mapped(address: str) -> Iterator[None]:
    """Raise StoreUnavailable, StoreRefused or StoreDenied for what the client library raises inside.

    A missing script (NoScriptError) passes: the caller loads it and calls again.
    """
    try:
        yield
    except _PASSED:
        raise
    except (redis.exceptions.RedisError, redis.exceptions.RedisClusterException) as error:
        raise failure(address, error) from error


def failure(address: str, error: Exception) -> StoreUnavailable:
    """The product's error for an exception of the client library.

    >>> failure("redis://cache", redis.exceptions.ResponseError("NOREPLICAS Not enough good replicas")).code
    'NOREPLICAS'
    >>> type(failure("redis://cache", redis.exceptions.ConnectionError("refused"))).__name__
    'StoreUnavailable'
    """
    known = next((_CODES[kind] for kind in type(error).__mro__ if kind in _CODES), "")
    # A pipeline's error repeats the command, and with it the values that were written.
    text = str(error).rpartition("of pipeline caused error: ")[2]
    if known or isinstance(error, redis.exceptions.ResponseError):
        return refusal(address, text if not known or text.startswith(known) else f"{known} {text}")
    return StoreUnavailable(
        f"the online store at {address} does not answer ({text[:_LONGEST]}); `featurestore doctor` says what to check"
    )


def refusal(address: str, reply: str) -> StoreRefused:
    """The product's error for an error reply of the store.

    >>> str(refusal("redis://cache", "OOM command not allowed when used memory > 'maxmemory'."))
    "the online store at redis://cache refused a command: OOM command not allowed when used memory > 'maxmemory'."
    """
    found = _CODE.match(reply)
    code = found[1] if found else "ERR"
    told = reply[:_LONGEST]
    if code in _DENIED:
        return StoreDenied(
            f"the online store at {address} refused the user or password ({told}); "
            "check `connection` in feature_store.yaml and the user's permissions",
            code,
        )
    return StoreRefused(f"the online store at {address} refused a command: {told}", code)
