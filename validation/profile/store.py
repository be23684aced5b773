"""Where is the history of profiles kept? Parquet files, one for each source of rows, below one folder.

    <folder>/baselines/<id>.json
    <folder>/<boundary>/<baseline id>/<source id>.parquet      one row: a feature, segment and hour

A source id names what was profiled (a file's digest, a partition's offset range): putting it again replaces its file,
so that a repeat counts once and a process that crashed may start over. An hour is the sum of all sources that have rows
in it: late rows come as another source and change history when it is read. Files are put whole, by renaming. Of sources
that are ranges of a log's offsets (`ranges`) those count that lie within no other.
"""

import hashlib
import re
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, Final

import msgspec
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from validation.errors import did_you_mean
from validation.file_check import UNSEALED, damage, sealed
from validation.instant import to_us
from validation.profile.baseline import Baseline, ProfileError
from validation.profile.cohorts import of_kept_cohorts
from validation.profile.entities import FIELDS, Entities
from validation.profile.profile import Profile, merge
from validation.profile.ranges import each_offset_once
from validation.whole_file import replace_file

SCHEMA: Final = pa.schema(
    [
        *(pa.field(name, pa.string()) for name in ("feature", "baseline", "segment", "boundary")),
        pa.field("hour", pa.timestamp("us", "UTC")),
        *(pa.field(name, pa.int64()) for name in ("rows", "nulls", "nans", "above", "below")),
        *(pa.field(name, pa.float64()) for name in ("low", "high")),
        # Sums of squares outgrow every integer type of a file: they are decimal text.
        *(pa.field(name, pa.string()) for name in ("total", "squares")),
        pa.field("codes", pa.list_(pa.int32())),
        pa.field("counts", pa.list_(pa.int64())),
        pa.field("new", pa.list_(pa.struct([("value", pa.string()), ("count", pa.int64())]))),
        pa.field("cells", pa.list_(pa.int64())),
        pa.field("registers", pa.binary()),
        # Since layout 2; files of layout 1 have none, and say so.
        pa.field("seen", pa.list_(pa.uint32())),
        pa.field("seen_counts", pa.list_(pa.int64())),
        pa.field("sums", pa.list_(pa.int64())),
        # Since layout 3.
        pa.field("most_entities", pa.int64()),
        pa.field("entities", pa.list_(pa.uint64())),
        pa.field("entity_counts", pa.list_(pa.int64())),
    ],
    metadata={"profiles": "3"},
)
_OTHERWISE: Final = {"hour", "most_entities", "entities", "entity_counts"}
_REPLACES: Final = "replaces"
_ATTEMPTS: Final = 20
_SAFE: Final = re.compile(r"[A-Za-z0-9._=-]{1,200}")


class ProfileStore:
    """Profiles below one folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = Path(folder)

    def put_baseline(self, baseline: Baseline) -> str:
        """Keeps a baseline; its id."""
        path = self.folder / "baselines" / f"{baseline.id}.json"
        if not path.exists():
            replace_file(path, msgspec.json.encode(baseline))
        return baseline.id

    def baseline(self, baseline_id: str) -> Baseline:
        """The baseline of that id, which is its content's digest; raises ProfileError naming those that exist."""
        path = self.folder / "baselines" / f"{baseline_id}.json"
        if not path.exists():
            known = self.baselines()
            raise ProfileError(f"{self.folder}: no baseline {baseline_id!r}; {did_you_mean(baseline_id, known)}")
        data = path.read_bytes()
        if (digest := hashlib.sha256(data).hexdigest()[: len(baseline_id)]) != baseline_id:
            raise ProfileError(
                f"the baseline {path} is not what was written, its digest is {digest}; restore it from a backup, or "
                "make a baseline anew"
            )
        return msgspec.json.decode(data, type=Baseline)

    def baselines(self) -> list[str]:
        """The ids of all baselines, by name."""
        return sorted(path.stem for path in (self.folder / "baselines").glob("[!.]*.json"))

    def put(
        self,
        source_id: str,
        profiles: Iterable[Profile],
        *,
        boundary: str,
        baseline: Baseline,
        replaces: Sequence[str] = (),
    ) -> Path:
        """Keeps what one source of rows looked like, instead of what was kept of it before; the file.

        Sources that it `replaces` do not count any more, though their files may still be there (see `fold`).

        Of each feature, segment and hour one profile; several are merged. Of a column with very many cohorts some are
        kept, see `cohorts`.
        """
        for kind, text in (("source id", source_id), ("boundary", boundary)):
            if not _SAFE.fullmatch(text):
                raise ProfileError(f"{kind} {text!r}: allowed are 1 to 200 of A-Z a-z 0-9 . _ = -")
        self.put_baseline(baseline)
        path = self.folder / boundary / baseline.id / f"{source_id}.parquet"
        rows = [_row(profile, boundary) for profile in _by_hour(profiles)]
        file = pa.BufferOutputStream()
        schema = SCHEMA.with_metadata({**SCHEMA.metadata, _REPLACES: msgspec.json.encode(list(replaces))})
        with pq.ParquetWriter(file, schema, compression="zstd") as writer:
            writer.write_table(pa.Table.from_pylist(rows, schema=schema))
            writer.add_key_value_metadata(UNSEALED)
        replace_file(path, sealed(file.getvalue().to_pybytes()))
        return path

    def paths(self, boundary: str) -> list[Path]:
        """The files of a boundary, on whatever baseline, those included that are no longer needed."""
        return sorted((self.folder / boundary).glob("*/[!.]*.parquet"))

    def of_file(self, path: Path) -> list[Profile]:
        """What one of the files keeps."""
        return [_profile(row) for row in read_file(path)[1].to_pylist()]

    def read(
        self,
        *,
        boundary: str,
        baseline: str,
        start_us: int | None = None,
        end_us: int | None = None,
        features: Iterable[str] | None = None,
        segment: str | None = None,
        of: Callable[[str], object] | None = None,
    ) -> list[Profile]:
        """The profiles of hours in [start, end), all sources merged: one a feature, segment and hour, in that order.

        `of` says of which source ids; without it, of all.
        """
        folder = self.folder / boundary / baseline
        if not any(path.parent == folder for path in self.paths(boundary)):
            found = sorted(
                path.relative_to(self.folder).as_posix() for path in self.folder.glob("*/*/") if path.is_dir()
            )
            known = f"what exists: {', '.join(found)}" if found else "none exist yet"
            raise ProfileError(f"{folder}: no profiles of boundary {boundary!r} on baseline {baseline}; {known}")
        keep = pc.scalar(value=True)
        if start_us is not None:
            keep &= pc.field("hour") >= pa.scalar(start_us, pa.timestamp("us", "UTC"))
        if end_us is not None:
            keep &= pc.field("hour") < pa.scalar(end_us, pa.timestamp("us", "UTC"))
        if features is not None:
            keep &= pc.field("feature").isin(list(features))
        if segment == "":
            keep &= pc.field("segment") == segment
        tables = self._tables(boundary, folder, keep, of or (lambda _: True))
        read = _by_hour(_profile(row) for table in tables for row in table.to_pylist())
        # Not before: which cohorts are kept depends on those of all files.
        return read if segment is None else [profile for profile in read if profile.segment == segment]

    def _tables(self, boundary: str, folder: Path, keep: pc.Expression, of: Callable[[str], object]) -> list[pa.Table]:
        """What the files of a folder hold that count, each source once though others fold files meanwhile."""
        for attempt in range(_ATTEMPTS):
            paths = self.paths(boundary)
            files = [path for path in each_offset_once(paths) if path.parent == folder and of(path.stem)]
            try:
                read = {path.stem: read_file(path, keep) for path in files}
            except FileNotFoundError:
                continue  # it was folded into another
            # A list of a folder may miss a file that came meanwhile, and those that went for it.
            if attempt == _ATTEMPTS - 1 or self.paths(boundary) == paths:
                replaced = {name for names, _ in read.values() for name in names}
                return [table for stem, (_, table) in read.items() if stem not in replaced]
        raise ProfileError(f"{folder}: its files vanish while they are read; read again when nobody removes them")


def read_file(path: Path, keep: pc.Expression | None = None) -> tuple[Sequence[str], pa.Table]:
    """The sources that a file replaces, and its rows; of one and the same file.

    Raises FileNotFoundError, and ProfileError for a file that was damaged since it was written.
    """
    if found := damage(path):
        raise ProfileError(f"{found}; remove it: events are profiled again by `featurestore stream profile`")
    with pa.memory_map(str(path)) as file:
        metadata = pq.read_schema(file).metadata or {}
        names = msgspec.json.decode(metadata.get(_REPLACES.encode(), b"[]"), type=list[str])
        file.seek(0)
        return names, pq.read_table(file, schema=SCHEMA, filters=keep)


def _by_hour(profiles: Iterable[Profile]) -> list[Profile]:
    groups: dict[tuple[str, str, int | None], list[Profile]] = {}
    for profile in profiles:
        groups.setdefault((profile.feature, profile.segment, profile.hour_us), []).append(profile)
    ordered = sorted(groups.items(), key=lambda one: (one[0][0], one[0][1], one[0][2] or 0))
    return of_kept_cohorts(merge(group) for _, group in ordered)


def _row(profile: Profile, boundary: str) -> dict[str, Any]:
    plain = {name: getattr(profile, name) for name in SCHEMA.names if name not in _OTHERWISE}
    return plain | {
        "boundary": boundary,
        "hour": profile.hour_us,
        "total": str(profile.total),
        "squares": str(profile.squares),
        "new": [{"value": text, "count": count} for text, count in profile.new.items()],
        "registers": profile.registers.tobytes(),
        "most_entities": profile.entities.most or None,
        "entities": profile.entities.hashes,
        "entity_counts": profile.entities.counts.reshape(-1),
    }


def _profile(row: dict[str, Any]) -> Profile:
    hour = row.pop("hour")
    most, hashes, counts = (row.pop(name) for name in ("most_entities", "entities", "entity_counts"))
    entities = Entities()
    if most:
        entities = Entities(most, np.array(hashes, np.uint64), np.array(counts, np.int64).reshape(-1, FIELDS))
    return Profile(
        **row
        | {
            "hour_us": None if hour is None else to_us(hour),
            "total": int(row["total"]),
            "squares": int(row["squares"]),
            "codes": np.array(row["codes"], np.int32),
            "counts": np.array(row["counts"], np.int64),
            "new": {one["value"]: one["count"] for one in row["new"]},
            "cells": np.array(row["cells"], np.int64),
            "registers": np.frombuffer(row["registers"], np.uint8),
            "seen": np.array(row["seen"] or (), np.uint32),
            "seen_counts": np.array(row["seen_counts"] or (), np.int64),
            "sums": np.array(row["sums"] or (), np.int64),
            "entities": entities,
        }
    )
