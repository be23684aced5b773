"""With which status should every value have been served?

Told from the sources alone, without the online store: a value that is there is PRESENT; one that is missing has no
key or no row of its key (NOT_FOUND), a row past its ttl (OUTSIDE_MAX_AGE), or a row, window or computation that gives
null (NULL_VALUE). A replay streams from the first event on, so no window is INCOMPLETE.
"""

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from featurestore.plan import Plan, Projection, View

_NONE = -(1 << 62)


def expected_statuses(
    plan: Plan,
    service: str,
    rows: pa.Table,
    offline: pa.Table,
    instants_us: Mapping[str, npt.NDArray[np.int64]],
    repo: Path,
) -> dict[str, pa.Array]:
    """Names of statuses by column, for the offline values of a service's features at these instants.

    Views must have one join key, as those of the flights have.
    """
    statuses: dict[str, pa.Array] = {}
    for projection in plan.service(service).projections:
        names = [f"{projection.name}__{feature}" for feature in projection.features]
        view = plan.views.get(projection.view)
        for name in names:
            absent: pa.Array | pa.Scalar = pa.scalar("NULL_VALUE")
            if view is not None:
                absent = _absent(view, projection, rows, instants_us[name], repo)
            statuses[name] = pc.if_else(offline[name].combine_chunks().is_valid(), "PRESENT", absent)
    return statuses


def _absent(
    view: View, projection: Projection, rows: pa.Table, instant_us: npt.NDArray[np.int64], repo: Path
) -> pa.Array:
    """The status of a null, row by row."""
    (key,) = view.join_keys
    keys = rows[projection.join_key_map.get(key.name, key.name)]
    if view.kind == "windowed":
        # A window without events is a null mean, not a missing row.
        return pc.if_else(keys.is_valid(), "NULL_VALUE", "NOT_FOUND").combine_chunks()
    newest, asked = _newest(view, key.name, repo), keys.to_pylist()
    latest_us = np.array([newest.get(value, _NONE) for value in asked], dtype=np.int64)
    outdated = (latest_us + view.ttl_us < instant_us) if view.ttl_us else np.zeros(len(asked), dtype=np.bool_)
    names = np.where(latest_us == _NONE, "NOT_FOUND", np.where(outdated, "OUTSIDE_MAX_AGE", "NULL_VALUE"))
    return pa.array(names.tolist(), pa.string())


def _newest(view: View, key: str, repo: Path) -> dict[str, int]:
    """The latest event time of every key; all rows that are landed lie in the past."""
    table = pq.read_table(repo / view.source.path, columns=[key, view.source.timestamp_field])
    latest = table.group_by(key).aggregate([(view.source.timestamp_field, "max")])
    instants = latest[f"{view.source.timestamp_field}_max"].cast(pa.timestamp("us", "UTC")).cast(pa.int64())
    return dict(zip(latest[key].to_pylist(), instants.to_pylist(), strict=True))
