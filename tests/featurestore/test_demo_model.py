"""The delay model learns from earlier flights only, and tells what it was scored on."""

import numpy as np
import pyarrow as pa
import pytest

from featurestore.demo.civil_time import DAY_US, HOUR_US
from featurestore.demo.model import LEAD_US, asked, cutoff_us, entity_rows, matrix, numeric, predict, train
from featurestore.errors import UsageError

START_US = 1_700_000_000_000_000


def schedule(rows: int) -> pa.Table:
    """A flight an hour; every fifth cancelled, the last ten still to come."""
    number = np.arange(rows)
    late = [None if index % 5 == 0 or index >= rows - 10 else int(index % 2) for index in range(rows)]
    return pa.table(
        {
            "event_id": [f"flight-{index}" for index in number],
            "scheduled": pa.array(START_US + number * HOUR_US, pa.int64()).cast(pa.timestamp("us", "UTC")),
            "origin": ["EWR"] * rows, "carrier": ["UA"] * rows, "tailnum": ["N1"] * rows, "route": ["EWR-IAH"] * rows,
            "sched_hour": number % 24, "sched_weekday": number // 24 % 7, "planned_distance_mi": np.full(rows, 1400.0),
            "late": pa.array(late, pa.int64()),
        }
    )  # fmt: skip


def training_set(rows: int = 4000) -> pa.Table:
    """`signal` gives the label away but for noise; a third of it is null."""
    random = np.random.default_rng(7)
    late = random.integers(0, 2, rows)
    signal = late + random.normal(0, 0.7, rows)
    return pa.table(
        {
            "event_timestamp": pa.array(START_US + np.arange(rows) * HOUR_US, pa.int64()).cast(
                pa.timestamp("us", "UTC")
            ),
            "carrier": random.choice(["UA", "B6", "DL"], rows),
            "noise": random.normal(0, 1, rows),
            "signal": pa.array(signal, mask=random.random(rows) < 0.33),
            "late": late,
        }
    )


def test_entity_rows_are_known_flights_two_hours_before_schedule() -> None:
    """Neither cancelled flights nor those whose outcome lies ahead are asked about."""
    rows = entity_rows(schedule(100), from_us=START_US + 10 * HOUR_US, until_us=START_US + 1000 * HOUR_US)
    instants = rows["event_timestamp"].cast(pa.int64()).to_pylist()
    expected = [START_US + hour * HOUR_US - LEAD_US for hour in range(10, 90) if hour % 5]
    assert instants == expected
    assert rows["late"].null_count == 0


def test_a_flight_may_be_asked_about_at_any_instant() -> None:
    """The keys and request values of the schedule, at the instant given."""
    flights = schedule(3)
    rows = asked(flights, pa.chunked_array([[5, 6, 7]]))
    assert rows["event_timestamp"].cast(pa.int64()).to_pylist() == [5, 6, 7]
    assert rows["event_id"].to_pylist() == flights["event_id"].to_pylist()


def test_a_telling_feature_raises_the_score() -> None:
    """With the signal the AUC is high, without it the model guesses."""
    rows = training_set()
    at = cutoff_us(rows, test_share=0.25)
    without = train(rows, ["carrier", "noise"], cutoff_us=at)
    with_it = train(rows, ["carrier", "noise", "signal"], cutoff_us=at)
    assert 0.4 < without.auc < 0.6
    assert with_it.auc > 0.7
    assert with_it.test_rows == pytest.approx(1000, abs=2)
    assert with_it.train_rows == 3000 - DAY_US // HOUR_US


def test_the_future_trains_nothing() -> None:
    """The model is the same whatever the labels from a day before the cutoff on."""
    rows = training_set()
    at = cutoff_us(rows, test_share=0.25)
    late = rows["late"].to_numpy().copy()
    late[2980:] = 1 - late[2980:]
    changed = rows.set_column(rows.column_names.index("late"), "late", pa.array(late))
    told = [predict(train(each, ["signal"], cutoff_us=at).model, rows) for each in (rows, changed)]
    assert np.array_equal(told[0], told[1])


def test_unknown_text_and_nulls_are_missing_values() -> None:
    """A carrier never seen in training is NaN to the model, as null is."""
    rows = training_set()
    model = train(rows, ["carrier", "signal"], cutoff_us=cutoff_us(rows, test_share=0.25)).model
    strange = pa.table({"carrier": ["ZZ", None, "B6"], "signal": pa.array([None, 1.0, 2.0])})
    assert np.array_equal(matrix(model, strange), [[np.nan, np.nan], [np.nan, 1.0], [0.0, 2.0]], equal_nan=True)


def test_a_missing_column_is_named() -> None:
    """Training names what the set lacks; one class only is refused."""
    rows = training_set()
    with pytest.raises(UsageError, match="lacks wind"):
        train(rows, ["wind"], cutoff_us=START_US)
    with pytest.raises(UsageError, match=r"training rows \(0\)"):
        train(rows, ["noise"], cutoff_us=START_US)


def test_text_is_no_number() -> None:
    """Only integers and floats count as numeric features, in their order."""
    assert numeric(training_set(), without=["late"]) == ["noise", "signal"]
