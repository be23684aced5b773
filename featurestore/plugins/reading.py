"""Which rows does a materialization read, and in which pieces?"""

import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pyarrow as pa
from feast.repo_config import RepoConfig
from feast.utils import _get_column_names

from featurestore.offline.bounds import Late
from featurestore.offline.connection import Limits
from featurestore.offline.pull import Extent, extent_of
from featurestore.offline.stored import declared_types, stored_name, time_columns
from featurestore.online.loaded import Run
from featurestore.plugins.offline_store import DuckDBOfflineStore, newest
from featurestore.plugins.pulled import Pulled, pulled
from featurestore.plugins.requested import limits_of, scan_of
from featurestore.plugins.source_contract import SourceContracts
from featurestore.plugins.views import latest_view
from validation.contract import Contract

PIECE_ROWS = 500_000
"""Of the source's rows at most in memory at a time."""
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


@dataclass(frozen=True)
class Reading:
    """The rows of a run, their columns named as in the source, and what is to be told of them."""

    pieces: Iterator[pa.Table]
    """The newest row of each key; at least one piece, each of whole keys and of about PIECE_ROWS rows at most."""
    extent: Extent
    """Of the rows that pieces are chosen from."""
    note: str
    """What the contract has to tell."""


@dataclass(frozen=True)
class Columns:
    """A view's columns, as its source names them."""

    keys: list[str]
    features: list[str]
    timestamp: str
    created: str | None

    @classmethod
    def of(cls, view: Any, registry: Any, project: str) -> "Columns":
        """Those of a Feast view."""
        entities = [registry.get_entity(name, project) for name in view.entities]
        keys, features, timestamp, created = _get_column_names(view, entities)
        return cls(keys, features, timestamp, created or None)

    @property
    def wanted(self) -> list[str]:
        """All of them, each once."""
        created = [self.created] if self.created else []
        return list(dict.fromkeys([*self.keys, *self.features, self.timestamp, *created]))


@contextmanager
def reading(
    view: Any,
    columns: Columns,
    run: Run,
    *,
    last_us: int,
    now_us: int,
    config: RepoConfig,
    offline_store: Any,
    contracts: SourceContracts,
) -> Iterator[Reading]:
    """The rows of a run; its contract is judged here, up to `last_us`, before the first piece is read.

    Memory does not grow with the source: ours is read where it lies, the rows of another offline store are put into
    files first. Those come by event time alone. Raises ContractBroken, SourceError.
    """
    contract = contracts.of(view)
    with tempfile.TemporaryDirectory(prefix="featurestore-") as folder:
        ours = isinstance(offline_store, DuckDBOfflineStore)
        late = None
        if ours:
            limits = limits_of(config)
            view_read = latest_view(view)
            scan = scan_of(
                view.batch_source,
                config,
                columns.wanted,
                view=view.name,
                times=time_columns(view_read),
                declared=declared_types(view_read),
            )
            source = Pulled(scan, frozenset())
            if run.created_since_us is not None and columns.created:
                late = Late(columns.created, run.created_since_us)
        else:
            limits = Limits()
            instants = sorted({min(run.start_us, run.end_us) - 1, run.end_us, max(last_us, run.end_us)})
            source = _pulled(view, columns, contract, instants, config, offline_store, Path(folder))
        scan, note = source.scan, ""
        if contract is not None:
            scan, note = contracts.accepted(
                view.name, scan, contract, columns.timestamp, run.start_us, last_us, limits=limits, late=late
            )
        extent = Extent(scan.rows or 0, 0, None)
        # One more look at a small source would cost a fifth of reading it.
        if scan.rows is None or scan.rows > PIECE_ROWS or columns.created or last_us > run.end_us:
            extent = extent_of(
                scan, columns.timestamp, columns.created, run.start_us, run.end_us,
                last_us=last_us, now_us=now_us, limits=limits, late=late,
            )  # fmt: skip
        declared = latest_view(view)
        features = {stored_name(declared, field.name): field for field in declared.features}
        features = {column: field for column, field in features.items() if column in columns.features}
        shares = max(1, -(-extent.rows // PIECE_ROWS)) if columns.keys else 1

        def pieces() -> Iterator[pa.Table]:
            for share in range(shares):
                rows = newest(
                    scan, columns.keys, columns.features, columns.timestamp, columns.created, run.start_us, run.end_us,
                    limits=limits, share=(share, shares), late=late, declared=features,
                )  # fmt: skip
                yield source.typed(_only(rows, columns.wanted))

        yield Reading(pieces(), extent, note)


def _pulled(
    view: Any,
    columns: Columns,
    contract: Contract | None,
    instants: list[int],
    config: RepoConfig,
    offline_store: Any,
    folder: Path,
) -> Pulled:
    """The newest rows of each slice; where there is a contract all rows, with the columns that it names."""
    source, features = view.batch_source, columns.features
    pull = offline_store.pull_latest_from_table_or_query
    if contract is not None:
        pull = offline_store.pull_all_from_table_or_query
        there = {name for name, _ in source.get_table_column_names_and_types(config)}
        named = [column.name for column in contract.columns if column.name in there]
        taken = {*columns.keys, columns.timestamp, columns.created}
        features = [name for name in dict.fromkeys([*features, *named]) if name not in taken]

    def rows(begin: datetime, end: datetime) -> pa.Table:
        job = pull(
            config=config,
            data_source=source,
            join_key_columns=columns.keys,
            feature_name_columns=features,
            timestamp_field=columns.timestamp,
            created_timestamp_column=columns.created,
            start_date=begin,
            end_date=end,
        )
        return _only(job.to_arrow(), [*columns.wanted, *features])

    name = f"source {source.name!r} of view {view.name!r}"
    between = [_EPOCH + timedelta(microseconds=each) for each in instants]
    return pulled(rows, columns.timestamp, between, folder, name=name, declared=_declared(view))


def _declared(view: Any) -> dict[str, str]:
    return declared_types(latest_view(view))


def _only(rows: pa.Table, wanted: Sequence[str]) -> pa.Table:
    return rows.select([name for name in dict.fromkeys(wanted) if name in rows.column_names])
