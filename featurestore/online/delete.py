"""How is a view taken out of the online store? Its own keys only, in chunks, while everything else goes on."""

from collections.abc import Iterable

from featurestore.online.connection import StoreClient
from featurestore.online.keys import view_prefixes

_CHUNK = 500


def delete_views(client: StoreClient, project: str, views: Iterable[str]) -> int:
    """Remove every value, layout and stream state of those views of that project; returns how many keys went.

    The store is scanned once; keys are compared by whole prefix, so a project `ml` never touches `team_ml`. Keys
    written meanwhile may stay: stop the writers first.
    """
    prefixes = tuple(prefix for view in views for prefix in view_prefixes(project, view))
    if not prefixes:
        return 0
    deleted = 0
    doomed: list[bytes] = []
    for key in client.scan_iter(match="fs:*", count=_CHUNK):
        if key.startswith(prefixes):
            doomed.append(key)
        if len(doomed) >= _CHUNK:
            deleted += client.unlink(*doomed)
            doomed = []
    return deleted + (client.unlink(*doomed) if doomed else 0)
