"""Which folders does a command mean where none is named?"""

from pathlib import Path
from typing import Final

CONTRACTS: Final = Path("feature_repo/contracts")
QUARANTINE: Final = Path("data/quarantine")
VIOLATIONS: Final = Path("data/violations")
REPLAYS: Final = Path("data/replays")
PROFILES: Final = Path("data/profiles")
PLAN: Final = Path("data/plan.json")
_INSIDE: Final = {
    CONTRACTS: Path("contracts"),
    QUARANTINE: Path("../data/quarantine"),
    VIOLATIONS: Path("../data/violations"),
    REPLAYS: Path("../data/replays"),
    PROFILES: Path("../data/profiles"),
    PLAN: Path("../data/plan.json"),
}


def here(folder: Path) -> Path:
    """The folder; run inside the feature repo, a default one is found from there."""
    inside = _INSIDE.get(folder)
    return inside if inside is not None and not folder.exists() and Path("feature_store.yaml").exists() else folder
