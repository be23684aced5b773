"""Is a violation that repeats one violation with a count, and does everyone see what is theirs?"""

import json
import threading
from pathlib import Path
from typing import Any

import msgspec
import pyarrow as pa
import pytest
from typer.testing import CliRunner

from validation import violations as module
from validation.commands import app
from validation.errors import PlatformError
from validation.place import ObjectPath, Place, place_of
from validation.report import ViolationReport
from validation.testing import ORDERS, SMALL, small_report
from validation.violations import Overtaken, Stretch, ViolationStore
from validation.whole_file import replace_file

RUN = CliRunner()
ORIGIN = "orders.jsonl"


def report(number: int = 0, *, day: int = 1, table: pa.Table = SMALL, **changed: object) -> ViolationReport:
    """A report of that day."""
    created = f"2026-01-{day:02}T00:00:00+00:00"
    told = small_report(table, msgspec.structs.replace(ORDERS, owner="fares"))[1]
    return msgspec.structs.replace(told, report_id=f"r{number}", created=created, **changed)


def test_repetitions_fold_into_one(tmp_path: Path) -> None:
    """With count, rows, first and last seen, whatever the order in which reports come."""
    store = ViolationStore(tmp_path)
    assert [store.record(report(n, day=day)) for n, day in enumerate((3, 1, 2))] == [1, 0, 0]
    (one,) = store.find()
    assert (one.count, one.rows, one.evaluated) == (3, 3, 6)
    assert (one.first_seen[:10], one.last_seen[:10]) == ("2026-01-01", "2026-01-03")
    assert (one.producer, one.rule_id, one.samples[0].values) == ("fares", "positive", {"amount": -1.0})


def test_a_report_recorded_twice_counts_once(tmp_path: Path) -> None:
    """A worker that repeats its last step after a crash does not double what it saw."""
    store = ViolationStore(tmp_path)
    store.record(report())
    store.record(report())
    assert store.find()[0].count == 1
    store.record(report(), again=True)
    assert store.find()[0].count == 2


def test_another_boundary_origin_or_rule_is_another_violation(tmp_path: Path) -> None:
    """A check that broke is not the same as bad data either; a version is the same promise's."""
    store = ViolationStore(tmp_path)
    store.record(report(0))
    store.record(report(1, boundary="event"))
    store.record(report(2, origin="other.jsonl"))
    store.record(report(3, version="2.0.0"))
    store.record(report(4, table=pa.table({"id": ["A"], "amount": [None]})))
    assert sorted((one.rule_id, one.count) for one in store.find()) == [
        *[("id_form", 1), ("positive", 1), ("positive", 1), ("positive", 2)]
    ]
    assert store.find(source="none") == []


def test_filters_show_a_producer_only_its_own(tmp_path: Path) -> None:
    """By producer, contract, source and since."""
    store = ViolationStore(tmp_path)
    store.record(report(0, day=1))
    store.record(report(1, day=5, owner="weather", producer="weather", contract="w", source="w/../w"))
    assert [one.source for one in store.find()] == ["w/../w", "orders"]
    assert [one.source for one in store.find(producer="fares")] == ["orders"]
    assert [one.source for one in store.find(contract="w")] == ["w/../w"]
    assert [one.source for one in store.find(since="2026-01-05T00:00:00+00:00")] == ["w/../w"]
    assert store.find(producer="weather", contract="orders") == []
    assert all(path.parent == tmp_path for path in tmp_path.rglob("*"))


def test_the_store_stays_small(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Many origins push out the ones seen longest ago; many reports of one origin add nothing."""
    monkeypatch.setattr(module, "KEPT", 5)
    store = ViolationStore(tmp_path)
    for number in range(20):
        store.record(report(number, origin=f"file{number}"))
    assert sorted(one.origin for one in store.find()) == [f"file{n}" for n in range(15, 20)]
    size = (tmp_path / "orders.json").stat().st_size
    for number in range(20, 120):
        store.record(report(number, origin="file19"))
    assert (tmp_path / "orders.json").stat().st_size < size + 1_000


def four_writers(folder: Place) -> int:
    """How many of forty reports that come at once are counted."""

    def write(first: int) -> None:
        for number in range(10):
            ViolationStore(folder).record(report(first + number))

    threads = [threading.Thread(target=write, args=(100 * n,)) for n in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return ViolationStore(folder).find()[0].count


def test_writers_take_turns(place: Place) -> None:
    """Four threads, none of whose reports is lost; without the lock, or the condition, some would be."""
    assert four_writers(place) == 40


def test_a_report_put_over_what_nobody_has_read_is_caught(
    in_bucket: ObjectPath, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A planted fault: a change that is put without the condition takes others away."""
    monkeypatch.setattr(ObjectPath, "put_over", lambda self, data, version: self.put(data) or True)
    assert four_writers(in_bucket) < 40


@pytest.mark.parametrize("lost", ["put_first", "put_over"])
def test_a_report_whose_acknowledgement_was_lost_counts_once(
    in_bucket: ObjectPath, monkeypatch: pytest.MonkeyPatch, lost: str
) -> None:
    """Its writer is told that it came too late, and finds it: of other rows, of a range of rows, of its own name."""
    store = ViolationStore(in_bucket)
    if lost == "put_over":
        store.record(report(0, origin="other"))
    put = getattr(ObjectPath, lost)

    def forgets(self: ObjectPath, *given: Any) -> bool:
        put(self, *given)
        monkeypatch.setattr(ObjectPath, lost, put)
        return False

    for number, how in enumerate(({"again": True}, {"stretch": Stretch("t-0", 0, 10)}, {})):
        if lost == "put_first":
            (in_bucket / "orders.json").unlink(missing_ok=True)
        monkeypatch.setattr(ObjectPath, lost, forgets)
        before = {one.origin: one.count for one in store.find()}
        store.record(report(10 + number), **how)
        assert {one.origin: one.count for one in store.find()} == {**before, ORIGIN: before.get(ORIGIN, 0) + 1}


def test_a_torn_file_is_named_and_stops_no_report(place: Place) -> None:
    """Readers are told; the next report begins the file anew and keeps the torn one beside it."""
    replace_file(place / "orders.json", b"{")
    store = ViolationStore(place)
    with pytest.raises(PlatformError, match=r"orders\.json: the violations cannot be read.*begins the file anew"):
        store.find()
    assert store.judged("orders", "t-0") is None
    assert store.record(report()) == 1
    assert [one.count for one in store.find()] == [1]
    assert [path.read_text() for path in place.glob("orders.torn-*")] == ["{"]


def test_a_store_that_is_away_is_not_taken_for_an_empty_one(monkeypatch: pytest.MonkeyPatch) -> None:
    """Who asks up to where rows were reported would report all of them again."""
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "key")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "secret")
    store = ViolationStore(place_of("s3://away-too/violations"))
    with pytest.raises(OSError, match="away-too"):
        store.judged("orders", "t-0")


def test_a_range_of_rows_counts_once(place: Place) -> None:
    """Of two owners of a partition one is told that it was overtaken, and nothing of its report is counted."""
    store = ViolationStore(place)
    store.record(report(0), stretch=Stretch("t-0", 0, 10))
    store.record(report(1), stretch=Stretch("t-0", 10, 12))
    store.record(report(2), stretch=Stretch("t-1", 0, 5))
    for first, end in ((0, 10), (8, 20), (11, 12)):
        with pytest.raises(Overtaken, match="up to 12"):
            store.record(report(3), stretch=Stretch("t-0", first, end))
    assert store.find()[0].count == 3
    assert (store.judged("orders", "t-0"), store.judged("orders", "t-1"), store.judged("x", "t")) == (12, 5, None)


def test_news_is_what_changed_since(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each change once, by its mark; what was pushed out unseen is counted; a file begun anew is all news."""
    monkeypatch.setattr(module, "KEPT", 3)
    store = ViolationStore(place)
    for number in range(2):
        store.record(report(number, origin=f"f{number}"))
    news = store.news({})
    assert [(one.origin, mark.number) for _, mark, one in news.changes] == [("f0", 1), ("f1", 2)]
    assert news.marks["orders"].number == 2
    assert store.news(news.marks).changes == ()
    store.record(report(2, origin="f0"))
    assert [(one.origin, one.count) for _, _, one in store.news(news.marks).changes] == [("f0", 2)]
    for number in range(3, 8):
        store.record(report(number, origin=f"f{number}"))
    late = store.news(news.marks)
    assert ([one.origin for _, _, one in late.changes], late.lost) == (["f5", "f6", "f7"], 3)
    (place / "orders.json").unlink()
    store.record(report(9))
    assert len(store.news(late.marks).changes) == 1


def test_the_command_lists_each_once(tmp_path: Path) -> None:
    """As a table, as JSON, filtered; an instant that is none is refused."""
    store = ViolationStore(tmp_path)
    for number in range(3):
        store.record(report(number))
    base = ["contract", "violations", "--folder", str(tmp_path)]
    assert "positive" in RUN.invoke(app, base).output
    (line,) = RUN.invoke(app, [*base, "--json", "--producer", "fares", "--since", "2026-01-01"]).output.splitlines()
    assert json.loads(line)["count"] == 3
    assert "no violations" in RUN.invoke(app, [*base, "--producer", "other"]).output
    assert "is no instant" in str(RUN.invoke(app, [*base, "--since", "soon"]).exception)
