"""What is known of airports, aircraft and routes, each by its latest row?"""

from datetime import timedelta

from entities import origin, route, tailnum
from feast import FeatureView, Field
from feast.types import Float64, Int64, String
from sources import plane_register, route_table, weather_readings

weather = FeatureView(
    name="weather",
    entities=[origin],
    ttl=timedelta(hours=3),
    schema=[
        Field(name="origin", dtype=String),
        Field(name="temp_f", dtype=Float64),
        Field(name="dewp_f", dtype=Float64),
        Field(name="humid_pct", dtype=Float64),
        Field(name="wind_dir_deg", dtype=Float64, description="Where the wind comes from"),
        Field(name="wind_speed_mph", dtype=Float64),
        Field(name="wind_gust_mph", dtype=Float64, description="Null in calm air"),
        Field(name="precip_in", dtype=Float64),
        Field(name="pressure_mb", dtype=Float64),
        Field(name="visib_mi", dtype=Float64),
    ],
    source=weather_readings,
    description="The latest reading at the airport of departure; none is trusted beyond three hours",
    owner="weather@flights.example",
)
plane_facts = FeatureView(
    name="plane_facts",
    entities=[tailnum],
    ttl=timedelta(0),
    schema=[
        Field(name="tailnum", dtype=String),
        Field(name="year", dtype=Int64, description="Year of manufacture"),
        Field(name="engines", dtype=Int64),
        Field(name="seats", dtype=Int64),
        Field(name="manufacturer", dtype=String),
        Field(name="model", dtype=String),
        Field(name="engine", dtype=String),
    ],
    source=plane_register,
    description="What the register says of an aircraft",
    owner="fleet@flights.example",
)
route_facts = FeatureView(
    name="route_facts",
    entities=[route],
    ttl=timedelta(0),
    schema=[
        Field(name="route", dtype=String),
        Field(name="distance_mi", dtype=Float64),
        Field(name="course_deg", dtype=Float64, description="Initial bearing, clockwise from north"),
    ],
    source=route_table,
    description="How far and which way a route goes",
    owner="network@flights.example",
)
