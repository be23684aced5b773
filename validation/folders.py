"""Which folders does a command mean where none is named?"""

from collections.abc import Mapping
from pathlib import Path
from typing import Final

from validation.place import Place, place_of

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


def place_here(folder: Path, environ: Mapping[str, str]) -> Place:
    """As `here`; QUARANTINE and VIOLATIONS are in an object store where FEATURESTORE_EVENTS_URL says so.

    >>> place_here(QUARANTINE, {"FEATURESTORE_EVENTS_URL": "s3://bucket/prod"})
    ObjectPath('s3://bucket/prod/quarantine')
    >>> place_here(Path("s3://bucket/elsewhere"), {})
    ObjectPath('s3://bucket/elsewhere')
    """
    if folder in (QUARANTINE, VIOLATIONS) and (url := environ.get("FEATURESTORE_EVENTS_URL")):
        return place_of(url) / folder.name
    scheme, colon, rest = str(folder).partition(":/")
    # A Path makes one slash of two.
    return place_of(f"{scheme}://{rest}") if colon else here(folder)
