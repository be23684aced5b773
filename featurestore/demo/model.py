"""Will this flight leave late? A model of departure delay, asked two hours before schedule.

Scored on the latest flights by a model that knows only earlier ones, twice: with what the timetable says, and with
the store's features as well. At the instant of asking the flight's own departure lies ahead: it is in no window.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
from sklearn.ensemble import HistGradientBoostingClassifier
from sklearn.metrics import roc_auc_score
from threadpoolctl import threadpool_limits

from featurestore.demo.civil_time import DAY_US, HOUR_US
from featurestore.errors import UsageError

LEAD_US = 2 * HOUR_US
LABEL = "late"
TIMETABLE = ("origin", "carrier", "sched_hour", "sched_weekday", "planned_distance_mi")
"""What is known of a flight without a feature store."""
ENTITY_COLUMNS = ("event_timestamp", "origin", "carrier", "tailnum", "route", "sched_hour", "planned_distance_mi")
"""What the feature service asks of an entity row: the instant, the keys, and the request's own values."""

Matrix = npt.NDArray[np.float64]
_TIMESTAMP = pa.timestamp("us", "UTC")


@dataclass(frozen=True)
class Model:
    """A fitted classifier with the columns it reads, in order."""

    columns: tuple[str, ...]
    codes: Mapping[str, pa.Array]
    """Text column -> its known values; any other value is missing to the model."""
    classifier: HistGradientBoostingClassifier


@dataclass(frozen=True)
class Trial:
    """What a model was trained and scored on; AUC of 0.5 is guessing."""

    model: Model
    train_rows: int
    test_rows: int
    auc: float


def entity_rows(schedule: pa.Table, *, from_us: int, until_us: int) -> pa.Table:
    """The flights scheduled in `[from_us, until_us)` whose outcome is known, at two hours before schedule.

    One row per flight, by schedule: `ENTITY_COLUMNS`, `event_id`, `sched_weekday` and the label. Cancelled flights
    neither left late nor in time; they are left out.
    """
    scheduled = schedule["scheduled"].cast(pa.int64())
    inside = pc.and_(pc.greater_equal(scheduled, from_us), pc.less(scheduled, until_us))
    known = schedule.filter(pc.and_(inside, pc.is_valid(schedule[LABEL])))
    return asked(known, pc.subtract(known["scheduled"].cast(pa.int64()), LEAD_US)).append_column(LABEL, known[LABEL])


def asked(flights: pa.Table, instant_us: pa.ChunkedArray) -> pa.Table:
    """Rows of the schedule as entity rows without a label, each asked about at its instant."""
    rows = {"event_timestamp": instant_us.cast(_TIMESTAMP)}
    wanted = ("event_id", "sched_weekday", *ENTITY_COLUMNS[1:])
    return pa.table(rows | {name: flights[name] for name in wanted})


def cutoff_us(training_set: pa.Table, *, test_share: float) -> int:
    """The instant from which on `test_share` of the rows lie."""
    return int(np.quantile(training_set["event_timestamp"].cast(pa.int64()).to_numpy(), 1.0 - test_share))


def train(training_set: pa.Table, columns: Sequence[str], *, cutoff_us: int, seed: int = 0) -> Trial:
    """Trains on rows asked about a day or more before `cutoff_us` and scores on those at or after it.

    The day between lets every training label be known when the first test row is asked about. Raises UsageError where
    a column is missing or a side is empty or of one class only.
    """
    missing = sorted({*columns, LABEL, "event_timestamp"} - set(training_set.column_names))
    if missing:
        raise UsageError(f"the training set lacks {', '.join(missing)}; it has {', '.join(training_set.column_names)}")
    instant = training_set["event_timestamp"].cast(pa.int64())
    early = training_set.filter(pc.less(instant, cutoff_us - DAY_US))
    late = training_set.filter(pc.greater_equal(instant, cutoff_us))
    for part, rows in (("training", early), ("test", late)):
        if pc.count_distinct(rows[LABEL]).as_py() != 2:
            raise UsageError(f"the {part} rows ({rows.num_rows}) do not show both outcomes; take more days")
    codes = {name: pc.unique(early[name]).drop_null().sort() for name in columns if early[name].type == pa.string()}
    text = [index for index, name in enumerate(columns) if name in codes]
    # Small trees: they score as well as larger ones here and train in a quarter of the time.
    classifier = HistGradientBoostingClassifier(
        max_iter=60, learning_rate=0.12, max_leaf_nodes=15, min_samples_leaf=100, l2_regularization=1.0,
        early_stopping=False, categorical_features=text, random_state=seed,
    )  # fmt: skip
    model = Model(columns=tuple(columns), codes=codes, classifier=classifier)
    # One thread: OpenMP's threads wait for each other by spinning, for minutes where the machine is busy.
    with threadpool_limits(limits=1, user_api="openmp"):
        classifier.fit(matrix(model, early), early[LABEL].to_numpy())
    auc = float(roc_auc_score(late[LABEL].to_numpy(), predict(model, late)))
    return Trial(model=model, train_rows=early.num_rows, test_rows=late.num_rows, auc=auc)


def predict(model: Model, rows: pa.Table) -> Matrix:
    """The probability that each row's flight leaves more than 15 minutes late."""
    probability: Matrix = model.classifier.predict_proba(matrix(model, rows))[:, 1]
    return probability


def matrix(model: Model, rows: pa.Table) -> Matrix:
    """The model's columns as float64, NaN where null; text by its place in `codes`."""
    columns = [_numbers(rows[name], model.codes.get(name)) for name in model.columns]
    return np.column_stack(columns)


def numeric(table: pa.Table, *, without: Sequence[str]) -> list[str]:
    """The names of the numeric columns of a table but those in `without`.

    >>> numeric(pa.table({"late": [0], "model": ["A320"], "seats": [182]}), without=["late"])
    ['seats']
    """
    number = [field for field in table.schema if pa.types.is_integer(field.type) or pa.types.is_floating(field.type)]
    return [field.name for field in number if field.name not in without]


def _numbers(column: pa.ChunkedArray, codes: pa.Array | None) -> Matrix:
    known = column if codes is None else pc.index_in(column, codes)
    numbers: Matrix = pc.fill_null(pc.cast(known, pa.float64()), float("nan")).to_numpy()
    return numbers
