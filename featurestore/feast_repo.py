"""How do we work inside a Feast repo? Its folder, its modules, its configuration, and its chatter."""

import contextlib
import io
import logging
import os
import sys
import warnings
from collections.abc import Iterator
from pathlib import Path

from feast import FeatureStore
from feast.errors import FeastError
from feast.repo_config import RepoConfig, load_repo_config
from pydantic import ValidationError

from featurestore.config import FILE_NAME, Settings
from featurestore.errors import ConfigurationError

log = logging.getLogger(__name__)


@contextlib.contextmanager
def in_repo(settings: Settings) -> Iterator[None]:
    """Feast resolves modules and paths against the current folder; both are put back, the modules forgotten."""
    here, path, known = Path.cwd(), list(sys.path), set(sys.modules)
    bytecode = sys.dont_write_bytecode
    os.chdir(settings.repo)
    sys.path.insert(0, str(settings.repo))
    sys.dont_write_bytecode = True
    try:
        yield
    finally:
        os.chdir(here)
        sys.path[:] = path
        sys.dont_write_bytecode = bytecode
        for name in set(sys.modules) - known:
            origin = getattr(sys.modules[name], "__file__", None)
            if origin and Path(origin).is_relative_to(settings.repo):
                del sys.modules[name]


def open_store(settings: Settings) -> FeatureStore:
    """Feast's store of the repo, its plug-ins loaded; raises ConfigurationError where one cannot be."""
    try:
        store = FeatureStore(config=_repo_config(settings))
        _ = store.provider.batch_engine  # imported on first use: better now than half-way through
    except (FeastError, ValueError, AttributeError) as error:
        raise ConfigurationError(f"{settings.repo / FILE_NAME}: {error}") from error
    return store


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Feast prints and warns about being alpha; what matters reaches the user as our own lines."""
    with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()) as printed:
        warnings.simplefilter("ignore")
        yield
    if text := printed.getvalue().strip():
        log.debug("feast: %s", text)


@contextlib.contextmanager
def without_repo(repo: Path) -> Iterator[None]:
    """What would be imported if the repo were not on the path?"""
    path = list(sys.path)
    sys.path[:] = [entry for entry in path if Path(entry or ".").resolve() != repo.resolve()]
    try:
        yield
    finally:
        sys.path[:] = path


def _repo_config(settings: Settings) -> RepoConfig:
    """Feast's own view of feature_store.yaml; raises ConfigurationError where Feast refuses it."""
    try:
        return load_repo_config(settings.repo, settings.repo / FILE_NAME)
    except (ValidationError, FeastError, ValueError) as error:
        raise ConfigurationError(f"{settings.repo / FILE_NAME}: {error}") from error
