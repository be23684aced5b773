"""The landed tables hold the recorded year, whole, in order and cut at now."""

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest

from featurestore.demo.civil_time import DAY_US, HOUR_US, MINUTE_US, civil, instants, wall_us
from featurestore.demo.flights import History, history, recorded_end_us, weeks_until
from featurestore.demo.landing import FILES, land
from featurestore.demo.movements import movements
from featurestore.demo.recorded import HOME_ZONE, Recorded, latest, package_folder, read_recorded
from featurestore.errors import SourceError

NOW_US = int(instants(np.array([wall_us(2026, 3, 20) + 9 * HOUR_US], dtype=np.int64), HOME_ZONE)[0])
"""A moment in March, so that most of the replayed year lies under the other daylight saving."""


@pytest.fixture(scope="module")
def recorded() -> Recorded:
    return read_recorded(package_folder())


@pytest.fixture(scope="module")
def as_recorded(recorded: Recorded) -> History:
    # Two days after the year's end everything has happened.
    return history(recorded, now_us=recorded_end_us() + 2 * DAY_US, weeks=0)


@pytest.fixture(scope="module")
def replayed(recorded: Recorded) -> History:
    return history(recorded, now_us=NOW_US, weeks=weeks_until(NOW_US))


def times(table: pa.Table, column: str = "event_timestamp") -> np.ndarray:
    return table[column].cast(pa.int64()).to_numpy()


def test_every_recorded_row_is_there(recorded: Recorded, as_recorded: History) -> None:
    """The package's counts: flights, weather, planes; departures without the cancelled, arrivals without the lost."""
    assert recorded.flights.num_rows == as_recorded.schedule.num_rows == 336_776
    assert as_recorded.weather.num_rows == 26_115
    assert as_recorded.planes.num_rows == 3_322
    assert as_recorded.departures.num_rows == 336_776 - 8_255
    assert as_recorded.arrivals.num_rows == 336_776 - 8_713
    assert as_recorded.routes.num_rows == 224 + 2
    assert as_recorded.upcoming_departures.num_rows == as_recorded.upcoming_arrivals.num_rows == 0


def test_every_destination_has_a_zone(recorded: Recorded) -> None:
    """The four Caribbean airports that the package lacks included."""
    known = recorded.airports.filter(pc.is_valid(recorded.airports["tzone"]))["faa"]
    unknown = pc.invert(pc.is_in(recorded.flights["dest"], known.combine_chunks()))
    assert not pc.any(unknown).as_py()


def test_departures_are_at_the_packages_instants(recorded: Recorded, as_recorded: History) -> None:
    """The scheduled instant's hour is the package's own UTC hour, row by row."""
    moved = movements(recorded.flights, zone_of(recorded), weeks=0)
    hour_us = recorded.flights["time_hour"].cast(pa.timestamp("us", "UTC")).cast(pa.int64()).to_numpy()
    assert np.array_equal(moved.scheduled_us // HOUR_US * HOUR_US, hour_us)


def zone_of(recorded: Recorded) -> dict[str, str]:
    return dict(zip(recorded.airports["faa"].to_pylist(), recorded.airports["tzone"].to_pylist(), strict=True))


def taxi_min(recorded: Recorded, zones: dict[str, str]) -> np.ndarray:
    """Minutes between departure and arrival that were not in the air."""
    moved = movements(recorded.flights, zones, weeks=0)
    in_air = recorded.flights["air_time"].to_numpy()
    return ((moved.arrived_us - moved.departed_us) / MINUTE_US - in_air)[~np.isnan(in_air)]


def test_arrivals_leave_time_to_taxi(recorded: Recorded) -> None:
    """An independent witness: recorded time in the air fits between every departure and arrival."""
    taxi = taxi_min(recorded, zone_of(recorded))
    assert len(taxi) == 327_346
    assert (taxi.min(), taxi.max()) == (5, 235)


def test_wrong_zones_would_be_seen(recorded: Recorded) -> None:
    """The planted fault: with every clock read as New York's, flights would land before their time in the air."""
    assert taxi_min(recorded, dict.fromkeys(zone_of(recorded), HOME_ZONE)).min() < 0


def test_clock_times_follow_from_the_instants(recorded: Recorded, as_recorded: History) -> None:
    """Every recorded arrival time shows on the destination's clocks, but for the one in the hour that never was."""
    zone = zone_of(recorded)
    moved = movements(recorded.flights, zone, weeks=0)
    zones = np.array([zone[dest] for dest in recorded.flights["dest"].to_pylist()])
    hhmm = pc.fill_null(recorded.flights["arr_time"], 0).to_numpy()
    wrong = 0
    for name in np.unique(zones):
        rows = (zones == name) & moved.arrived
        clock = civil(moved.arrived_us[rows], str(name)) % DAY_US
        wrong += int((clock != hhmm[rows] // 100 % 24 * HOUR_US + hhmm[rows] % 100 * MINUTE_US).sum())
    assert wrong == 1


def test_event_ids_are_unique(as_recorded: History) -> None:
    """Date, carrier, flight and origin name a flight."""
    assert pc.count_distinct(as_recorded.schedule["event_id"]).as_py() == 336_776
    assert as_recorded.schedule["event_id"][0].as_py() == "2013-01-01-UA-1545-EWR"


def test_weather_instants_are_unique_where_recorded(as_recorded: History) -> None:
    """The hour that came twice has two instants; readings are published 5 minutes after their hour."""
    weather = as_recorded.weather
    assert len(set(zip(weather["origin"].to_pylist(), times(weather).tolist(), strict=True))) == 26_115
    assert set((times(weather, "created") - times(weather)).tolist()) == {5 * MINUTE_US}


def test_colliding_readings_become_corrections(recorded: Recorded) -> None:
    """Replayed, the repeated hour and the skipped hour leave two readings at one instant: the second is known later,
    none is lost, and no two rows of an airport are equal in both times."""
    now_us = recorded_end_us() + 673 * 7 * DAY_US + 2 * DAY_US
    weather = history(recorded, now_us=now_us, weeks=673).weather
    assert weather.num_rows == 26_115
    late = times(weather, "created") - times(weather) != 5 * MINUTE_US
    assert late.sum() == 6
    keys = zip(weather["origin"].to_pylist(), times(weather).tolist(), times(weather, "created").tolist(), strict=True)
    assert len(set(keys)) == 26_115


def test_a_replayed_year_ends_within_the_coming_week() -> None:
    """Over a year of moments, the moved end lies 0 to 7 days ahead on New York's clocks."""
    end_wall = wall_us(2014, 1, 1)
    for now_us in range(NOW_US, NOW_US + 366 * DAY_US, 11 * HOUR_US):
        ahead = end_wall + weeks_until(now_us) * 7 * DAY_US - int(civil(np.array([now_us]), HOME_ZONE)[0])
        assert 0 <= ahead < 7 * DAY_US


def test_nothing_later_than_now_is_history(replayed: History) -> None:
    """History ends at now, by the instant at which a row became known; what is left is upcoming."""
    for table, column in [
        (replayed.weather, "created"),
        (replayed.routes, "created"),
        (replayed.departures, "event_timestamp"),
        (replayed.arrivals, "event_timestamp"),
    ]:
        assert times(table, column).max() <= NOW_US
    for table in (replayed.upcoming_departures, replayed.upcoming_arrivals):
        assert times(table).min() > NOW_US
    assert replayed.departures.num_rows + replayed.upcoming_departures.num_rows == 328_521
    assert replayed.arrivals.num_rows + replayed.upcoming_arrivals.num_rows == 328_063


def test_outcomes_are_unknown_until_they_happen(replayed: History) -> None:
    """The schedule knows a flight's lateness exactly from its departure on, a cancellation from its hour on."""
    schedule = replayed.schedule
    known = pc.is_valid(schedule["late"])
    assert pc.sum(known).as_py() == replayed.departures.num_rows
    ahead = schedule.filter(pc.greater(schedule["scheduled"], pa.scalar(NOW_US, pa.timestamp("us", "UTC"))))
    assert ahead.num_rows > 0
    assert pc.sum(ahead["cancelled"]).as_py() in (None, 0)


def test_events_are_in_order_of_arrival(replayed: History) -> None:
    """Ascending event time, so that a replay appends what a live topic would have held."""
    for table in (replayed.departures, replayed.arrivals):
        assert (np.diff(times(table)) >= 0).all()


def test_weekdays_and_hours_survive_the_move(as_recorded: History, replayed: History) -> None:
    """The schedule's weekday and local hour are those of 2013, flight by flight."""
    for column in ("sched_hour", "sched_weekday"):
        before, after = (pc.value_counts(table.schedule[column]) for table in (as_recorded, replayed))
        count = {entry["values"]: entry["counts"] for entry in before.to_pylist()}
        assert count == {entry["values"]: entry["counts"] for entry in after.to_pylist()}


def test_a_course_is_the_way_the_flight_heads(as_recorded: History) -> None:
    """Los Angeles lies west-north-west of Kennedy by the great circle, San Juan south-south-east."""
    course = dict(
        zip(as_recorded.routes["route"].to_pylist(), as_recorded.routes["course_deg"].to_pylist(), strict=True)
    )
    assert course["JFK-LAX"] == pytest.approx(273.9, abs=0.5)
    assert course["JFK-SJU"] == pytest.approx(161.0, abs=0.5)


def test_landing_replaces_files_whole(replayed: History, tmp_path: Path) -> None:
    """Every file reads back as its table; nothing unfinished stays; a second landing overwrites."""
    for _ in range(2):
        rows = land(replayed, tmp_path)
    assert {name: pq.read_table(tmp_path / relative).num_rows for name, relative in FILES.items()} == rows
    assert pq.read_table(tmp_path / FILES["departures"]).equals(replayed.departures)
    assert not list(tmp_path.rglob("*.unfinished"))


def test_a_part_of_the_year_is_its_end(recorded: Recorded) -> None:
    """The last days keep every flight of theirs, and nothing before."""
    part = latest(recorded, 30).flights
    assert part.num_rows == 27_148
    assert set(part["month"].unique().to_pylist()) == {12}


def test_a_torn_package_file_is_named(tmp_path: Path) -> None:
    """A file that is missing or no CSV is one clear error."""
    with pytest.raises(SourceError, match=r"airports\.csv"):
        read_recorded(tmp_path)
    (tmp_path / "airports.csv").write_text('faa,name\n"x')
    with pytest.raises(SourceError, match=r"airports\.csv"):
        read_recorded(tmp_path)
