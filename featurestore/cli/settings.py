"""Which feature repo does a command mean?"""

import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from featurestore.config import Settings

Repo = Annotated[Path, typer.Option("--repo", help="The feature repo: the folder of feature_store.yaml.")]
HERE = Path("feature_repo")
"""What a command takes where no repo is named; run inside a repo, it is the current folder."""


def settings_of(repo: Path) -> "Settings":
    """The settings of a repo under this process's environment."""
    # Imported here: `featurestore --help` reads no configuration and must not wait for what does.
    from featurestore.config import FILE_NAME, load_settings

    if repo == HERE and not (repo / FILE_NAME).exists() and Path(FILE_NAME).exists():
        repo = Path()
    return load_settings(repo, os.environ)
