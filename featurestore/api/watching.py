"""The loop that keeps plan, API keys and issuer keys current, and how long ago each was last seen.

Each look stands for itself: one that fails, whatever it raises, is logged and counted, and the others go on. Readiness
asks how old the last good look is: a process that has not seen the keys for long cannot know which were revoked.
"""

import asyncio
import logging
import time
from collections.abc import Callable, Mapping

from featurestore.api.metrics import Metrics
from featurestore.errors import StaleStore
from validation.errors import PlatformError

LONGEST_BLIND_S = 30.0
"""How old the last good look may be before the process says that it is not ready."""
_log = logging.getLogger(__name__)


class Watching:
    """Looks by name, each run once a round."""

    def __init__(
        self,
        looks: Mapping[str, Callable[[], None]],
        metrics: Metrics,
        *,
        longest_blind_s: float = LONGEST_BLIND_S,
        monotonic_s: Callable[[], float] = time.monotonic,
    ) -> None:
        self._looks = dict(looks)
        self._metrics = metrics
        self._longest_blind_s = longest_blind_s
        self._monotonic_s = monotonic_s
        self._good_s = dict.fromkeys(self._looks, monotonic_s())
        self._trouble: dict[str, str] = {}

    def look(self) -> None:
        """Run every look once; never raises an Exception."""
        for name, look in self._looks.items():
            try:
                look()
            except Exception as error:  # noqa: BLE001 - a look's outermost frame: the next round may succeed
                self._failed(name, error)
            else:
                self._good_s[name] = self._monotonic_s()
                if self._trouble.pop(name, None) is not None:
                    _log.info("%s: looked up again", name)

    async def run(self, every_s: float) -> None:
        """Look over and over until cancelled; in a thread, since a look may wait for a store."""
        while True:
            await asyncio.sleep(every_s)
            try:
                await asyncio.to_thread(self.look)
                self._metrics.fold()
            except Exception:  # noqa: BLE001 - the loop's outermost frame
                _log.exception("a round of looks failed")

    def check(self) -> None:
        """Raise StaleStore where the last good look of any kind is older than the bound."""
        now_s = self._monotonic_s()
        for name, good_s in self._good_s.items():
            if now_s - good_s > self._longest_blind_s:
                raise StaleStore(
                    f"{name} could not be looked up for {now_s - good_s:.0f} s, {self._longest_blind_s:g} s are "
                    "allowed; the log says why"
                )

    def _failed(self, name: str, error: Exception) -> None:
        self._metrics.look_failed(name)
        told = f"{type(error).__name__}: {error}"
        if told != self._trouble.get(name):
            foreseen = isinstance(error, PlatformError)
            _log.warning("%s not renewed: %s", name, error if foreseen else told, exc_info=not foreseen)
        self._trouble[name] = told
