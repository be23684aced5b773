"""Where does the demo keep its files, and what may it remove there?

Every run starts afresh, since the year is moved to end at another moment. It removes only what a demo made: a file of
its own marks the data folder, and one without that mark but with an event log in it is somebody's work.
"""

import shutil
from collections.abc import Mapping
from pathlib import Path

from featurestore.config import FILE_NAME, Settings, load_settings
from featurestore.errors import ConfigurationError, UsageError
from featurestore.online.server import running

MARK = ".made-by-featurestore-demo"
MADE = (
    "flights",
    "event_log",
    "quarantine",
    "dead_letters",
    "broker",
    "redis",
    "datasets",
    "logs",
    "registry.db",
    "plan.json",
    ".plan.json.lock",
    "signing.key",
)
"""What a demo makes in the data folder."""
PROJECT = "flights"
_FOREIGN = ("FEATURESTORE_REDIS_URL", "FEATURESTORE_API_KEYS", "KAFKA_BOOTSTRAP_SERVERS", "FEATURESTORE_CLOCK_OFFSET_S")
"""Variables that would lead the demo to somebody's servers."""


def own_environ(environ: Mapping[str, str], *, clock_offset_us: int) -> dict[str, str]:
    """The demo's environment: its own servers whatever the shell says, and its clock.

    >>> own_environ({"HOME": "/root", "KAFKA_BOOTSTRAP_SERVERS": "prod:9092"}, clock_offset_us=-1_500_000)
    {'HOME': '/root', 'FEATURESTORE_CLOCK_OFFSET_S': '-1.500000'}
    """
    kept = {name: value for name, value in environ.items() if name not in _FOREIGN}
    seconds, micros = divmod(abs(clock_offset_us), 1_000_000)
    sign = "-" if clock_offset_us < 0 else ""
    return kept | {"FEATURESTORE_CLOCK_OFFSET_S": f"{sign}{seconds}.{micros:06d}"}


def prepare(repo: Path, data: Path | None, environ: Mapping[str, str]) -> Settings:
    """The settings of a repo whose data folder is empty and marked.

    With `data` the repo is copied to `data/feature_repo`, and everything stays below that folder. Raises
    ConfigurationError where there is no repo of the flights project, UsageError where another demo is running in the
    data folder or it holds somebody's work; then nothing has been removed.
    """
    if data is not None:
        load_settings(repo, environ)
        copy = data.absolute() / "feature_repo"
        if copy != repo.absolute():
            shutil.copytree(repo, copy, dirs_exist_ok=True, ignore=shutil.ignore_patterns("__pycache__"))
        repo = copy
    settings = load_settings(repo, environ)
    folder = settings.data_dir
    if settings.project != PROJECT:
        raise ConfigurationError(
            f"{settings.repo / FILE_NAME} is project {settings.project!r}; the demo runs the project {PROJECT!r}: "
            "name its folder with --repo"
        )
    if running(folder):
        raise UsageError(
            f"something uses the embedded server in {folder}, perhaps another demo; stop it, or name --data"
        )
    if (folder / "event_log").exists() and not (folder / MARK).exists():
        raise UsageError(f"{folder} holds an event log that no demo made; name another folder with --data")
    for name in MADE:
        path = folder / name
        if path.is_dir():
            shutil.rmtree(path)
        else:
            path.unlink(missing_ok=True)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / MARK).touch()
    return settings
