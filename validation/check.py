"""What can a rule say about rows, columns and tables?

A Check is one frozen statement; the row function and the SQL are generated from it. NULL and NaN are both *missing*;
missing values are ignored except by the null rules; `mostly` is the least share of considered rows that must hold.
"""

from dataclasses import dataclass
from typing import Final, Literal

ARRIVAL: Final = "_arrival"
"""The pseudo-column every boundary that knows it supplies: the instant the row arrived."""
INSTANTS: Final = frozenset({"date", "timestamp"})
"""Logical types whose values are compared as instants."""

UNTYPED: Final = ""
"""The logical type of a column for which the contract declares none."""

Ignore = Literal["all", "any", "none"]
"""Rows left out because all or any of the columns are missing."""
Bound = int | float | str


@dataclass(frozen=True, slots=True)
class Null:
    """The column is missing (`null`) or is not."""

    column: str
    null: bool


@dataclass(frozen=True, slots=True)
class Between:
    """low <= value <= high, strictly where said; None is unbounded. `of` length compares text lengths."""

    column: str
    low: Bound | None
    high: Bound | None
    strict_low: bool
    strict_high: bool
    of: Literal["value", "length"] = "value"


@dataclass(frozen=True, slots=True)
class InSet:
    """The value is one of the set, or `negate`: none of it."""

    column: str
    values: tuple[Bound | bool, ...]
    negate: bool


@dataclass(frozen=True, slots=True)
class Matches:
    """Python's `re.search` finds any (or all) of the patterns in the text (`validation.pattern`); `negate`: none."""

    column: str
    patterns: tuple[str, ...]
    on_all: bool
    negate: bool


@dataclass(frozen=True, slots=True)
class OfType:
    """The value is of the Python type (str, int, float, bool)."""

    column: str
    type: str


@dataclass(frozen=True, slots=True)
class Conforms:
    """The value is what a contract's schema says: `shape` is JSON, see `validation.shape`."""

    column: str
    shape: str


@dataclass(frozen=True, slots=True)
class Pair:
    """a > b, a >= b, a == b, or a <= b + slack (microseconds; both columns instants)."""

    a: str
    b: str
    op: Literal[">", ">=", "==", "ahead"]
    ignore: Ignore
    slack_us: int = 0


@dataclass(frozen=True, slots=True)
class Across:
    """Several columns of one row: all equal, all different, or summing to `total`."""

    columns: tuple[str, ...]
    op: Literal["equal", "unique", "sum"]
    ignore: Ignore
    total: float = 0.0


@dataclass(frozen=True, slots=True)
class Unique:
    """No two rows share the values of these columns; every row of a repeated value counts."""

    columns: tuple[str, ...]
    ignore: Ignore


@dataclass(frozen=True, slots=True)
class Aggregate:
    """A statistic of a column (the table's row count without one) lies between the bounds."""

    column: str | None
    function: str
    low: float | None
    high: float | None
    strict_low: bool
    strict_high: bool


@dataclass(frozen=True, slots=True)
class Columns:
    """The table has these columns, and where `exact` no other."""

    names: tuple[str, ...]
    exact: bool


@dataclass(frozen=True, slots=True)
class Drift:
    """The columns look as they did in a reference: no alarm among them, in all rows or in any segment."""

    columns: tuple[str, ...]
    reference: str
    """A training set's folder, a file, or a folder of Parquet files."""
    segments: tuple[str, ...] = ()
    time_column: str | None = None
    block_hours: float | None = None
    family_rate: float = 0.05
    seed: int = 0
    minimums: tuple[tuple[str, float], ...] = ()
    """Measure -> the least effect that counts, where it is not the usual one."""
    entities: tuple[str, ...] = ()
    """Columns that together say whose a row is: rows of one entity are taken together."""


RowCheckable = Null | Between | InSet | Matches | OfType | Conforms | Pair | Across
Check = RowCheckable | Unique | Aggregate | Columns | Drift


@dataclass(frozen=True, slots=True)
class Compare:
    """A row condition: column against a constant."""

    column: str
    op: Literal["==", "!=", "<", "<=", ">", ">=", "IN", "NOT_IN"]
    value: Bound | bool | tuple[Bound | bool, ...]


@dataclass(frozen=True, slots=True)
class IsNull:
    """A row condition: the column is missing or is not."""

    column: str
    null: bool


@dataclass(frozen=True, slots=True)
class Group:
    """Row conditions joined by `and` or `or`."""

    op: Literal["and", "or"]
    conditions: tuple["Condition", ...]


Condition = Compare | IsNull | Group


@dataclass(frozen=True, slots=True)
class Expectation:
    """One rule's meaning. `check` is None where only Great Expectations can judge it."""

    type: str
    check: Check | None
    mostly: float = 1.0
    where: Condition | None = None

    @property
    def by_row(self) -> bool:
        """Whether one row and its arrival decide it: no other row, no `mostly`."""
        return isinstance(self.check, RowCheckable) and self.mostly >= 1

    @property
    def columns(self) -> tuple[str, ...]:
        """Every column it reads, each once, `_arrival` included."""
        named = [*_columns(self.check), *_condition_columns(self.where)]
        return tuple(dict.fromkeys(named))


def _columns(check: Check | None) -> tuple[str, ...]:
    match check:
        case None | Columns():
            return ()
        case Pair(a, b):
            return (a, b)
        case Across(columns) | Unique(columns):
            return columns
        case Aggregate(column):
            return () if column is None else (column,)
        case Drift(columns, segments=segments, time_column=time_column, entities=entities):
            return (*columns, *segments, *([] if time_column is None else [time_column]), *entities)
        case _:
            return (check.column,)


def _condition_columns(where: Condition | None) -> tuple[str, ...]:
    match where:
        case None:
            return ()
        case Group():
            return tuple(name for part in where.conditions for name in _condition_columns(part))
        case _:
            return (where.column,)
