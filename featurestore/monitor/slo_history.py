"""Which cases of each objective are known? One small JSON file a day, view and indicator, written whole.

A day that is measured again, since rows came late, replaces what was known of it.
"""

from collections.abc import Iterable
from pathlib import Path
from typing import Final
from urllib.parse import quote

import msgspec
import numpy as np

from featurestore.errors import SourceError
from featurestore.monitor.slo import BUDGET_US, Budget, Cases, Objective, budget
from validation.whole_file import replace_file

DAY_US: Final = 86_400_000_000


class SloHistory:
    """The measured cases below one folder."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def put(self, objective: Objective, day_us: int, cases: Iterable[Cases]) -> None:
        """Keeps the cases of one UTC day, in place of earlier ones."""
        replace_file(self._path(objective, day_us), msgspec.json.encode(list(cases)))

    def budget(self, objective: Objective, now_us: int) -> Budget:
        """How an objective stands; raises SourceError for a torn file."""
        days = range((now_us - BUDGET_US) // DAY_US * DAY_US, now_us + 1, DAY_US)
        return budget(objective, [case for day in days for case in self._read(self._path(objective, day))], now_us)

    def _path(self, objective: Objective, day_us: int) -> Path:
        day = np.datetime64(day_us // DAY_US, "D")
        return self._folder / f"day={day}" / f"{quote(objective.view, safe='')}-{objective.indicator}.json"

    def _read(self, path: Path) -> list[Cases]:
        try:
            return msgspec.json.decode(path.read_bytes(), type=list[Cases])
        except FileNotFoundError:
            return []
        except (OSError, msgspec.MsgspecError) as error:
            raise SourceError(f"{path}: measured cases cannot be read: {error}; remove it, the day is lost") from error
