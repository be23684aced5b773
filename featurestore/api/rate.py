"""May this caller ask again already? A token bucket for each caller of one worker."""

from collections.abc import Callable

from featurestore.api.faults import Refused
from featurestore.errors import ConfigurationError

VARIABLE = "FEATURESTORE_API_RATE"
BURST_S = 2.0
"""A bucket holds what its rate gives in this time, and one request at least."""
_BUCKETS = 10_000


class RateLimit:
    """Lets `rate_per_s` requests a second of each caller through, in bursts of two seconds' worth.

    Each worker counts what it answers: a service of n workers hands each a limit of 1/n. None limits nobody who has no
    rate of their own.
    """

    def __init__(self, rate_per_s: float | None, *, workers: int = 1, monotonic_s: Callable[[], float]) -> None:
        self._rate_per_s = rate_per_s
        self._workers = workers
        self._monotonic_s = monotonic_s
        self._buckets: dict[str, tuple[float, float]] = {}

    def take(self, name: str, own_per_s: float | None) -> None:
        """Counts one request of a caller; raises Refused (429), saying when to ask again.

        >>> now = iter([0.0, 0.0, 0.0, 1.0])
        >>> limit = RateLimit(1.0, monotonic_s=lambda: next(now))
        >>> limit.take("k", None), limit.take("k", None)
        (None, None)
        """
        rate_per_s = self._rate_per_s if own_per_s is None else own_per_s
        if rate_per_s is None:
            return
        rate_per_s /= self._workers
        most = max(1.0, rate_per_s * BURST_S)
        now_s = self._monotonic_s()
        held, since_s = self._buckets.get(name, (most, now_s))
        held = min(most, held + (now_s - since_s) * rate_per_s)
        if held < 1.0:
            self._buckets[name] = (held, now_s)
            wait_s = (1.0 - held) / rate_per_s
            raise Refused(
                429,
                "rate_limited",
                f"more than {rate_per_s * self._workers:g} requests a second; ask again in {wait_s:.3g} s",
                {"Retry-After": str(max(1, -int(-wait_s // 1)))},
            )
        if len(self._buckets) >= _BUCKETS:
            self._buckets.clear()
        self._buckets[name] = (held - 1.0, now_s)


def rate_of(text: str | None) -> float | None:
    """The rate that FEATURESTORE_API_RATE says, in requests a second; None without one.

    >>> rate_of("100"), rate_of("")
    (100.0, None)
    """
    if not text:
        return None
    try:
        rate_per_s = float(text)
    except ValueError:
        rate_per_s = 0.0
    if not 0 < rate_per_s < 1e9:
        raise ConfigurationError(f"{VARIABLE} is {text!r}; expected requests a second, as in 200")
    return rate_per_s
