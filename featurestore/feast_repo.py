"""How do we work inside a Feast repo? Its folder, its modules, its configuration, and its chatter."""

import contextlib
import io
import logging
import os
import sys
import tempfile
import warnings
from collections.abc import Iterator
from pathlib import Path

from feast import FeatureStore
from feast.errors import FeastError
from feast.repo_config import RepoConfig, load_repo_config
from feast.repo_contents import RepoContents
from google.protobuf.message import DecodeError
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
    if store.config.registry.registry_type == "file":
        try:
            _ = store.registry  # read on first use: a damaged one is told from definitions that are refused
        except DecodeError as error:
            raise damaged_registry(store, error) from error
    return store


def stumbles_over_registry(store: FeatureStore, contents: RepoContents) -> bool:
    """Whether definitions that Feast refused are none of the trouble: it takes them where the registry is empty."""
    if store.config.registry.registry_type != "file":
        return False
    with tempfile.TemporaryDirectory(prefix="fs") as folder:
        config = store.config.model_copy(update={"registry_config": str(Path(folder) / "registry.db")})
        config._registry = None  # noqa: SLF001 - made of `registry_config` once, and copied with the rest
        try:
            FeatureStore(config=config).plan(contents)
        except Exception:  # noqa: BLE001 - as where it was refused first: the repo's own functions are called
            return False
    return True


def damaged_registry(store: FeatureStore, error: Exception) -> ConfigurationError:
    """What to say where Feast's registry is not as it was written; nothing is in it that `apply` cannot write again."""
    return ConfigurationError(
        f"Feast's registry {store.config.registry.path} cannot be used, it may be damaged: {error}; move the file "
        "away, then run `featurestore apply`, which makes it again from the definitions"
    )


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
