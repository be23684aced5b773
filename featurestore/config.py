"""How is this deployment set up? `feature_store.yaml`, read without Feast.

Processes that serve or consume need the project's name, the online store's address and the data folder, and may
not pay for importing Feast. Where Feast leaves an unset `${VARIABLE}` as literal text, this module refuses it.
"""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import msgspec
import yaml

from featurestore.errors import ConfigurationError
from validation.place import Place, is_address, place_of
from validation.redaction import redacted_url

FILE_NAME = "feature_store.yaml"
EMBEDDED = "embedded"
SCHEMES = (
    *("redis", "rediss", "unix"),
    *("redis+sentinel", "rediss+sentinel", "redis+cluster", "rediss+cluster"),
)
EVENTS_URL = "FEATURESTORE_EVENTS_URL"
_VARIABLE = re.compile(r"\$\{?([A-Za-z_][A-Za-z0-9_]*)\}?")


class OnlineSettings(msgspec.Struct, frozen=True, kw_only=True):
    """Where the online store listens: "embedded", or an address of one of SCHEMES."""

    url: str = EMBEDDED


class OfflineSettings(msgspec.Struct, frozen=True, kw_only=True):
    """What joins may use; None leaves the choice to DuckDB."""

    memory_limit: str | None = None
    temp_dir: Path | None = None
    threads: int | None = None


class Settings(msgspec.Struct, frozen=True, kw_only=True):
    """What a process must know before it can load the Plan."""

    repo: Path
    """The feature repo: the folder of feature_store.yaml, absolute."""
    project: str
    data_dir: Path
    """Where the registry, the Plan, the embedded server and the event log live; absolute."""
    online: OnlineSettings
    offline: OfflineSettings = OfflineSettings()
    bootstrap_servers: str | None = None
    """KAFKA_BOOTSTRAP_SERVERS; it overrides what the sources declare."""
    clock_offset_us: int = 0
    events_url: str | None = None
    """FEATURESTORE_EVENTS_URL: where events live, and what is told of them, instead of the data folder
    (`s3://BUCKET/PREFIX`)."""

    @property
    def plan_path(self) -> Path:
        """The Plan as a file, beside the one in the online store."""
        return self.data_dir / "plan.json"

    @property
    def event_log(self) -> Place:
        """The folder of the event logs, one folder a topic."""
        return self._events / "event_log"

    @property
    def quarantine(self) -> Place:
        """The folder of rows that were set aside, one folder a source."""
        return self._events / "quarantine"

    @property
    def violations(self) -> Place:
        """The folder of violations of contracts, one file a source."""
        return self._events / "violations"

    @property
    def schemas(self) -> Place:
        """The folder of what a registry said first of each schema's id."""
        return self._events / "schemas"

    @property
    def dead_letters(self) -> Place:
        """The folder of the cursors of dead letters, one folder a topic."""
        return self._events / "dead_letters"

    @property
    def _events(self) -> Place:
        return self.data_dir if self.events_url is None else place_of(self.events_url)

    @property
    def promises(self) -> Path:
        """The folder of what the last looks at promises of time and volume found, one file a source."""
        return self.data_dir / "promises"


def load_settings(repo: Path, environ: Mapping[str, str]) -> Settings:
    """The settings of the feature repo in that folder.

    Raises ConfigurationError where the file is missing, is not YAML, names an unset variable or an address of an
    unknown kind.
    """
    path = repo.absolute() / FILE_NAME
    raw = _read(path, environ)
    project = raw.get("project")
    if not isinstance(project, str) or not project:
        raise ConfigurationError(f"{path}: no `project`; give the project a name")
    online = raw.get("online_store")
    declared = online.get("connection", EMBEDDED) if isinstance(online, dict) else EMBEDDED
    url = online_url(declared, environ)
    return Settings(
        repo=path.parent,
        project=project,
        data_dir=data_dir(path.parent, raw.get("registry")),
        online=OnlineSettings(url=_checked_url(path, url)),
        offline=_offline(path, raw.get("offline_store")),
        bootstrap_servers=environ.get("KAFKA_BOOTSTRAP_SERVERS") or None,
        clock_offset_us=clock_offset_us(environ),
        events_url=events_url(environ),
    )


def online_url(declared: object, environ: Mapping[str, str]) -> object:
    """The online store's address: FEATURESTORE_REDIS_URL where it is set, else what the repo declares.

    One repo serves the laptop (embedded) and production (the address and its password come from the environment).

    >>> online_url("embedded", {"FEATURESTORE_REDIS_URL": "redis://cache:6379/0"})
    'redis://cache:6379/0'
    """
    return environ.get("FEATURESTORE_REDIS_URL") or declared


def events_url(environ: Mapping[str, str]) -> str | None:
    """FEATURESTORE_EVENTS_URL without a slash at its end; None where it is not set. Raises ConfigurationError.

    >>> events_url({"FEATURESTORE_EVENTS_URL": "s3://bucket/prod/"})
    's3://bucket/prod'
    """
    url = environ.get(EVENTS_URL)
    if not url:
        return None
    if not is_address(url):
        raise ConfigurationError(
            f"{EVENTS_URL} is {redacted_url(url)!r}; expected s3://BUCKET/PREFIX, or none for the data folder"
        )
    return url.rstrip("/")


def data_dir(repo: Path, registry: object) -> Path:
    """The folder of a file registry, else `data` in the repo.

    >>> data_dir(Path("/team/feature_repo"), "../data/registry.db").as_posix()
    '/team/data'
    >>> data_dir(Path("/team/feature_repo"), {"registry_type": "sql", "path": "postgresql://db/feast"}).as_posix()
    '/team/feature_repo/data'
    """
    path = registry.get("path") if isinstance(registry, dict) else registry
    if not isinstance(path, str) or "://" in path:
        return repo / "data"
    return Path(*_normal((repo / path).parent.parts))


def unset_variables(text: str, environ: Mapping[str, str]) -> list[str]:
    """The variables that a configuration text names and the environment lacks, in order.

    >>> unset_variables("a: ${HOME_DIR}/x", {})
    ['HOME_DIR']
    """
    live = "\n".join(line.split(" #")[0] for line in text.splitlines() if not line.lstrip().startswith("#"))
    return list(dict.fromkeys(name for name in _VARIABLE.findall(live) if name not in environ))


def _read(path: Path, environ: Mapping[str, str]) -> dict[str, Any]:
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise ConfigurationError(
            f"no {FILE_NAME} in {path.parent}; run in a feature repo or name one with --repo"
        ) from None
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigurationError(f"{path} cannot be read: {error}") from error
    if missing := unset_variables(text, environ):
        raise ConfigurationError(f"{path} names {', '.join(missing)}, which the environment does not set; export it")
    try:
        raw = yaml.safe_load(_VARIABLE.sub(lambda match: environ[match[1]], text))
    except yaml.YAMLError as error:
        raise ConfigurationError(f"{path} is not YAML: {' '.join(str(error).split())}") from error
    if not isinstance(raw, dict):
        raise ConfigurationError(f"{path}: expected a mapping, found {type(raw).__name__}")
    return raw


def _offline(path: Path, declared: object) -> OfflineSettings:
    stated = declared if isinstance(declared, dict) else {}
    memory, folder, threads = (stated.get(name) for name in ("memory_limit", "temp_directory", "threads"))
    if not isinstance(memory, str | None) or not isinstance(folder, str | None) or not isinstance(threads, int | None):
        raise ConfigurationError(
            f"{path}: offline_store takes memory_limit ('6GB') and temp_directory as text and threads as a number; "
            f"found {memory!r}, {folder!r} and {threads!r}"
        )
    return OfflineSettings(
        memory_limit=memory, temp_dir=None if folder is None else path.parent / folder, threads=threads
    )


def _checked_url(path: Path, url: object) -> str:
    if url == EMBEDDED or (isinstance(url, str) and urlsplit(url).scheme in SCHEMES):
        return str(url)
    known = ", ".join([EMBEDDED, *(f"{scheme}://…" for scheme in SCHEMES)])
    raise ConfigurationError(f"{path}: online_store.connection is {redacted_url(str(url))!r}; expected one of {known}")


def clock_offset_us(environ: Mapping[str, str]) -> int:
    """How far this deployment's clock is from the machine's (FEATURESTORE_CLOCK_OFFSET_S): a replay lives in the past.

    >>> clock_offset_us({"FEATURESTORE_CLOCK_OFFSET_S": "-1.5"})
    -1500000
    """
    text = environ.get("FEATURESTORE_CLOCK_OFFSET_S") or "0"
    try:
        return round(float(text) * 1_000_000)
    except (ValueError, OverflowError):
        raise ConfigurationError(f"FEATURESTORE_CLOCK_OFFSET_S is {text!r}; expected seconds") from None


def _normal(parts: tuple[str, ...]) -> list[str]:
    kept: list[str] = []
    for part in parts:
        if part == ".." and kept and kept[-1] not in ("/", ".."):
            kept.pop()
        else:
            kept.append(part)
    return kept
