"""Which Parquet files hold the flights' history?

weather/weather.parquet     readings by origin            departures.parquet   events so far, in order of arrival
planes/planes.parquet       facts by tailnum              arrivals.parquet     likewise
routes/routes.parquet       facts by route                schedule.parquet     every scheduled flight of the year
upcoming/departures.parquet, upcoming/arrivals.parquet    events still to come, for a live replay
"""

from pathlib import Path

import pyarrow.parquet as pq

from featurestore.demo.flights import History

FILES = {
    "weather": "weather/weather.parquet",
    "planes": "planes/planes.parquet",
    "routes": "routes/routes.parquet",
    "departures": "departures.parquet",
    "arrivals": "arrivals.parquet",
    "schedule": "schedule.parquet",
    "upcoming_departures": "upcoming/departures.parquet",
    "upcoming_arrivals": "upcoming/arrivals.parquet",
}
"""Table of `History` -> file, relative to the landing folder."""


def land(history: History, folder: Path) -> dict[str, int]:
    """Writes every table and tells its rows by table name.

    A file is replaced whole or not at all, so that an interrupted landing leaves no torn file; files of an earlier
    landing are overwritten.
    """
    rows: dict[str, int] = {}
    for name, relative in FILES.items():
        table = getattr(history, name)
        target = folder / relative
        target.parent.mkdir(parents=True, exist_ok=True)
        unfinished = target.with_suffix(".unfinished")
        pq.write_table(table, unfinished, compression="zstd")
        unfinished.replace(target)
        rows[name] = table.num_rows
    return rows
