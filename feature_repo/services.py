"""Which features does a model use?"""

from facts import plane_facts, route_facts, weather
from feast import FeatureService
from on_demand import trip
from streams import carrier_arrivals, carrier_departures, origin_departures, route_arrivals, tailnum_arrivals

departure_delay = FeatureService(
    name="departure_delay",
    features=[
        weather[
            [
                "temp_f",
                "dewp_f",
                "humid_pct",
                "wind_dir_deg",
                "wind_speed_mph",
                "wind_gust_mph",
                "precip_in",
                "pressure_mb",
                "visib_mi",
            ]
        ],
        plane_facts[["year", "engines", "seats"]],
        route_facts,
        origin_departures,
        carrier_departures,
        tailnum_arrivals,
        carrier_arrivals,
        route_arrivals,
        trip,
    ],
    description="Will this flight leave more than 15 minutes late? Asked two hours before schedule.",
    owner="operations@flights.example",
    # Every answer is kept, and held to an offline read by `featurestore skew audit`.
    tags={"audit_rate": "1"},
)
