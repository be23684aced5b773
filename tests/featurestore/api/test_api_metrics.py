"""What was counted in plain numbers is what Prometheus's client would have counted one by one."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from prometheus_client import CollectorRegistry, Counter, Histogram, generate_latest
from prometheus_client.mmap_dict import MmapedDict, mmap_key

from featurestore.api.metrics import _AGES_S, _SECONDS, Metrics
from featurestore.api.worker_metrics import VARIABLE, exposed_registry
from featurestore.online.result import Block, Status

T_US = 1_700_000_000_000_000
EDGES = sorted({bound + off for bound in (*_SECONDS, *_AGES_S) for off in (-1e-6, 0.0, 1e-6)} | {0.0, 1e9})


@st.composite
def answers(draw: st.DrawFn) -> Block:
    rows = draw(st.integers(1, 4))
    statuses = draw(st.lists(st.sampled_from([1, 3, 4]), min_size=rows, max_size=rows))
    ages = draw(st.lists(st.sampled_from(EDGES), min_size=rows, max_size=rows))
    events = [0 if status == 3 else T_US - round(age * 1e6) for status, age in zip(statuses, ages, strict=True)]
    oldest_us = min(filter(None, events), default=0)
    names = ("a", "b")
    return Block(
        draw(st.sampled_from(["v", "w"])), names, ("DOUBLE",) * 2, [(1.0, 2.0)] * rows, bytes(statuses), events,
        None, T_US, oldest_us,
    )  # fmt: skip


@settings(max_examples=60, deadline=None)
@given(st.lists(answers(), max_size=5), st.lists(st.sampled_from(EDGES), max_size=6), st.booleans())
def test_folded_counts_are_the_library_s_own(parts: list[Block], seconds: list[float], early: bool) -> None:
    """Latencies, statuses and ages, on the edges of buckets too, whenever they are folded; blocks count as columns."""
    registry, plain = CollectorRegistry(), CollectorRegistry()
    metrics = Metrics(registry)
    requests = Histogram(
        "featurestore_request_seconds", "Time from the first byte of a body to the last byte of its answer", ["code"],
        registry=plain, buckets=_SECONDS,
    )  # fmt: skip
    values = Counter("featurestore_values", "Values served, by view and status", ["view", "status"], registry=plain)
    ages = Histogram(
        "featurestore_value_age_seconds", "Age of the oldest row of a view in one answer", ["view"],
        registry=plain, buckets=_AGES_S,
    )  # fmt: skip
    for each in seconds:
        metrics.answered(200, each)
        requests.labels(200).observe(each)
    for number, part in enumerate(parts):
        metrics.served([part] if number % 2 else part.columns())
        if early:
            metrics.fold()
        for status in Status:
            values.labels(part.view, status.name).inc(2 * part.statuses.count(status))
        observed = ages.labels(part.view)
        if part.oldest_us:
            observed.observe((T_US - part.oldest_us) / 1e6)
    told = metrics.exposition().decode().splitlines()
    wanted = generate_latest(plain).decode().splitlines()
    assert np.array_equal(shown(told), shown(wanted))


def shown(lines: list[str]) -> list[str]:
    """The samples, without the times of creation."""
    names = ("featurestore_request_seconds", "featurestore_values", "featurestore_value_age_seconds")
    return sorted(line for line in lines if line.startswith(names) and "_created" not in line)


def test_the_file_of_a_worker_that_is_starting_does_not_spoil_the_answer(tmp_path):
    """It is empty for as long as the disk takes to make it; until then that worker has counted nothing."""
    file = tmp_path / "counter_1.db"
    file.touch()
    shown = [generate_latest(exposed_registry({VARIABLE: str(tmp_path)}, CollectorRegistry()))]
    counted = MmapedDict(str(file))
    counted.write_value(mmap_key("seen", "seen_total", [], [], "What was seen"), 3.0, 0.0)
    counted.close()
    shown.append(generate_latest(exposed_registry({VARIABLE: str(tmp_path)}, CollectorRegistry())))
    assert shown[0] == b""
    assert b"seen_total 3.0" in shown[1]


def test_a_torn_file_is_an_error_and_not_a_wrong_sum(tmp_path):
    """Half of a number is no number."""
    (tmp_path / "counter_1.db").write_bytes(b"\x10\x00")
    with pytest.raises(Exception, match="buffer"):
        generate_latest(exposed_registry({VARIABLE: str(tmp_path)}, CollectorRegistry()))
