"""What follows from the flight that is asked about?"""

from facts import route_facts, weather
from feast import Field, RequestSource
from feast.on_demand_feature_view import on_demand_feature_view
from feast.types import Float64, Int64

flight_plan = RequestSource(
    name="flight_plan",
    schema=[
        Field(name="sched_hour", dtype=Int64),
        Field(name="planned_distance_mi", dtype=Float64),
    ],
    description="The scheduled hour on the airport's clocks and the distance to fly",
)


@on_demand_feature_view(
    name="trip",
    sources=[
        flight_plan,
        weather[["wind_dir_deg", "wind_speed_mph"]],
        route_facts[["course_deg"]],
    ],
    schema=[
        # No descriptions here: Feast compares these fields with inferred ones, which have none.
        Field(name="hour_sin", dtype=Float64),
        Field(name="hour_cos", dtype=Float64),
        Field(name="headwind_mph", dtype=Float64),
        Field(name="long_haul", dtype=Int64),
    ],
    mode="python",
    description=(
        "Time of day as a point on a circle (midnight lies beside 23:00), wind against the route's course (negative "
        "pushes), and whether the flight is 1,500 miles or longer"
    ),
    owner="network@flights.example",
)
def trip(inputs):
    import math

    def known(*values):
        # Feast hands a null over as None or NaN, by the way the features are read.
        return all(value is not None and value == value for value in values)

    def circle(function, hour):
        return function(2.0 * math.pi * hour / 24.0) if known(hour) else None

    def against(speed, comes_from, course):
        if not known(speed, comes_from, course):
            return None
        return speed * math.cos(math.radians(comes_from - course))

    wind = zip(inputs["wind_speed_mph"], inputs["wind_dir_deg"], inputs["course_deg"], strict=True)
    return {
        "hour_sin": [circle(math.sin, hour) for hour in inputs["sched_hour"]],
        "hour_cos": [circle(math.cos, hour) for hour in inputs["sched_hour"]],
        "headwind_mph": [against(*each) for each in wind],
        "long_haul": [int(miles >= 1500.0) if known(miles) else None for miles in inputs["planned_distance_mi"]],
    }
