"""Which layouts have the rows of a view had? Kept in the store, so that rows outlive a change of features."""

import msgspec

from featurestore.errors import StaleStore
from featurestore.online.codec import RowCodec
from featurestore.online.connection import StoreClient
from featurestore.online.keys import schema_key
from featurestore.plan import View


class Schemas:
    """The layouts of one view's rows: the declared one and those found in the store, each fetched once."""

    def __init__(self, client: StoreClient, project: str, view: View) -> None:
        self.declared = RowCodec(view.features)
        self._client = client
        self._key = schema_key(project, view.name)
        self._view = view.name
        self._known = {self.declared.fingerprint: self.declared}

    def remember(self) -> None:
        """Record the declared layout; before the first row of it is written, so that no row is ever unreadable."""
        self._client.hset(self._key, self.declared.fingerprint, self.declared.schema)

    def codec(self, fingerprint: bytes) -> RowCodec:
        """The codec of rows with that fingerprint; raises StaleStore where the store does not know it."""
        known = self._known.get(fingerprint)
        if known is None:
            schema = self._client.hget(self._key, fingerprint)
            if not isinstance(schema, bytes):
                raise StaleStore(
                    f"rows of view {self._view!r} have the layout {fingerprint.hex()}, which the store does not "
                    "describe; materialize the view again"
                )
            try:
                known = RowCodec.of_schema(schema)
            except (msgspec.MsgspecError, KeyError) as error:
                raise self._damaged(fingerprint) from error
            if known.fingerprint != fingerprint:
                raise self._damaged(fingerprint)
            self._known[fingerprint] = known
        return known

    def _damaged(self, fingerprint: bytes) -> StaleStore:
        return StaleStore(
            f"the store's description of layout {fingerprint.hex()} of view {self._view!r} is damaged: it describes "
            "another layout; materialize the view again"
        )
