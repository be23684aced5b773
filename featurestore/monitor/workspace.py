"""Where does what the monitor knows live? Folders below the deployment's data folder."""

from pathlib import Path

import msgspec

from featurestore.config import Settings
from validation.place import Place


class Workspace(msgspec.Struct, frozen=True, kw_only=True):
    """The monitor's folders and files."""

    served: Path
    """The serve log."""
    skew: Path
    slo: Path
    alerts: Path
    concept: Path
    drift: Path
    profiles: Path
    violations: Place
    """The one that may lie in an object store, beside the events."""
    datasets: Path
    promises: Path
    """What the last look at promises of time and volume found."""


def workspace(settings: Settings) -> Workspace:
    """The folders of a deployment."""
    root = settings.data_dir / "monitor"
    return Workspace(
        served=root / "served",
        skew=root / "skew",
        slo=root / "slo",
        alerts=root / "alerts.json",
        concept=root / "concept",
        drift=root / "drift",
        profiles=settings.data_dir / "profiles",
        violations=settings.violations,
        datasets=settings.data_dir / "datasets",
        promises=settings.promises,
    )
