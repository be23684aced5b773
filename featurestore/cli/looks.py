"""What do other packages look at when `featurestore doctor` runs?"""

from collections.abc import Callable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from featurestore.doctor import Looks

LOOKS: "list[Callable[[], Looks]]" = []
"""Filled when the commands of a package are registered; called once `doctor` runs, for what it looks with is slow."""
