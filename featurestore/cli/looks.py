"""Ports of other packages: what `featurestore doctor` looks at, and how `featurestore apply` settles topics."""

from collections.abc import Callable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from featurestore.changes import Settle
    from featurestore.doctor import Looks

LOOKS: "list[Callable[[], Looks]]" = []
"""Filled when the commands of a package are registered; called once `doctor` runs, for what it looks with is slow."""

SETTLES: "list[Callable[[], Settle]]" = []
"""Likewise; what puts on record from which offsets on a plan's definitions judge events."""

NOT_LOOKED_AT = "not looked at: rows, tiles and files as they are stored; `featurestore verify VIEW --online` does"
"""What a command says that tells how things are and reads nothing of what is stored: it does not vouch for it."""
