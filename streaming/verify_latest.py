"""Compare what the online store serves of a latest-value view with the newest rows of its source."""

from pathlib import Path

import pyarrow as pa

from featurestore.clock import Clock
from featurestore.errors import UsageError
from featurestore.offline.history import historical_features
from featurestore.offline.raw_rows import raw_rows
from featurestore.offline.stored import scan_of
from featurestore.online.connection import StoreClient
from featurestore.online.reader import OnlineReader
from featurestore.plan import Plan, Projection, View
from streaming.verify import AT, Verified, bits, compared


def verify_latest_online(
    plan: Plan, view: View, client: StoreClient, *, repo: Path, clock: Clock, keys: int
) -> Verified:
    """The first `keys` entity keys of the source; the online store must hold what the source holds."""
    stored = {new: old for old, new in view.source.field_mapping.items()}
    names = [key.name for key in view.join_keys]
    rows = raw_rows(scan_of(view, repo=repo), [stored.get(name, name) for name in names])
    there = dict.fromkeys(zip(*(column.to_pylist() for column in rows.columns), strict=True))
    entities = [row for row in there if None not in row][:keys]
    if not entities:
        raise UsageError(f"view {view.name!r}: its source holds no entity key; there is nothing to compare")
    columns = {name: [row[place] for row in entities] for place, name in enumerate(names)}
    projection = Projection(view=view.name, features=tuple(field.name for field in view.features))
    found = OnlineReader(client, plan, clock).read([projection], columns).columns
    served = {column.feature: [bits(value) for value in column.to_python()] for column in found}
    times = found[0].instant_us.tolist()
    asked = pa.table({**columns, AT: pa.array(times, pa.timestamp("us", "UTC"))})
    joined = historical_features(plan, [projection], asked, repo=repo, timestamp=AT, as_known=False)
    offline = {name: [bits(value) for value in joined[name].to_pylist()] for name in projection.features}
    return compared(view, entities, list(enumerate(times)), {"offline": offline, "online": served})
