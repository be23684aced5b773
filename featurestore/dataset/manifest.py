"""What exactly is this training set made of? The manifest that lies beside its Parquet files."""

import re
from pathlib import Path
from typing import Literal

import msgspec

from featurestore.errors import SourceError, UnknownName, UsageError
from featurestore.offline.event_log import OffsetRange
from validation.printable import printable
from validation.verdict import Verdict

FILE_NAME = "manifest.json"
_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,199}")


def set_folder(folder: Path, name: str) -> Path:
    """Where the training set of a name lies; raises UsageError for a name that leads out of the folder.

    >>> set_folder(Path("data/datasets"), "delays-2013.v2").as_posix()
    'data/datasets/delays-2013.v2'
    """
    if not _NAME.fullmatch(name):
        raise UsageError(
            f"training set name {printable(name, most=80)!r}: expected 1 to 200 letters, digits or one of ._-, "
            "no dot first"
        )
    return folder / name


class FileIdentity(msgspec.Struct, frozen=True, kw_only=True):
    """One file of a source; the path is relative to the feature repo where it lies below the project."""

    path: str
    size_bytes: int
    sha256: str


class SourceIdentity(msgspec.Struct, frozen=True, kw_only=True):
    """What a source held when it was read.

    Files are pinned one by one. An event log is pinned by offset ranges and a digest that ignores the order of rows,
    so that compacting its files changes nothing and appended events are not read again. A table of Delta Lake or
    Iceberg is pinned by a snapshot, which never changes and is read for as long as the table keeps it.
    """

    name: str
    path: str
    kind: Literal["files", "event log", "table"]
    files: tuple[FileIdentity, ...] = ()
    ranges: tuple[OffsetRange, ...] = ()
    rows_digest: str = ""
    table: str = ""
    """The identity of a table of Delta Lake or Iceberg, which another of its name does not have."""
    snapshot: str = ""


class Split(msgspec.Struct, frozen=True, kw_only=True):
    """How rows become parts: by time, by a hash of the entity, or both; neither keeps them together as `all`.

    With both, train is early rows of train entities and test late rows of test entities; the rest is left out, since
    an entity or a period that both parts share would leak.
    """

    cutoff_us: int | None = None
    """Rows at or after it are test."""
    entity_fraction: float | None = None
    """The share of entities in train, by hash."""
    seed: int = 0


class ColumnSummary(msgspec.Struct, frozen=True, kw_only=True):
    """One column of the set, over all parts."""

    name: str
    dtype: str
    rows: int
    nulls: int


class Part(msgspec.Struct, frozen=True, kw_only=True):
    """One Parquet file of the set."""

    name: str
    file: str
    rows: int
    digest: str


class Manifest(msgspec.Struct, frozen=True, kw_only=True):
    """Everything needed to rebuild a training set and to name what changed where that gives another."""

    name: str
    project: str
    created_us: int
    plan_version: int
    definitions: dict[str, str]
    """View -> SHA-256 of its compiled definition, on-demand views included."""
    features: tuple[str, ...]
    """Feature references, or one `service:NAME`."""
    full_feature_names: bool
    as_known: bool
    timestamp_column: str
    entity_rows: FileIdentity
    """The entity rows are kept beside the manifest; the digest is of their values."""
    sources: tuple[SourceIdentity, ...]
    split: Split
    parts: tuple[Part, ...]
    columns: tuple[ColumnSummary, ...]
    contracts: tuple[Verdict, ...] | None = None
    """What each contract said of the joined rows, those that were taken out included; None where none was asked."""
    quarantined: int = 0
    """Rows that contracts took out of the set; they are kept in quarantine."""
    versions: dict[str, str]
    """Library -> version; they explain a difference, they are not part of the identity."""

    def write(self, folder: Path) -> None:
        """Puts the manifest in place; it is the last file of a set, so that a set with one is whole."""
        draft = folder / f".{FILE_NAME}"
        draft.write_bytes(msgspec.json.format(msgspec.json.encode(self), indent=2))
        draft.replace(folder / FILE_NAME)


def read_manifest(folder: Path) -> Manifest:
    """The manifest of the set in that folder; raises UnknownName naming the sets that exist, SourceError where torn."""
    path = folder / FILE_NAME
    if not path.exists():
        raise UnknownName("training set", folder.name, [found.name for found in manifests(folder.parent)])
    try:
        return msgspec.json.decode(path.read_bytes(), type=Manifest)
    except (msgspec.MsgspecError, UnicodeDecodeError) as error:
        raise SourceError(f"{path} cannot be read: {error}; build the set again") from error


def manifests(root: Path) -> list[Manifest]:
    """The training sets under a folder, by name; unfinished ones have no manifest and do not count."""
    return [read_manifest(path.parent) for path in sorted(root.glob(f"*/{FILE_NAME}"))]
