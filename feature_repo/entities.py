"""Whom are the features about?"""

from feast import Entity, ValueType

origin = Entity(name="origin", value_type=ValueType.STRING, description="Airport of departure: EWR, JFK or LGA")
carrier = Entity(name="carrier", value_type=ValueType.STRING, description="Airline, by its two-letter code")
tailnum = Entity(name="tailnum", value_type=ValueType.STRING, description="Aircraft, by its tail number")
route = Entity(name="route", value_type=ValueType.STRING, description="Origin and destination, as in EWR-IAH")
