"""What became of rows in quarantine since they were set aside?

Replay judges them again, under the current contract or another version; discard gives them up. The rows themselves
stay where the sink put them, since its cursor is read from the names of its files. What became of them lies beside:

    <quarantine>/<source>/attempts/000001.parquet    what the first run decided
    <quarantine>/<source>/attempts/000001.done       ... was carried out

one line per row judged again: accepted, rejected (once more) or discarded. A row that is neither accepted nor discarded
is open. Quarantined = open + accepted + discarded, always.

Accepted rows of files go to `<output>/<source>-<run>.parquet`, with the columns of the file; accepted events go to
their topic's replay topic, through whoever was handed in. The order is: 1. the decisions, under the next number, of
which any number of runs can make one only, and only once all before are carried out; 2. the accepted rows; 3. the mark
that it is done. Who comes second at 1 decides again, of what is open by then. A run that is killed before 1 leaves
nothing, after it its decisions, which the next run carries out first, with the same file and the same events, each
under its origin, by which a repetition is known. One that sleeps meanwhile, for however long, does what was done
already. So every row is accepted once, and nobody waits for a process that is gone (`validation.decision_log`).

On a disk a lock of the machine's makes the second wait all the same: it spares handing on twice what is under way.
"""

import contextlib
import fcntl
import hashlib
import json
import re
import secrets
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Final, Literal, Protocol
from urllib.parse import quote

import msgspec
import pyarrow as pa
import pyarrow.parquet as pq

from validation.compiled.rows import RowCheck, compile_rows
from validation.contract import Contract
from validation.decision_log import DecisionLog
from validation.errors import PlatformError
from validation.files import table_of_rows
from validation.lines import UnreadableData
from validation.place import ObjectPath, Place, readable
from validation.quarantine import CONTRACT, SCHEMA, put_table, read_quarantine

ATTEMPTS: Final = pa.schema(
    [
        ("origin_id", pa.string()),
        ("partition", pa.int32()),
        ("offset", pa.int64()),
        ("attempt", pa.int32()),
        ("outcome", pa.string()),
        ("reason", pa.string()),
        ("detail", pa.string()),
        ("rule_ids", pa.list_(pa.string())),
        ("contract", pa.string()),
        ("contract_version", pa.string()),
        ("at", pa.timestamp("us", "UTC")),
    ]
)
IDENTITY: Final = ("origin_id", "partition", "offset")
ORIGIN: Final = "_origin"
_DIGEST: Final = re.compile(r"[0-9a-f]{64}")
"""The id of an origin that is a file."""

Outcome = Literal["accepted", "rejected", "discarded"]
Identity = tuple[str, int, int]


class Decision(msgspec.Struct, frozen=True):
    """Why an event is rejected again; without a reason it is accepted."""

    reason: str = ""
    detail: str = ""
    rule_ids: tuple[str, ...] = ()


class Events(Protocol):
    """Who judges events as their stream would, and sends them again."""

    def judge(self, rows: Sequence[Mapping[str, Any]], contract: Contract, now_us: int) -> Sequence[Decision]:
        """A decision on each row of the quarantine, arriving now."""

    def deliver(self, rows: Sequence[Mapping[str, Any]], contract: Contract, now_us: int) -> str:
        """Sends rows that were accepted, and waits until all are acknowledged; the topic. May be called again."""


class Run(msgspec.Struct, frozen=True, kw_only=True):
    """What one replay or discard did."""

    judged: int
    accepted: int
    rejected: int
    discarded: int
    outputs: tuple[Path, ...]
    topics: tuple[str, ...] = ()
    """Where accepted events went."""

    def __post_init__(self) -> None:
        """In = accepted + quarantined + given up: whatever was judged is in exactly one."""
        assert self.judged == self.accepted + self.rejected + self.discarded, "a row was lost or counted twice"


def open_rows(folder: Place, source: str | None = None) -> pa.Table:
    """The rows of `read_quarantine` that are neither accepted nor discarded, with their latest attempt and reason."""
    rows = read_quarantine(folder, source)
    found = rows.to_pylist() if rows.num_rows else []
    latest = {name: attempts(folder, name) for name in {row["source"] for row in found}}
    kept: list[int] = []
    for number, row in enumerate(found):
        last = latest[row["source"]].get(_identity(row))
        if last is None:
            kept.append(number)
        elif last["outcome"] == "rejected":
            kept.append(number)
            row.update({name: last[name] for name in ("attempt", "reason", "detail", "rule_ids")})
            row.update(contract=last["contract"], contract_version=last["contract_version"])
    return pa.Table.from_pylist([found[number] for number in kept], schema=SCHEMA)


def attempts(folder: Place, source: str) -> dict[Identity, dict[str, Any]]:
    """The latest attempt of each row of a source that was judged again."""
    latest: dict[Identity, dict[str, Any]] = {}
    for path in DecisionLog(_place(folder, source)).paths():
        for row in _read(path).to_pylist():
            known = latest.get(_identity(row))
            if known is None or known["attempt"] < row["attempt"]:
                latest[_identity(row)] = row
    return latest


def replay(
    folder: Place,
    contract: Contract,
    output: Path,
    *,
    now_us: int,
    rule: str | None = None,
    events: Events | None = None,
) -> Run:
    """Judges the open rows of the contract's source again; those that it accepts are written, or sent again.

    With `rule` only rows that broke it. Rows of files are judged as a producer's batch, by the rules of one row and
    with the arrival they had; events by `events`, arriving now. Idempotent: what was accepted is open no more. Raises
    PlatformError where there are events and nobody to send them.
    """

    def decide() -> list[dict[str, Any]]:
        return _judge(_chosen(folder, contract.source, rule), contract, now_us, events)

    return _run(folder, contract.source, decide, contract, output, now_us, events)


def discard(folder: Place, source: str, *, reason: str, now_us: int, rule: str | None = None) -> Run:
    """Gives up the open rows of a source (that broke a rule), and keeps the reason; idempotent."""

    def decide() -> list[dict[str, Any]]:
        return [
            _attempt(row, "discarded", now_us, row["contract"], row["contract_version"], Decision(reason))
            for row in _chosen(folder, source, rule)
        ]

    return _run(folder, source, decide, None, None, now_us, None)


def of_events(folder: Place, source: str) -> bool:
    """Whether any row of a source in quarantine is an event of a topic."""
    return any(map(_is_event, read_quarantine(folder, source).select(["origin_id"]).to_pylist()))


def _chosen(folder: Place, source: str, rule: str | None) -> list[dict[str, Any]]:
    return [row for row in open_rows(folder, source).to_pylist() if rule is None or rule in row["rule_ids"]]


def _judge(
    rows: Sequence[Mapping[str, Any]], contract: Contract, now_us: int, events: Events | None
) -> list[dict[str, Any]]:
    """A decision on each row, in order."""
    sent = [row for row in rows if _is_event(row)]
    told = iter(_sender(events).judge(sent, contract, now_us)) if sent else iter(())
    check = compile_rows(_of_rows(contract.at("producer")))
    decided = []
    for row in rows:
        decision = next(told) if _is_event(row) else _decision(row["row"], contract, check)
        outcome: Outcome = "rejected" if decision.reason else "accepted"
        decided.append(_attempt(row, outcome, now_us, contract.name, contract.version, decision))
    return decided


def _decision(row: bytes, contract: Contract, check: RowCheck) -> Decision:
    """On a file's row, which keeps the arrival it carries."""
    values = _values(row)
    if values is None or (wrong := _wrong_type(values, contract)):
        return Decision("malformed", "no JSON object" if values is None else wrong)
    mask = check.check([values])[0] & check.quarantine_mask
    return Decision(CONTRACT, rule_ids=check.ids(mask)) if mask else Decision()


def _sender(events: Events | None) -> Events:
    if events is None:
        raise PlatformError(
            "there are events to replay, and no broker to send them to: `featurestore quarantine replay`"
        )
    return events


def _of_rows(contract: Contract) -> Contract:
    """The contract without quarantine where a row alone does not decide."""
    meanings = contract.expectations()
    rules = [
        rule if meaning.by_row or rule.mode != "quarantine" else msgspec.structs.replace(rule, mode="warn")
        for rule, meaning in zip(contract.rules, meanings, strict=True)
    ]
    return msgspec.structs.replace(contract, rules=tuple(rules))


def _wrong_type(values: Mapping[str, Any], contract: Contract) -> str:
    try:
        table_of_rows([values], contract)
    except UnreadableData as error:
        return str(error)
    return ""


def _is_event(row: Mapping[str, Any]) -> bool:
    return _DIGEST.fullmatch(row["origin_id"]) is None


def _values(row: bytes) -> dict[str, Any] | None:
    try:
        found = json.loads(row)  # not msgspec: a NaN of a file's row is written as NaN
    except ValueError:
        return None
    return found if isinstance(found, dict) else None


def _attempt(
    row: Mapping[str, Any], outcome: Outcome, now_us: int, contract: str, version: str, decision: Decision
) -> dict[str, Any]:
    return {
        **{name: row[name] for name in IDENTITY},
        "attempt": row["attempt"] + 1,
        "outcome": outcome,
        "reason": decision.reason,
        "detail": decision.detail,
        "rule_ids": list(decision.rule_ids),
        "contract": contract,
        "contract_version": version,
        "at": now_us,
    }


def _run(
    folder: Place,
    source: str,
    decide: Callable[[], list[dict[str, Any]]],
    contract: Contract | None,
    output: Path | None,
    now_us: int,
    events: Events | None,
) -> Run:
    """What is left of the last run, then steps 1 to 3 of this one."""
    outputs: list[Path] = []
    topics: dict[str, None] = {}

    def carry_out() -> int:
        number, handed = _carry_out(folder, source, log, events)
        outputs.extend(handed.outputs)
        topics.update(dict.fromkeys(handed.topics))
        return number

    with _in_turn(folder, source) as log:
        while True:
            number = carry_out()
            decided = decide()
            if not decided:
                break
            if log.take(number + 1, _table_of(decided, contract, output, now_us)):
                carry_out()
                break
            # Another run was first: what is open is what it left.
    outcomes = [row["outcome"] for row in decided]
    return Run(
        judged=len(decided),
        **{name: outcomes.count(name) for name in ("accepted", "rejected", "discarded")},
        outputs=tuple(outputs),
        topics=tuple(topics),
    )


def _table_of(
    decided: Sequence[Mapping[str, Any]], contract: Contract | None, output: Path | None, now_us: int
) -> pa.Table:
    """The decisions of a run, with all that whoever carries them out must know."""
    columns = {field.name: pa.array([row[field.name] for row in decided], field.type) for field in ATTEMPTS}
    names = json.dumps([[row[name] for name in IDENTITY] + [row["attempt"], row["outcome"]] for row in decided])
    told = {
        "run": hashlib.sha256(names.encode()).hexdigest()[:16],
        "output": str(output.resolve()) if output is not None else "",
        "contract": msgspec.json.encode(contract).decode() if contract is not None else "",
        "now_us": str(now_us),
        "by": secrets.token_hex(8),
    }
    return pa.table(columns, schema=ATTEMPTS.with_metadata(told))


class _Handed(msgspec.Struct, frozen=True):
    """Where accepted rows went."""

    outputs: tuple[Path, ...] = ()
    topics: tuple[str, ...] = ()


def _carry_out(folder: Place, source: str, log: DecisionLog, events: Events | None) -> tuple[int, _Handed]:
    """Steps 2 and 3 of the last run, if they are not done: the same file and events, whoever hands them on."""
    number, done = log.last()
    if done:
        return number, _Handed()
    decisions = _read(log.path(number))
    told = {key.decode(): value.decode() for key, value in (decisions.schema.metadata or {}).items()}
    outputs: tuple[Path, ...] = ()
    topics: tuple[str, ...] = ()
    if told["output"]:
        accepted = {_identity(row): row["attempt"] for row in decisions.to_pylist() if row["outcome"] == "accepted"}
        rows = [row for row in read_quarantine(folder, source).to_pylist() if _identity(row) in accepted]
        contract, now_us = msgspec.json.decode(told["contract"], type=Contract), int(told["now_us"])
        sent = [{**row, "attempt": accepted[_identity(row)]} for row in rows if _is_event(row)]
        filed = [row for row in rows if not _is_event(row)]
        if filed:
            outputs = (Path(told["output"]) / f"{quote(source, safe='')}-{told['run']}.parquet",)
            put_table(_table(filed, contract), outputs[0])
        if sent:
            topics = (_sender(events).deliver(sent, contract, now_us),)
    # Last: a crash before this line hands the same rows on again, it never leaves one out.
    log.carried_out(number)
    return number, _Handed(outputs, topics)


def _table(rows: Sequence[Mapping[str, Any]], contract: Contract) -> pa.Table:
    """The rows of files as they were promised, with their origin."""
    values = [dict(_values(row["row"]) or {}) for row in rows]
    return table_of_rows(values, contract).append_column(ORIGIN, pa.array(map(origin_of, rows), pa.string()))


def origin_of(row: Mapping[str, Any]) -> str:
    """Where a row in quarantine came from, as one word.

    >>> origin_of({"origin_id": "u5wD", "partition": 2, "offset": 7})
    'u5wD-2-7'
    """
    return f"{row['origin_id']}-{row['partition']}-{row['offset']}"


def _identity(row: Mapping[str, Any]) -> Identity:
    return row["origin_id"], row["partition"], row["offset"]


def _place(folder: Place, source: str) -> Place:
    return folder / quote(source, safe="") / "attempts"


@contextlib.contextmanager
def _in_turn(folder: Place, source: str) -> Iterator[DecisionLog]:
    """What was decided so far, on a disk held by one process at a time; raises ContractError for an unknown source."""
    read_quarantine(folder, source)
    place = _place(folder, source)
    if isinstance(place, ObjectPath):
        yield DecisionLog(place)
        return
    place.mkdir(parents=True, exist_ok=True)
    with (place / ".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield DecisionLog(place)


def _read(path: Place) -> pa.Table:
    try:
        return pq.read_table(readable(path), partitioning=None)
    except (pa.ArrowInvalid, OSError) as error:
        raise PlatformError(f"{path}: what became of rows in quarantine cannot be read: {error}") from error


def counts(folder: Place, source: str) -> dict[str, int]:
    """How many rows of a source are quarantined, and of these open, accepted and discarded since."""
    rows = read_quarantine(folder, source)
    latest = attempts(folder, source)
    identities = set(zip(*(rows.column(name).to_pylist() for name in IDENTITY), strict=True))
    outcomes = [one["outcome"] for identity, one in latest.items() if identity in identities]
    found = {name: outcomes.count(name) for name in ("accepted", "discarded")}
    still_open = open_rows(folder, source).num_rows
    assert rows.num_rows == still_open + sum(found.values()), f"{source}: a row in quarantine was lost or counted twice"
    return {"quarantined": rows.num_rows, "open": still_open, **found}
