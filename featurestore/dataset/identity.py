"""What does a source hold, so that a later reader can tell whether it still does?"""

from collections.abc import Iterable, Sequence
from pathlib import Path

from featurestore.dataset.digest import file_digest, multiset_digest
from featurestore.dataset.manifest import FileIdentity, SourceIdentity
from featurestore.errors import SourceError
from featurestore.offline.event_log import OffsetRange, event_files, read_events
from featurestore.offline.lake import snapshot_of
from featurestore.offline.sources import place_at, plain_files
from featurestore.plan import Source
from validation.file_check import damage
from validation.place import Place


def identify(source: Source, repo: Path, *, like: SourceIdentity | None = None) -> SourceIdentity:
    """The identity of a source as it is now; raises SourceError where nothing is there.

    A source with a table is one of Delta Lake or Iceberg, one with a topic an event log, unless its files have other
    names than a log's; any other is a file or a folder of Parquet files. `like` looks at what that identity pins alone:
    its offsets, or its snapshot.
    """
    path = repo / source.path
    if source.table is not None:
        at = None if like is None or like.kind != "table" else like.snapshot
        found = snapshot_of(source.table, source.path, repo=repo, name=f"source {source.name!r}", snapshot=at)
        return SourceIdentity(
            name=source.name, path=source.path, kind="table", table=found.table, snapshot=found.snapshot
        )
    place = place_at(source.path, repo)
    if source.topic is not None and not plain_files(place):
        return _event_log(source, place, None if like is None or like.kind != "event log" else like.ranges)
    files = sorted(path.rglob("*.parquet")) if path.is_dir() else [path]
    if not path.exists() or not files:
        raise SourceError(f"source {source.name!r}: nothing at {path}; land the data, or mend the path")
    return SourceIdentity(
        name=source.name, path=source.path, kind="files", files=tuple(_file(file, repo) for file in files)
    )


def changes(before: SourceIdentity, source: Source, repo: Path) -> list[str]:
    """What of the pinned source is no longer what it was, a line each; empty where all is."""
    try:
        now = identify(source, repo, like=before)
    except SourceError as error:
        return [str(error)]
    return differences(before, now)


def differences(before: SourceIdentity, now: SourceIdentity) -> list[str]:
    """What changed between two identities of one source, a line each; empty where nothing did."""
    if before.kind != now.kind:
        return [f"source {before.name}: it was {before.kind} and is {now.kind}"]
    if before.kind == "table":
        if (before.table, before.snapshot) != (now.table, now.snapshot):
            return [f"source {before.name}: another table took its place"]
        return []
    if before.kind == "event log":
        if before.rows_digest != now.rows_digest or before.ranges != now.ranges:
            return [f"source {before.name}: the events at the pinned offsets are not what they were"]
        return []
    old, new = ({file.path: file for file in each.files} for each in (before, now))
    lines = [f"source {before.name}: {path} is gone" for path in old.keys() - new.keys()]
    lines += [f"source {before.name}: {path} is new" for path in new.keys() - old.keys()]
    lines += [f"source {before.name}: {path} changed" for path in old.keys() & new.keys() if old[path] != new[path]]
    return sorted(lines)


def merged(ranges: Iterable[OffsetRange]) -> tuple[OffsetRange, ...]:
    """The same offsets as the fewest ranges, sorted.

    >>> merged([OffsetRange("t", 0, 5, 9), OffsetRange("t", 0, 0, 6)])
    (OffsetRange(topic_id='t', partition=0, first=0, last=9),)
    """
    out: list[OffsetRange] = []
    for each in sorted(ranges):
        last = out[-1] if out else None
        if last and (last.topic_id, last.partition) == (each.topic_id, each.partition) and each.first <= last.last + 1:
            out[-1] = OffsetRange(each.topic_id, each.partition, last.first, max(last.last, each.last))
        else:
            out.append(each)
    return tuple(out)


def _event_log(source: Source, path: Place, within: Sequence[OffsetRange] | None) -> SourceIdentity:
    _refuse_damaged(source, path, within)
    rows = read_events(path, within=within)
    ranges = merged(file.range for file in event_files(path)) if within is None else tuple(within)
    return SourceIdentity(
        name=source.name, path=source.path, kind="event log", ranges=ranges, rows_digest=multiset_digest(rows)
    )


def _refuse_damaged(source: Source, folder: Place, within: Sequence[OffsetRange] | None) -> None:
    """Raise SourceError where a file whose events are asked for is not as it was written."""
    for file in event_files(folder):
        if within is not None and not any(_overlap(file.range, each) for each in within):
            continue
        try:
            found = damage(file.path)
        except OSError as error:
            raise SourceError(f"source {source.name!r}: {file.path} cannot be read: {error}") from error
        if found:
            raise SourceError(f"source {source.name!r}: {found}; restore it from a backup")


def _overlap(one: OffsetRange, other: OffsetRange) -> bool:
    alike = (one.topic_id, one.partition) == (other.topic_id, other.partition)
    return alike and one.first <= other.last and other.first <= one.last


def _file(path: Path, repo: Path) -> FileIdentity:
    root = repo.parent
    shown = path.resolve().relative_to(root.resolve()) if path.resolve().is_relative_to(root.resolve()) else path
    return FileIdentity(path=str(shown), size_bytes=path.stat().st_size, sha256=file_digest(str(path)))
