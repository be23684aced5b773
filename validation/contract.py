"""What was promised about this data? An ODCS 3.x file as a frozen Contract."""

from typing import Literal

import msgspec


class Column(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One promised column; `logical_type` is ODCS's (string, integer, number, boolean, date, timestamp, …)."""

    name: str
    logical_type: str
    required: bool = False
    unique: bool = False
    primary_key: bool = False
    classification: str = ""


class Rule(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One rule: a Great Expectations expectation type and its arguments, with what happens where it fails."""

    id: str
    expectation: str
    """Snake-case expectation type, e.g. expect_column_values_to_be_between."""
    arguments: dict[str, object]
    severity: Literal["critical", "warning", "info"] = "warning"
    mode: Literal["observe", "warn", "quarantine", "block"] = "observe"
    dimension: str = "conformity"
    description: str = ""


class Contract(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A producer's promise about one source: schema, rules, owner."""

    name: str
    version: str
    source: str
    """The Feast source that the contract is about."""
    columns: tuple[Column, ...]
    rules: tuple[Rule, ...]
    owner: str = ""
    support: str = ""
    description: str = ""
