"""Which training sets were made for a service?"""

from collections.abc import Sequence
from pathlib import Path

from featurestore.dataset.manifest import Manifest, manifests
from featurestore.plan import Service


def training_sets(folder: Path, service: Service) -> Sequence[Manifest]:
    """Those made of the service by name, or of all its features; by name."""
    asked = {f"{each.view}:{feature}" for each in service.projections for feature in each.features}
    return [
        found
        for found in manifests(folder)
        if found.features == (f"service:{service.name}",) or asked <= set(found.features)
    ]
