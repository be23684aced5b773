"""What does the API say of these flights, and what would an offline read at the same instants?"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from featurestore.client import FeatureClient, OnlineFeatures
from featurestore.demo.model import ENTITY_COLUMNS
from featurestore.errors import FeatureStoreError
from featurestore.offline.history import historical_features
from featurestore.plan import Plan

SERVICE = "departure_delay"
ROWS_A_REQUEST = 250
_TIMESTAMP = pa.timestamp("us", "UTC")


@dataclass(frozen=True)
class Served:
    """The API's answer about some entity rows, in their order."""

    values: pa.Table
    """A column per feature, named `view__feature`."""
    statuses: Mapping[str, pa.Array]
    """Names of statuses, by column."""
    instants_us: Mapping[str, npt.NDArray[np.int64]]
    """The instant that each value holds at, by column; 0 for computed features."""


def ask(client: FeatureClient, rows: pa.Table) -> Served:
    """Asks the API for the service's features of all rows, in requests of `ROWS_A_REQUEST`.

    `rows` has the keys and request columns of `ENTITY_COLUMNS`; its instants are ignored, the API answers for
    the moment of asking. Raises StoreUnavailable and RequestRefused as the client does.
    """
    answers = []
    for start in range(0, rows.num_rows, ROWS_A_REQUEST):
        part = rows.slice(start, ROWS_A_REQUEST)
        entities = {name: part[name].to_pylist() for name in ENTITY_COLUMNS[1:]}
        answers.append(client.get_online_features(SERVICE, entities, full_feature_names=True))
    values = pa.concat_tables([answer.to_arrow().replace_schema_metadata(None) for answer in answers])
    values = values.select([name for name in values.column_names if "__" in name])
    return Served(
        values=values,
        statuses={
            name: pa.array([text for answer in answers for text in answer.statuses(name)], pa.string())
            for name in values.column_names
        },
        instants_us={name: _instants(answers, name) for name in values.column_names},
    )


def offline(plan: Plan, rows: pa.Table, instants_us: Mapping[str, npt.NDArray[np.int64]], repo: Path) -> pa.Table:
    """The same features of the same rows read offline, each value at its own instant.

    Computed features hold at the latest instant of their row (all values of a row have one instant, except where a key
    has an event ahead of the clock). Raises FeatureStoreError where the API left a feature out.
    """
    projections = plan.service(SERVICE).projections
    names = [f"{projection.name}__{feature}" for projection in projections for feature in projection.features]
    if missing := sorted(set(names) - set(instants_us)):
        raise FeatureStoreError(f"the API left out {', '.join(missing)} of the service {SERVICE!r}")
    wanted = np.stack([instants_us[name] for name in names])
    wanted = np.where(wanted == 0, wanted.max(axis=0), wanted)
    pairs = np.stack([np.tile(np.arange(rows.num_rows), len(names)), wanted.ravel()])
    distinct, place = np.unique(pairs, axis=1, return_inverse=True)
    asked = rows.take(distinct[0])
    at = pa.array(distinct[1], pa.int64()).cast(_TIMESTAMP)
    asked = asked.set_column(asked.column_names.index("event_timestamp"), "event_timestamp", at)
    read = historical_features(plan, projections, asked, repo=repo, full_feature_names=True)
    where = place.reshape(len(names), rows.num_rows)
    return pa.table({name: read[name].take(where[index]) for index, name in enumerate(names)})


def _instants(answers: list[OnlineFeatures], name: str) -> npt.NDArray[np.int64]:
    told = pa.array([instant for answer in answers for instant in answer.instants(name)], _TIMESTAMP)
    instants: npt.NDArray[np.int64] = told.cast(pa.int64()).fill_null(0).to_numpy()
    return instants
