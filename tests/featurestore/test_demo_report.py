"""The closing tables say what was done, each value under its heading."""

import io
from datetime import UTC, datetime

import pyarrow as pa
from rich.console import Console

from featurestore.demo.children import Streamed
from featurestore.demo.model import Model, Trial
from featurestore.demo.report import Bars, show
from featurestore.demo.run import Answered, Learned, Outcome
from featurestore.monitor.parity import Comparison, Difference

NOW = datetime(2013, 12, 31, 18, tzinfo=UTC)


def outcome(differences: tuple[Difference, ...] = ()) -> Outcome:
    trials = [Trial(model=Model((), {}, None), train_rows=80_000, test_rows=20_000, auc=auc) for auc in (0.664, 0.738)]
    flights = pa.table(
        {
            "carrier": ["UA", "B6", "DL"],
            "flight": [1545, 839, 412],
            "route": ["EWR-IAH", "JFK-BQN", "JFK-SJU"],
            "scheduled": [datetime(2013, 12, 31, 17), datetime(2013, 12, 31, 17, 30), datetime(2013, 12, 31, 18, 30)],
            "dep_delay_min": [63.0, None, None],
            "cancelled": [False, True, None],
        }
    )
    scheduled = flights["scheduled"].cast(pa.timestamp("us")).cast(pa.timestamp("us", "UTC"))
    flights = flights.set_column(3, "scheduled", scheduled)
    found = Comparison(rows=3, columns=78, statuses={"PRESENT": 200, "NULL_VALUE": 34}, differences=differences)
    return Outcome(
        now_us=int(NOW.timestamp()) * 1_000_000,
        weeks=0,
        landed={"schedule": 336_776, "weather": 26_115, "planes": 3_322},
        streamed=Streamed(events=656_514, accepted=656_510, set_aside=4),
        learned=Learned(columns=78, without=trials[0], with_features=trials[1]),
        answered=Answered(flights=flights, chances=pa.array([0.25, 0.5, 0.125]), comparison=found),
        addresses={"feature API": "http://127.0.0.1:1"},
    )


def printed(of: Outcome) -> list[list[str]]:
    """The cells of every line of the tables."""
    console = Console(width=160, record=True, file=io.StringIO())
    show(console, of, 60.0)
    lines = console.export_text().replace("┃", "│").splitlines()
    return [[cell.strip() for cell in line.strip("│").split("│")] for line in lines]


def test_every_value_stands_under_its_heading() -> None:
    """Flights by local time, with what the model said and what came of them."""
    lines = printed(outcome())
    assert ["flight", "route", "scheduled", "late?", "what happened"] in lines
    assert ["UA 1545", "EWR-IAH", "Tue 31 Dec 12:00", "25%", "left 63 min late"] in lines
    assert ["B6 839", "JFK-BQN", "Tue 31 Dec 12:30", "50%", "cancelled"] in lines
    assert ["DL 412", "JFK-SJU", "Tue 31 Dec 13:30", "12%", "not known yet"] in lines


def test_the_closing_table_tells_gain_and_differences() -> None:
    """Both AUCs, the counts of statuses, and the comparison."""
    lines = printed(outcome())
    assert ["AUC, timetable alone", "0.664"] in lines
    assert ["AUC with the store's features", "0.738 (+0.074)"] in lines
    assert ["served over HTTP", "3 flights x 78 features: 200 PRESENT, 34 NULL_VALUE"] in lines
    assert ["compared with an offline read", "234 values, 0 differ"] in lines
    assert ["feature API", "http://127.0.0.1:1"] in lines


def test_differences_are_shown() -> None:
    """The value, where it stands, and what holds offline."""
    lines = printed(outcome((Difference("weather__temp_f", 2, 40.1, 40.2, "PRESENT", "PRESENT"),)))
    assert ["compared with an offline read", "234 values, 1 differ"] in lines
    assert ["differs weather__temp_f, row 2: served 40.1 (PRESENT), offline 40.2 (PRESENT)"] in lines


def test_without_a_terminal_every_step_is_a_line() -> None:
    """Logs of a build show the steps and their times, no bars."""
    console = Console(width=100, record=True, force_terminal=False, quiet=False)
    with Bars(console) as bars, bars.step("Land the raw files", total=3) as progress:
        progress(lambda: 3)
    assert console.export_text().startswith("Land the raw files: 0.0 s")
