"""Where do the rows and events come from?

Paths start at this folder. The batch source of a topic is its event log: what the stream worker accepted, as Parquet,
with the instant of arrival in `_arrival`. FEATURESTORE_EVENTS_URL moves it into an object store.
"""

import os

from feast import FileSource, KafkaSource
from feast.data_format import JsonFormat

BOOTSTRAP_SERVERS = "localhost:9092"  # KAFKA_BOOTSTRAP_SERVERS overrides it
EVENTS = os.environ.get("FEATURESTORE_EVENTS_URL") or "../data"

weather_readings = FileSource(
    name="weather",
    path="../data/flights/weather",
    timestamp_field="event_timestamp",
    created_timestamp_column="created",
    description="Hourly readings at the airports, published five minutes after the hour",
)
plane_register = FileSource(
    name="planes",
    path="../data/flights/planes",
    timestamp_field="event_timestamp",
    created_timestamp_column="created",
    description="The aircraft register; some aircraft that fly are missing from it",
)
route_table = FileSource(
    name="routes",
    path="../data/flights/routes",
    timestamp_field="event_timestamp",
    created_timestamp_column="created",
    description="Distance and course of every route, a row for each change",
)

departures = KafkaSource(
    name="departures",
    topic="departures",
    kafka_bootstrap_servers=BOOTSTRAP_SERVERS,
    timestamp_field="event_timestamp",
    message_format=JsonFormat(
        schema_json=(
            "event_id string, event_timestamp timestamp, origin string, dest string, route string, carrier string, "
            "tailnum string, flight bigint, scheduled timestamp, dep_delay_min double, late bigint, distance_mi double"
        )
    ),
    batch_source=FileSource(
        name="departures_log",
        path=f"{EVENTS}/event_log/departures",
        timestamp_field="event_timestamp",
        created_timestamp_column="_arrival",
    ),
    tags={"event_id": "event_id", "message_key": "origin"},
    description="A message for every flight that left its gate",
)
arrivals = KafkaSource(
    name="arrivals",
    topic="arrivals",
    kafka_bootstrap_servers=BOOTSTRAP_SERVERS,
    timestamp_field="event_timestamp",
    message_format=JsonFormat(
        schema_json=(
            "event_id string, event_timestamp timestamp, origin string, dest string, route string, carrier string, "
            "tailnum string, flight bigint, arr_delay_min double, air_time_min double, late bigint"
        )
    ),
    batch_source=FileSource(
        name="arrivals_log",
        path=f"{EVENTS}/event_log/arrivals",
        timestamp_field="event_timestamp",
        created_timestamp_column="_arrival",
    ),
    tags={"event_id": "event_id", "message_key": "tailnum"},
    description="A message for every flight that reached its gate; diverted ones carry no delay",
)
