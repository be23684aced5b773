"""Delayed labels tell how predictions came true, by segment and over time."""

import numpy as np
import pyarrow as pa
import pytest
from sklearn.metrics import brier_score_loss, log_loss, mean_absolute_error, root_mean_squared_error

from featurestore.errors import UsageError
from featurestore.monitor.concept import signals, with_served
from featurestore.monitor.served import REQUESTED, Shape, value_column

DAY = 86_400_000_000
STAMP = pa.timestamp("us", "UTC")
SHAPE = Shape(
    project="p", plan_version=1, service="eta", reads=(), definitions={}, keys={"driver": "INT64"}, request={}, given={}
)


def labels(driver: list[int], at: list[int], **columns: object) -> pa.Table:
    return pa.table({"driver": driver, "at": pa.array(at, pa.int64()).cast(STAMP), **columns})


def answers(*rows: tuple[int, int, str]) -> list[tuple[Shape, pa.Table]]:
    """requested, driver, zone."""
    requested, driver, zone = zip(*rows, strict=True)
    return [(SHAPE, pa.table({REQUESTED: requested, "key driver": driver, value_column("rides", "zone"): list(zone)}))]


def test_scores_are_those_of_scikit_learn() -> None:
    """Binary labels: Brier score and logarithmic loss; numbers: mean absolute and root mean squared error."""
    rng = np.random.default_rng(0)
    made = rng.random(500)
    came = (rng.random(500) < made).astype(float)
    at = np.zeros(500, np.int64)
    asked = {"prediction": "p", "label": "y", "timestamp": "at", "segments": [], "period_us": DAY}
    [found] = signals(labels([1] * 500, at, p=made, y=came), **asked)
    assert found.brier == pytest.approx(brier_score_loss(came, made))
    assert found.log_loss == pytest.approx(log_loss(came, made))
    [found] = signals(labels([1] * 500, at, p=made * 9, y=came * 7), **asked)
    assert found.mean_absolute_error == pytest.approx(mean_absolute_error(came * 7, made * 9))
    assert found.root_mean_squared_error == pytest.approx(root_mean_squared_error(came * 7, made * 9))


def test_a_segment_that_went_wrong_is_seen() -> None:
    """One zone's predictions came true, another's did not, on the second day only."""
    made, came, driver, at = [], [], [], []
    for day in range(2):
        for number in range(100):
            driver.append(number % 2)
            at.append(day * DAY + number)
            made.append(0.5)
            came.append(1.0 if day and number % 2 else float(number // 2 % 2))
    table = labels(driver, at, p=made, y=came)
    table = with_served(
        table, answers((0, 0, "north"), (0, 1, "south")), keys=["driver"], timestamp="at",
        segments=["rides:zone"], most_us=9 * DAY,
    )  # fmt: skip
    found = {
        (each.segment.get("rides:zone"), each.period_us // DAY): each.bias
        for each in signals(table, prediction="p", label="y", timestamp="at", segments=["rides:zone"], period_us=DAY)
    }
    assert found == {
        (None, 0): 0.0, (None, 1): -0.25, ("north", 0): 0.0, ("north", 1): 0.0, ("south", 0): 0.0, ("south", 1): -0.5,
    }  # fmt: skip


def test_a_label_takes_the_last_answer_before_it() -> None:
    """Not one that was requested later, nor one that is too old: that would be a leak from the future."""
    served = answers((10, 1, "first"), (20, 1, "second"), (40, 1, "later"))
    asked = labels([1, 1, 1, 2], [30, 20, 500, 30])
    found = with_served(asked, served, keys=["driver"], timestamp="at", segments=["rides:zone"], most_us=100)
    assert found["rides:zone"].to_pylist() == ["second", "second", None, None]


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"label": "z"}, "no column 'z'"),
        ({"prediction": "text"}, "holds string, not numbers"),
        ({"prediction": "wild"}, "outside 0..1"),
        ({"prediction": "gone"}, "nothing can be told"),
    ],
)
def test_what_cannot_be_told_is_refused(changed: dict[str, str], message: str) -> None:
    """The message names the column."""
    table = labels(
        [1, 2], [0, 0], p=[0.1, 0.2], y=[0.0, 1.0], text=["a", "b"], wild=[2.0, 0.1], gone=[None, float("nan")]
    )
    with pytest.raises(UsageError, match=message):
        signals(
            table, **{"prediction": "p", "label": "y", "timestamp": "at", "segments": [], "period_us": DAY} | changed
        )


def test_segments_and_keys_must_have_been_served() -> None:
    """The message lists what was."""
    table = labels([1], [0])
    with pytest.raises(UsageError, match="rides:zone"):
        with_served(table, answers((0, 1, "a")), keys=["driver"], timestamp="at", segments=["rides:no"], most_us=1)
    with pytest.raises(UsageError, match="it has driver"):
        with_served(table, answers((0, 1, "a")), keys=["at"], timestamp="at", segments=[], most_us=1)
