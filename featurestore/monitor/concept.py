"""Do predictions still come true? Error and calibration of what was served, by segment and over time.

Labels come late: each is joined to the last answer that was served for its keys at or before its instant, whose
features name the segment. Binary labels (0 and 1, predictions are probabilities) get the Brier score, the logarithmic
loss and the expected calibration error over ten groups of equal size (Naeini, Cooper and Hauskrecht, "Obtaining well
calibrated probabilities using Bayesian binning", 2015); all other labels mean and root mean squared error. Both get
the bias, mean prediction minus mean label, with its standard error.
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Final, Literal

import msgspec
import numpy as np
import numpy.typing as npt
import pyarrow as pa

from featurestore.errors import UsageError
from featurestore.monitor.served import REQUESTED, Shape, value_column
from featurestore.offline.entity_rows import instants

GROUPS: Final = 10
_LEAST: Final = 1e-15
Floats = npt.NDArray[np.float64]
Kind = Literal["binary", "number"]


class Signal(msgspec.Struct, frozen=True, kw_only=True):
    """How well predictions came true for one segment in one period."""

    segment: dict[str, Any]
    """By `view:feature`, the value that was served; empty for all rows."""
    period_us: int
    """The period's start."""
    kind: Kind
    rows: int
    bias: float
    """Mean prediction minus mean label."""
    bias_error: float
    """The bias's standard error; 0 for a single row."""
    brier: float | None = None
    log_loss: float | None = None
    calibration_error: float | None = None
    mean_absolute_error: float | None = None
    root_mean_squared_error: float | None = None


def with_served(
    labels: pa.Table,
    answers: Iterable[tuple[Shape, pa.Table]],
    *,
    keys: Sequence[str],
    timestamp: str,
    segments: Sequence[str],
    most_us: int,
) -> pa.Table:
    """The labels with the values of `segments` (`view:feature`) as last served for their keys; null where none was.

    An answer counts where it was requested at most `most_us` before the label's instant. Raises UsageError for keys or
    segments that the answers do not have.
    """
    at_us, known = instants(_column(labels, timestamp), place=f"labels, column {timestamp!r}")
    if not known.all():
        raise UsageError(f"labels: column {timestamp!r} has nulls; every label needs the instant of its prediction")
    tables = [_of_answers(shape, table, keys, segments) for shape, table in answers]
    if not tables:
        raise UsageError("no answers were kept in that time; give the service the tag audit_rate")
    served = pa.concat_tables(tables).sort_by("at")
    asked = pa.table({name: _column(labels, name).cast(served.schema.field(name).type) for name in keys})
    asked = asked.append_column("at", pa.array(at_us)).append_column("row", pa.array(np.arange(len(at_us))))
    joined = asked.sort_by("at").join_asof(served, on="at", by=list(keys), tolerance=-most_us).sort_by("row")
    for name in segments:
        labels = labels.append_column(name, joined[name])
    return labels


def signals(
    table: pa.Table, *, prediction: str, label: str, timestamp: str, segments: Sequence[str], period_us: int
) -> list[Signal]:
    """The signals of all rows and of each segment, period by period; rows without prediction or label are left out.

    Raises UsageError where nothing is left, or predictions of binary labels are no probabilities.
    """
    made, came = (_numbers(table, name) for name in (prediction, label))
    at_us, known = instants(_column(table, timestamp), place=f"labels, column {timestamp!r}")
    there = np.isfinite(made) & np.isfinite(came) & known
    if not there.any():
        raise UsageError(f"no row has both {prediction!r} and {label!r}; nothing can be told")
    kind: Kind = "binary" if np.isin(came[there], (0.0, 1.0)).all() else "number"
    if kind == "binary" and ((made[there] < 0) | (made[there] > 1)).any():
        raise UsageError(f"labels are 0 and 1, but {prediction!r} holds values outside 0..1; give probabilities")
    groups: list[tuple[dict[str, Any], npt.NDArray[np.bool_]]] = [({}, there)]
    for name in segments:
        values = _column(table, name).to_pylist()
        distinct = sorted(set(values), key=lambda each: (each is None, str(each)))
        groups += [({name: value}, there & np.array([each == value for each in values])) for value in distinct]
    start = at_us // period_us * period_us
    return [
        _signal(segment, int(period), kind, made[rows], came[rows])
        for segment, mask in groups
        for period in np.unique(start[mask])
        if len(rows := np.flatnonzero(mask & (start == period)))
    ]


def calibration_error(made: Floats, came: Floats, groups: int = GROUPS) -> float:
    """Expected calibration error: over groups of equal size by prediction, the mean distance of prediction and label.

    >>> calibration_error(np.array([0.0, 0.0, 1.0, 1.0]), np.array([0.0, 0.0, 1.0, 1.0]), groups=2)
    0.0
    """
    order = np.argsort(made, kind="stable")
    parts = [part for part in np.array_split(order, min(groups, len(order))) if len(part)]
    gaps = [abs(float(made[part].mean() - came[part].mean())) * len(part) for part in parts]
    return sum(gaps) / len(made)


def _signal(segment: Mapping[str, Any], period_us: int, kind: Kind, made: Floats, came: Floats) -> Signal:
    error = made - came
    told = Signal(
        segment=dict(segment),
        period_us=period_us,
        kind=kind,
        rows=len(made),
        bias=float(error.mean()),
        bias_error=float(error.std(ddof=1) / np.sqrt(len(error))) if len(error) > 1 else 0.0,
    )
    if kind == "number":
        return msgspec.structs.replace(
            told,
            mean_absolute_error=float(np.abs(error).mean()),
            root_mean_squared_error=float(np.sqrt((error**2).mean())),
        )
    right = np.clip(np.where(came == 1, made, 1 - made), _LEAST, 1)
    return msgspec.structs.replace(
        told,
        brier=float((error**2).mean()),
        log_loss=float(-np.log(right).mean()),
        calibration_error=calibration_error(made, came),
    )


def _of_answers(shape: Shape, table: pa.Table, keys: Sequence[str], segments: Sequence[str]) -> pa.Table:
    columns: dict[str, Any] = {}
    for name in keys:
        if name not in shape.keys:
            raise UsageError(f"service {shape.service!r} has no entity column {name!r}; it has {', '.join(shape.keys)}")
        columns[name] = table[f"key {name}"]
    columns["at"] = table[REQUESTED]
    for name in segments:
        view, _, feature = name.partition(":")
        column = value_column(view, feature)
        if column not in table.column_names:
            served = [each.removeprefix("value ") for each in table.column_names if each.startswith("value ")]
            raise UsageError(f"service {shape.service!r} serves no {name!r}; segments can be {', '.join(served)}")
        columns[name] = table[column]
    return pa.table(columns)


def _column(table: pa.Table, name: str) -> pa.ChunkedArray:
    if name not in table.column_names:
        raise UsageError(f"labels have no column {name!r}; they have {', '.join(table.column_names)}")
    return table[name]


def _numbers(table: pa.Table, name: str) -> Floats:
    column = _column(table, name)
    try:
        numbers: Floats = column.cast(pa.float64()).to_numpy(zero_copy_only=False)
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError) as error:
        raise UsageError(f"labels: column {name!r} holds {column.type}, not numbers") from error
    return numbers
