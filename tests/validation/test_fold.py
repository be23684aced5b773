"""Do files of profiles that become one count once, whoever reads, writes or is killed meanwhile?"""

import subprocess
import sys
import threading
from collections.abc import Callable, Sequence
from pathlib import Path

import pyarrow as pa
import pytest

import validation.profile.store
from validation.profile.baseline import ProfileError, baseline_of
from validation.profile.build import HOUR_US, profile_table
from validation.profile.fold import alone, fold, stands
from validation.profile.store import ProfileStore

BASELINE = baseline_of(pa.table({"x": [float(n) for n in range(100)]}))
STAMP = pa.timestamp("us", "UTC")
KILLED = """
import os, signal, sys
from pathlib import Path
from validation.profile.fold import alone, fold
from validation.profile.store import ProfileStore

folder, baseline_id, left = sys.argv[1], sys.argv[2], int(sys.argv[3])
store = ProfileStore(Path(folder))
baseline = store.baseline(baseline_id)

def before(event, arguments):
    global left
    if event in ("open", "os.rename", "os.remove") and str(arguments[0]).startswith(folder):
        left -= 1
        if left == 0:
            os.kill(os.getpid(), signal.SIGKILL)

sys.addaudithook(before)
with alone(store, "online_write"):
    fold(store, "online_write", baseline, "day", ["a", "b"])
"""


def put(store: ProfileStore, name: str, values: Sequence[float], hour: int = 0) -> None:
    at = pa.array([hour * HOUR_US] * len(values), STAMP)
    made = profile_table(pa.table({"x": values, "at": at}), BASELINE, time_column="at", threads=1)
    store.put(name, made, boundary="online_write", baseline=BASELINE)


def read(store: ProfileStore) -> list[str]:
    return [one.digest() for one in store.read(boundary="online_write", baseline=BASELINE.id)]


def folded(store: ProfileStore, *names: str) -> None:
    with alone(store, "online_write"):
        fold(store, "online_write", BASELINE, "day", names)


def names(store: ProfileStore) -> list[str]:
    return [path.stem for path in store.paths("online_write")]


@pytest.fixture
def store(tmp_path: Path) -> ProfileStore:
    made = ProfileStore(tmp_path)
    put(made, "a", [1.0, 2.0])
    put(made, "b", [3.0])
    return made


def test_one_file_is_left_and_reads_the_same(store: ProfileStore) -> None:
    """Of several hours; what comes later is added; what is not named stays; nothing to do changes nothing."""
    put(store, "c", [4.0], hour=1)
    put(store, "d", [5.0])
    before = read(store)
    folded(store, "a", "b")
    folded(store, "c")
    folded(store, "c")
    assert (names(store), read(store)) == (["d", "day"], before)


def test_whoever_is_killed_anywhere_neither_loses_nor_doubles(tmp_path: Path) -> None:
    """SIGKILL before each file that a fold opens, renames or removes; and then folded by the next one."""
    for step in range(1, 40):
        store = ProfileStore(tmp_path / str(step))
        put(store, "a", [1.0, 2.0])
        put(store, "b", [3.0])
        before = read(store)
        arguments = [sys.executable, "-c", KILLED, str(store.folder), BASELINE.id, str(step)]
        code = subprocess.run(arguments, check=False).returncode
        assert read(store) == before, step
        put(store, "c", [4.0])
        after = read(store)
        folded(store, "a", "b", "c")
        assert (read(store), names(store)) == (after, ["day"]), step
        if code == 0:
            break
        assert code == -9
    assert 6 < step < 39


def killed(self: Path, missing_ok: bool = False) -> None:
    """Instead of removing a file of profiles."""
    if self.suffix == ".parquet":
        raise KeyboardInterrupt


def broken_off(store: ProfileStore, monkeypatch: pytest.MonkeyPatch) -> None:
    """A fold that ended before anything was removed."""
    with monkeypatch.context() as patch:
        patch.setattr(Path, "unlink", killed)
        with pytest.raises(KeyboardInterrupt):
            folded(store, "a", "b")


def test_a_fold_that_does_not_name_what_it_replaces_would_be_caught(
    store: ProfileStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Planted fault: both would count."""
    before, right = read(store), ProfileStore.put

    def unnamed(self: ProfileStore, *given: object, replaces: object = (), **named: object) -> Path:
        del replaces
        return right(self, *given, **named)  # type: ignore[arg-type]  # passed on as given

    monkeypatch.setattr(ProfileStore, "put", unnamed)
    broken_off(store, monkeypatch)
    assert read(store) != before


def test_a_file_that_was_folded_does_not_stand(store: ProfileStore, monkeypatch: pytest.MonkeyPatch) -> None:
    """Removed or not: its owner begins another, since what it adds to it would not count."""

    def standing() -> list[bool]:
        return [stands(store, "online_write", BASELINE.id, name, "day") for name in ("a", "b", "c")]

    put(store, "c", [1.0])
    assert standing() == [True, True, True]
    broken_off(store, monkeypatch)
    assert standing() == [False, False, True]
    folded(store)
    assert (standing(), names(store)) == ([False, False, True], ["c", "day"])


def hurried(store: ProfileStore, fold_some: Callable[[list[str]], None]) -> set[int]:
    """The rows that are read while twenty files of one row are folded in four steps, again and again."""
    found: set[int] = set()
    for _ in range(4):
        given = [f"s{number}" for number in range(20)]
        for name in given:
            put(store, name, [1.0])
        done = threading.Event()

        def look(done: threading.Event = done) -> None:
            while not done.is_set():
                try:
                    [one] = store.read(boundary="online_write", baseline=BASELINE.id)
                    found.add(one.rows)
                except ProfileError:
                    found.add(0)

        threads = [threading.Thread(target=look) for _ in range(3)]
        for thread in threads:
            thread.start()
        for start in range(0, 20, 5):
            fold_some(given[start : start + 5])
        done.set()
        for thread in threads:
            thread.join()
        folded(store)
        for path in store.paths("online_write"):
            path.unlink()
    return found


def test_readers_see_each_row_once_while_files_are_folded(tmp_path: Path) -> None:
    """Neither both files nor none of them."""
    store = ProfileStore(tmp_path)
    assert hurried(store, lambda given: folded(store, *given)) == {20}


def test_readers_that_look_once_would_be_caught(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Planted fault: files vanish between the list and the reading."""
    monkeypatch.setattr(validation.profile.store, "_ATTEMPTS", 1)
    store = ProfileStore(tmp_path)
    assert any(hurried(store, lambda given: folded(store, *given)) != {20} for _ in range(10))
