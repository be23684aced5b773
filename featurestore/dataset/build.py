"""How is a training set made, and made again?

`build` writes Parquet parts and a manifest that pins every input; `verify` builds again from the pinned inputs and says
equal, or names the input that changed.
"""

import shutil
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Protocol

import msgspec
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from featurestore.clock import Clock
from featurestore.dataset.digest import parquet_digest, table_digest
from featurestore.dataset.identity import changes, identify
from featurestore.dataset.manifest import (
    ColumnSummary,
    FileIdentity,
    Manifest,
    Part,
    SourceIdentity,
    Split,
    read_manifest,
    set_folder,
)
from featurestore.dataset.promises import differing, judge_set, keep_promises
from featurestore.dataset.split import split_rows
from featurestore.errors import SourceError, UsageError
from featurestore.offline.mapped import BATCH_ROWS
from featurestore.plan import Plan, Projection, definition_digests, used_views
from validation.compiled.batch import Fallback
from validation.violations import ViolationStore

ENTITY_ROWS = "entity_rows.parquet"
LIBRARIES = ("feast", "duckdb", "pyarrow", "numpy", "featurestore")


class Retrieve(Protocol):
    """The point-in-time join that a set is made with."""

    def __call__(
        self,
        projections: Sequence[Projection],
        entity_rows: pa.Table,
        *,
        as_known: bool,
        full_feature_names: bool,
        pins: Mapping[str, SourceIdentity],
    ) -> pa.Table:
        """One row per entity row, in order: its columns, then the features; event logs are read as pinned."""
        ...


class Request(msgspec.Struct, frozen=True, kw_only=True):
    """What a training set is to be made of."""

    name: str
    features: tuple[str, ...]
    """Feature references (view:feature), or one `service:NAME`."""
    split: Split = Split()
    as_known: bool = False
    full_feature_names: bool = False
    timestamp_column: str = "event_timestamp"


class Verified(msgspec.Struct, frozen=True):
    """What `verify` found: equal, or every input that changed."""

    equal: bool
    changed: tuple[str, ...]


def build(
    request: Request,
    entity_rows: pa.Table,
    *,
    plan: Plan,
    repo: Path,
    folder: Path,
    retrieve: Retrieve,
    clock: Clock,
    fallback: Fallback | None = None,
    violations: ViolationStore | None = None,
) -> Manifest:
    """Builds a training set in `folder / request.name`, which must not exist; `folder` lies in the data folder.

    `violations` keeps what is told of them, without it the data folder does.

    1. Names are resolved and sources identified: UnknownName, UsageError or SourceError before any work is done.
    2. The features are joined.
    3. Contracts judge the rows: what they take out is kept in quarantine, ContractBroken where one blocks. `fallback`
       judges the rules without a compiled form.
    4. Parts and entity rows are written beside the place, then the manifest, then the folder is renamed into it: a set
       is whole or not there.
    """
    target = set_folder(folder, request.name)
    if target.exists():
        raise UsageError(f"training set {request.name!r} exists in {folder}; a set never changes: choose another name")
    if request.timestamp_column not in entity_rows.column_names:
        raise UsageError(
            f"the entity rows have no column {request.timestamp_column!r}; "
            f"they have {', '.join(entity_rows.column_names)}"
        )
    projections = resolve(plan, request.features)
    views = used_views(plan, projections)
    sources = {view.source.name: view.source for view in views}
    identities = tuple(identify(source, repo) for source in sources.values())
    joined = retrieve(
        projections,
        entity_rows,
        as_known=request.as_known,
        full_feature_names=request.full_feature_names,
        pins={identity.name: identity for identity in identities},
    )
    digest = table_digest(entity_rows)
    judged = judge_set(
        plan,
        request.features,
        projections,
        joined,
        full_feature_names=request.full_feature_names,
        fallback=fallback,
    )
    keep_promises(
        *(judged, request.name, digest, joined),
        plan=plan,
        timestamp_column=request.timestamp_column,
        quarantine=folder.parent / "quarantine",
        violations=violations or ViolationStore(folder.parent / "violations"),
        now_us=clock(),
    )
    quarantined, joined = joined.num_rows - judged.accepted.num_rows, judged.accepted
    draft = folder / f".{request.name}.draft"
    shutil.rmtree(draft, ignore_errors=True)
    draft.mkdir(parents=True)
    keys = sorted({key.name for view in views for key in view.join_keys} & set(entity_rows.column_names))
    parts = _write_parts(joined, request, keys, draft)
    pq.write_table(entity_rows, draft / ENTITY_ROWS, compression="zstd")
    manifest = Manifest(
        name=request.name,
        project=plan.project,
        created_us=clock(),
        plan_version=plan.version,
        definitions=definition_digests(plan, projections),
        features=request.features,
        full_feature_names=request.full_feature_names,
        as_known=request.as_known,
        timestamp_column=request.timestamp_column,
        entity_rows=FileIdentity(path=ENTITY_ROWS, size_bytes=(draft / ENTITY_ROWS).stat().st_size, sha256=digest),
        sources=identities,
        split=request.split,
        parts=parts,
        columns=tuple(
            ColumnSummary(name=name, dtype=str(column.type), rows=len(column), nulls=column.null_count)
            for name, column in zip(joined.column_names, joined.columns, strict=True)
        ),
        contracts=judged.told,
        quarantined=quarantined,
        versions={library: version(library) for library in LIBRARIES},
    )
    manifest.write(draft)
    draft.rename(target)
    return manifest


def verify(folder: Path, *, plan: Plan, repo: Path, retrieve: Retrieve, fallback: Fallback | None = None) -> Verified:
    """Builds the set in `folder` again from its pinned inputs; compares verdicts rule by rule, digests part by part.

    Events appended to a log since are not read; a file added to a folder source is a change. Where an input changed
    it is named and nothing is rebuilt.
    """
    manifest = read_manifest(folder)
    projections = resolve(plan, manifest.features)
    changed = [
        f"definition of {name} changed"
        for name, digest in definition_digests(plan, projections).items()
        if manifest.definitions.get(name) != digest
    ]
    sources = {view.source.name: view.source for view in used_views(plan, projections)}
    for before in manifest.sources:
        source = sources.get(before.name)
        if source is None:
            changed.append(f"source {before.name} is no longer used")
            continue
        changed += changes(before, source, repo)
    entity_rows = _entity_rows(folder)
    if table_digest(entity_rows) != manifest.entity_rows.sha256:
        changed.append(f"entity rows: {folder / ENTITY_ROWS} changed")
    if changed:
        return Verified(equal=False, changed=tuple(changed))
    joined = retrieve(
        projections,
        entity_rows,
        as_known=manifest.as_known,
        full_feature_names=manifest.full_feature_names,
        pins={identity.name: identity for identity in manifest.sources},
    )
    judged = judge_set(
        plan,
        manifest.features,
        projections,
        joined,
        full_feature_names=manifest.full_feature_names,
        fallback=fallback,
    )
    if manifest.contracts is not None:
        changed += differing(manifest.contracts, judged.told)
        joined = judged.accepted
    keys = sorted({key.name for view in used_views(plan, projections) for key in view.join_keys})
    keys = [key for key in keys if key in entity_rows.column_names]
    masks = _masks(joined, manifest.split, keys=keys, timestamp=manifest.timestamp_column)
    for part in manifest.parts:
        if table_digest(joined, masks[part.name]) != part.digest:
            changed.append(
                f"part {part.name}: the same inputs give other rows; library versions then: {manifest.versions}"
            )
        elif parquet_digest(str(folder / part.file)) != part.digest:
            changed.append(f"part {part.name}: {folder / part.file} changed")
    return Verified(equal=not changed, changed=tuple(changed))


def resolve(plan: Plan, features: Sequence[str]) -> tuple[Projection, ...]:
    """Feature references, or one `service:NAME`, as projections; raises UnknownName."""
    if len(features) == 1 and features[0].startswith("service:"):
        return plan.service(features[0].removeprefix("service:")).projections
    return plan.projections(list(features))


def _write_parts(joined: pa.Table, request: Request, keys: Sequence[str], folder: Path) -> tuple[Part, ...]:
    parts = []
    for name, mask in _masks(joined, request.split, keys=keys, timestamp=request.timestamp_column).items():
        file = f"{name}.parquet"
        with pq.ParquetWriter(folder / file, joined.schema, compression="zstd") as writer:
            for start in range(0, max(len(joined), 1), BATCH_ROWS):
                writer.write_table(joined.slice(start, BATCH_ROWS).filter(mask.slice(start, BATCH_ROWS)))
        rows = pc.sum(mask).as_py() or 0
        parts.append(Part(name=name, file=file, rows=rows, digest=table_digest(joined, mask)))
    return tuple(parts)


def _masks(joined: pa.Table, split: Split, *, keys: Sequence[str], timestamp: str) -> dict[str, pa.Array]:
    """`split_rows`, which decides by the row alone, on pieces: the set may be larger than memory."""
    found: dict[str, list[pa.Array]] = {}
    for start in range(0, max(len(joined), 1), BATCH_ROWS):
        piece = joined.slice(start, BATCH_ROWS).select([*keys, timestamp])
        for name, mask in split_rows(piece, split, keys=keys, timestamp=timestamp).items():
            found.setdefault(name, []).append(mask)
    return {name: pa.concat_arrays(masks) for name, masks in found.items()}


def _entity_rows(folder: Path) -> pa.Table:
    try:
        return pq.read_table(folder / ENTITY_ROWS)
    except (OSError, pa.ArrowInvalid) as error:
        raise SourceError(f"{folder / ENTITY_ROWS} cannot be read: {error}; build the set again") from error
