"""How does the most frequent answer come to be? From stored rows to JSON, without an object for a column or a view.

It is that of views whose features lie alike, all of whose rows are there, fresh and without nulls. Whatever is unusual
about a request or a row is left to the general way, whose bytes are the same.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import orjson

from featurestore.api.answer import VERBATIM, instants_json, rfc3339
from featurestore.api.feast_json import alike, none_times
from featurestore.api.metrics import Metrics
from featurestore.online.result import Status
from featurestore.online.together import Together

_PRESENT = int(Status.PRESENT)


@dataclass(frozen=True, slots=True, eq=False)
class Straight:
    """One kind of request that can be answered so."""

    together: Together
    names: bytes
    """Of the columns of an answer, as JSON."""

    @classmethod
    def of(cls, together: Together | None, join_keys: Mapping[str, str], names: bytes) -> "Straight | None":
        """None where it cannot."""
        if together is None or not VERBATIM.issuperset(join_keys.values()):
            return None
        return cls(together, names)

    def json(
        self,
        keys: Mapping[str, Sequence[Any]],
        held: Sequence[bytes | None],
        rows: int,
        t_us: int,
        metrics: Metrics,
    ) -> bytes | None:
        """The answer at t from what the store holds of `together.names`, counted; None: not to be written so."""
        found = self.together.decode(held, rows, t_us)
        if found is None:
            return None
        written = orjson.dumps(found.values, option=orjson.OPT_SERIALIZE_NUMPY)
        # A null may be a NaN, for which there is a word.
        if b"n" in written:
            return None
        # Cut by single bytes, which numbers have not: searching for more of them costs ten times as much.
        if rows == 1:
            by_feature, end = written[1:-1].split(b","), b"],"
        else:
            by_feature, end = written[2:-2].split(b"["), b""
            by_feature[-1] += b"],"
        told = b'"statuses":' + alike(_PRESENT, rows) + b',"event_timestamps":'
        results = [b'"values":' + orjson.dumps(column) + b"," + told + none_times(rows) for column in keys.values()]
        each = self.together.features
        event_us, tail = found.event_us, b""
        since_us: list[int] = []
        for place in range(len(found.oldest_us)):
            some = event_us[place * rows : (place + 1) * rows]
            # Views that one job computes share their times.
            if some != since_us:
                since_us, tail = some, end + told + instants_json(some)
            values = by_feature[place * each : (place + 1) * each]
            results.append(b'"values":[' + (tail + b'},{"values":[').join(values) + tail)
        instant = rfc3339(t_us).encode()
        results[0] = b'{"results":[{' + results[0]
        results[-1] += b'}],"metadata":{"feature_names":' + self.names + b',"instant":"' + instant + b'"}}'
        metrics.all_present(self.together.views, rows * each, found.oldest_us, t_us)
        return b"},{".join(results)
