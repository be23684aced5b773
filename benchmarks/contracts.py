"""How fast are compiled rules, next to Great Expectations on pandas (and pandera, where it is installed)?

    python -m benchmarks.contracts --rows 1e6 --times 3

30 rules over flights-like rows with dirt in them. Verdicts (success and unexpected counts of every rule) are compared
before any time is printed. Batches run in a process of their own each, so that peak memory is its own; the peer gets a
DataFrame that is in memory already, we an Arrow table. What is small is timed in processor seconds: other work on the
machine does not count.
"""

import argparse
import contextlib
import multiprocessing
import resource
import statistics
import sys
import time
from collections.abc import Callable
from importlib import import_module
from importlib.util import find_spec
from typing import Any

import msgspec
import numpy as np
import pyarrow as pa

from validation.compiled.batch import compile_batch
from validation.compiled.rows import compile_rows
from validation.contract import Column, Contract, Rule
from validation.verdict import Verdict

TYPES = {
    "event_id": "string",
    "origin": "string",
    "dest": "string",
    "carrier": "string",
    "flight": "integer",
    "late": "integer",
    "dep_delay": "number",
    "distance": "number",
    "scheduled": "timestamp",
    "departed": "timestamp",
}
VALUES = "expect_column_values_to_"


def rules() -> tuple[Rule, ...]:
    """30 rules: 10 about nulls, 6 about ranges, 4 about sets, 5 about text, 2 about pairs, 3 about the whole."""
    made: list[tuple[str, dict[str, Any]]] = [(f"{VALUES}not_be_null", {"column": column}) for column in TYPES]
    for column, low, high in (
        *(("flight", 1, 9000), ("flight", 0, 10_000), ("dep_delay", -60, 1500), ("dep_delay", -500, 5000)),
        *(("distance", 1, 5000), ("distance", 0, 4990)),
    ):
        made.append((f"{VALUES}be_between", {"column": column, "min_value": low, "max_value": high}))
    made += [
        (f"{VALUES}be_in_set", {"column": "origin", "value_set": ["EWR", "JFK", "LGA"]}),
        (f"{VALUES}be_in_set", {"column": "late", "value_set": [0, 1]}),
        (f"{VALUES}not_be_in_set", {"column": "carrier", "value_set": ["ZZ", "XX"]}),
        (f"{VALUES}be_in_set", {"column": "carrier", "value_set": ["AA", "B6", "DL", "UA"]}),
        (f"{VALUES}match_regex", {"column": "dest", "regex": "^[A-Z]{3}$"}),
        (f"{VALUES}match_regex", {"column": "carrier", "regex": "^[A-Z0-9]{2}$"}),
        (f"{VALUES}not_match_regex", {"column": "dest", "regex": "[0-9]"}),
        ("expect_column_value_lengths_to_equal", {"column": "origin", "value": 3}),
        ("expect_column_value_lengths_to_be_between", {"column": "event_id", "min_value": 1, "max_value": 12}),
        ("expect_column_pair_values_a_to_be_greater_than_b", {"column_A": "departed", "column_B": "scheduled"}),
        ("expect_column_pair_values_to_be_equal", {"column_A": "origin", "column_B": "dest", "mostly": 0.0}),
        ("expect_column_mean_to_be_between", {"column": "dep_delay", "min_value": 0, "max_value": 60}),
        ("expect_column_max_to_be_between", {"column": "distance", "max_value": 5000}),
        ("expect_table_row_count_to_be_between", {"min_value": 1}),
    ]
    return tuple(Rule(id=f"{n}", expectation=type_, arguments=given) for n, (type_, given) in enumerate(made))


CONTRACT = Contract(
    name="bench",
    version="1",
    source="flights",
    columns=tuple(Column(name=name, logical_type=logical) for name, logical in TYPES.items()),
    rules=rules(),
)


def rows(count: int, seed: int = 7) -> pa.Table:
    """Flights-like rows; one value in a thousand is missing, one in a thousand breaks its rule."""
    rng = np.random.default_rng(seed)

    def holes(values: Any, type_: pa.DataType) -> pa.Array:
        return pa.array(values, type_, mask=rng.random(count) < 0.001)

    def words(*choices: str, rare: str) -> pa.Array:
        codes = np.where(rng.random(count) < 0.001, len(choices), rng.integers(0, len(choices), count))
        return holes(np.array([*choices, rare])[codes], pa.string())

    stamp = pa.timestamp("us", "UTC")
    scheduled = 1_700_000_000_000_000 + rng.integers(0, 31_536_000_000_000, count)
    delay = rng.gamma(2.0, 12.0, count) - 10
    return pa.table(
        {
            "event_id": holes(np.char.add("f", np.arange(count).astype(str)), pa.string()),
            "origin": words("EWR", "JFK", "LGA", rare="SWF"),
            "dest": words("LAX", "ORD", "ATL", "BOS", rare="bo5"),
            "carrier": words("AA", "B6", "DL", "UA", rare="ZZ"),
            "flight": holes(rng.integers(1, 9005, count), pa.int64()),
            "late": holes((rng.random(count) < 0.2).astype(np.int64), pa.int64()),
            "dep_delay": holes(delay, pa.float64()),
            "distance": holes(rng.uniform(80, 5002, count), pa.float64()),
            "scheduled": holes(scheduled, stamp),
            "departed": holes(scheduled + (delay * 60_000_000).astype(np.int64), stamp),
        }
    )


def told(verdict: Verdict) -> dict[str, tuple[Any, ...]]:
    """What is compared of a verdict."""
    return {rule.rule_id: (rule.success, rule.evaluated, rule.unexpected) for rule in verdict.rules}


Answer = dict[str, tuple[Any, ...]]


def batch_ours(table: pa.Table, times: int) -> tuple[list[float], Answer]:
    """Seconds of each run of the compiled batch, and its verdict."""
    check = compile_batch(CONTRACT)
    seconds = []
    for _ in range(times):
        started = time.perf_counter()
        verdict = check.run(table)
        seconds.append(time.perf_counter() - started)
    return seconds, told(verdict)


def batch_great_expectations(table: pa.Table, times: int) -> tuple[list[float], Answer]:
    """Seconds of each of the library's own validations of a DataFrame in memory, and the verdict."""
    import great_expectations as gx

    from validation.suite import frame, judge, suite_of

    data, suite = frame(table, CONTRACT), suite_of(CONTRACT)
    context = gx.get_context(mode="ephemeral")
    context.variables.progress_bars = {"globally": False}
    asset = context.data_sources.add_pandas("peer").add_dataframe_asset("peer")
    batch = asset.add_batch_definition_whole_dataframe("whole").get_batch({"dataframe": data})
    seconds = []
    for _ in range(times):
        started = time.perf_counter()
        batch.validate(suite, result_format="SUMMARY")
        seconds.append(time.perf_counter() - started)
    return seconds, told(judge(CONTRACT, table))


def pandera_seconds(table: pa.Table, times: int) -> list[float]:
    """Seconds of pandera on the null, range and set rules alone: what it shares with the other two."""
    pandera: Any = import_module("pandera.pandas")  # where it is installed

    checks: dict[str, list[Any]] = {column: [] for column in TYPES}
    for rule in CONTRACT.rules:
        given = rule.arguments
        if rule.expectation == f"{VALUES}be_between":
            checks[str(given["column"])].append(pandera.Check.in_range(given["min_value"], given["max_value"]))
        elif rule.expectation == f"{VALUES}be_in_set":
            checks[str(given["column"])].append(pandera.Check.isin(given["value_set"]))
    schema = pandera.DataFrameSchema({name: pandera.Column(checks=found) for name, found in checks.items()})
    data, seconds = table.to_pandas(), []
    for _ in range(times):
        started = time.perf_counter()
        with contextlib.suppress(pandera.errors.SchemaErrors):
            schema.validate(data, lazy=True)
        seconds.append(time.perf_counter() - started)
    return seconds


def _in_process(work: Callable[..., Any], count: int, times: int, pipe: Any) -> None:
    table = rows(count)
    answer = work(table, times)
    pipe.send((answer, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024))


def alone(work: Callable[..., Any], count: int, times: int) -> tuple[Any, float]:
    """The answer of work in a fresh process, and its peak memory in MB, the making of the rows included."""
    context = multiprocessing.get_context("spawn")
    receiving, sending = context.Pipe(duplex=False)
    process = context.Process(target=_in_process, args=(work, count, times, sending))
    process.start()
    sending.close()
    answer: tuple[Any, float] = receiving.recv()
    process.join()
    return answer


def rejected(table: pa.Table, times: int) -> tuple[float, float, int]:
    """Processor seconds to tell the rows that row rules reject, by one statement and by the row function; their number.

    Both must name the same rows with the same rules.
    """
    kept = tuple(
        msgspec.structs.replace(rule, mode="quarantine" if meaning.by_row else "warn")
        for rule, meaning in zip(CONTRACT.rules, CONTRACT.expectations(), strict=True)
    )
    contract = msgspec.structs.replace(CONTRACT, rules=kept)
    by_sql, by_row = compile_batch(contract, python_rows=0), compile_batch(contract, python_rows=table.num_rows)
    answers, seconds = [], []
    for check in (by_sql, by_row):
        runs = []
        for _ in range(times):
            started = time.process_time()
            answer = check.split(table)[1]
            runs.append(time.process_time() - started)
        answers.append(answer)
        seconds.append(statistics.median(runs))
    assert answers[0] == answers[1], "statement and row function reject other rows"
    return seconds[0], seconds[1], len(answers[0])


def per_event(times: int) -> list[tuple[int, float]]:
    """Microseconds a batch takes of masks and counts, for several sizes: the median of many runs.

    Elapsed time over events that are new in each batch; instants are microseconds, as the stream decodes them.
    """
    check = compile_rows(CONTRACT)
    table = rows(10_000)
    for column in ("scheduled", "departed"):
        instants = table.column(column).cast(pa.int64())
        table = table.set_column(table.schema.get_field_index(column), column, instants)
    events, found = table.to_pylist(), []
    for size in (1, 10, 100, 1_000):
        batches, runs = [events[start : start + size] for start in range(0, len(events), size)], []
        for _ in range(max(15, times * 5)):
            started = time.perf_counter()
            for batch in batches:
                check.tally(check.check(batch))
            runs.append((time.perf_counter() - started) / len(batches) * 1e6)
        found.append((size, statistics.median(runs)))
    return found


def small_batches(times: int) -> tuple[float, float]:
    """Milliseconds for 1,000 events as the library's result objects: ours, and the library's own validation."""
    from validation.suite import ResultForm, validate

    table, check, form = rows(1_000), compile_batch(CONTRACT), ResultForm(CONTRACT)
    assert form.of(check.run(table)).statistics == validate(CONTRACT, table).statistics
    ours, theirs = [], []
    for _ in range(max(10, times * 5)):
        started = time.process_time()
        form.of(check.run(table))
        ours.append(time.process_time() - started)
    for _ in range(max(3, times)):
        started = time.process_time()
        validate(CONTRACT, table)
        theirs.append(time.process_time() - started)
    return statistics.median(ours) * 1e3, statistics.median(theirs) * 1e3


def main() -> int:
    """Compares verdicts, then prints figures; exit code 1 where a verdict differs."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rows", type=float, default=1e6)
    parser.add_argument("--times", type=int, default=3)
    given = parser.parse_args()
    count = int(given.rows)
    (ours, mine), after = alone(batch_ours, count, given.times)
    (theirs, others), peer_after = alone(batch_great_expectations, count, given.times)
    differing = [rule for rule in mine if mine[rule] != others[rule]]
    if differing:
        for rule in differing:
            print(f"rule {rule}: {mine[rule]} != {others[rule]}: {CONTRACT.rules[int(rule)]}")
        return 1
    print(f"{len(mine)} verdicts equal over {count:,} rows")
    us, peer = statistics.median(ours), statistics.median(theirs)
    print(f"batch   compiled {us:8.3f} s, peak of the process {after:.0f} MB")
    print(f"        Great Expectations on pandas {peer:8.3f} s, peak of the process {peer_after:.0f} MB")
    print(f"        {peer / us:.1f} times as fast")
    if find_spec("pandera"):
        seconds, peak = alone(pandera_seconds, count, given.times)
        print(f"        pandera, range and set rules alone {statistics.median(seconds):8.3f} s, peak {peak:.0f} MB")
    sql_s, row_s, aside = rejected(rows(count), given.times)
    print(
        f"rows    {aside:,} to set aside told by one statement in {sql_s:.2f} s, by the row function in {row_s:.2f} s"
    )
    for size, microseconds in per_event(given.times):
        print(f"events  {size:5} at once: {microseconds:8.2f} us the batch, {microseconds / size:5.2f} us an event")
    ours_ms, theirs_ms = small_batches(given.times)
    print(f"results of 1,000 events: {ours_ms:.1f} ms; Great Expectations on pandas {theirs_ms:.0f} ms")
    return 0


if __name__ == "__main__":
    sys.exit(main())
