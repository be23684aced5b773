"""How have airports, airlines, aircraft and routes kept time over the last hour, quarter day, day and week?

Every view counts its events and averages their delay and their lateness (0 or 1: a share) over the four windows.
"""

from datetime import timedelta

from entities import carrier, origin, route, tailnum
from feast import Entity, Field, StreamFeatureView
from feast.aggregation import Aggregation
from feast.data_source import KafkaSource
from feast.types import Float64, Int64, String
from sources import arrivals, departures

WINDOWS = {
    "1h": timedelta(hours=1),
    "6h": timedelta(hours=6),
    "24h": timedelta(hours=24),
    "7d": timedelta(days=7),
}


def punctuality(name: str, entity: Entity, source: KafkaSource, delay: str, description: str) -> StreamFeatureView:
    """The view of one entity over one topic: `flights_W`, `delay_mean_W` and `late_share_W` for each window W."""
    schema, aggregations = [Field(name=entity.join_key, dtype=String)], []
    for suffix, window in WINDOWS.items():
        for feature, column, function, dtype in (
            (f"flights_{suffix}", "late", "count", Int64),
            (f"delay_mean_{suffix}", delay, "mean", Float64),
            (f"late_share_{suffix}", "late", "mean", Float64),
        ):
            schema.append(Field(name=feature, dtype=dtype))
            aggregations.append(Aggregation(column=column, function=function, time_window=window, name=feature))
    return StreamFeatureView(
        name=name,
        entities=[entity],
        ttl=timedelta(0),
        schema=schema,
        aggregations=aggregations,
        timestamp_field="event_timestamp",
        source=source,
        description=description,
        owner="operations@flights.example",
    )


origin_departures = punctuality(
    "origin_departures", origin, departures, "dep_delay_min", "How flights have been leaving this airport"
)
carrier_departures = punctuality(
    "carrier_departures", carrier, departures, "dep_delay_min", "How this airline's flights have been leaving New York"
)
tailnum_arrivals = punctuality(
    "tailnum_arrivals", tailnum, arrivals, "arr_delay_min", "How this aircraft has been arriving from New York"
)
carrier_arrivals = punctuality(
    "carrier_arrivals",
    carrier,
    arrivals,
    "arr_delay_min",
    "How this airline's flights from New York have been arriving",
)
route_arrivals = punctuality(
    "route_arrivals", route, arrivals, "arr_delay_min", "How flights on this route have been arriving"
)
