"""Does an object store answer as a disk does, and does a file appear in it whole or not at all, once?"""

import os
import random
import signal
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from validation.errors import PlatformError
from validation.place import ObjectPath, place_of
from validation.whole_file import first_file, hint_file, replace_file, whole_file

MANY_BYTES = 12 << 20
"""More than goes into one part of an upload."""
NAMES = (
    "a.parquet",
    "day=2026-01-31/b.parquet",
    "day=2026-02-01/c.json",
    "day=2026-02-01/x y%20z.parquet",
    "_in/d/e.parquet",
)


def told(found, folder):
    return sorted(str(each.relative_to(folder)) for each in found)


def test_listings_and_questions_are_answered_as_by_a_disk(tmp_path, in_bucket):
    """The same names below a folder: the same listings, sizes and answers."""
    for number, name in enumerate(NAMES):
        for root in (tmp_path, in_bucket):
            place = root
            for part in name.split("/"):
                place /= part
            replace_file(place, b"x" * number)
    for pattern in ("*.parquet", "day=*/*.parquet", "*", "_in/*/*.parquet"):
        on_disk = [each for each in tmp_path.glob(pattern) if each.is_file()]
        assert told((each for each in in_bucket.glob(pattern) if each.is_file()), in_bucket) == told(on_disk, tmp_path)
    assert told(in_bucket.rglob("*.parquet"), in_bucket) == told(tmp_path.rglob("*.parquet"), tmp_path)
    assert told(in_bucket.iterdir(), in_bucket) == told(tmp_path.iterdir(), tmp_path)
    for name in (*NAMES, "none", "day=2026-02-01", "day=2026"):
        one, other = tmp_path / name, in_bucket / name
        assert (one.is_file(), one.is_dir()) == (other.is_file(), other.is_dir())
        assert one.is_file() == other.exists()
        if one.is_file():
            assert one.stat().st_size == other.stat().st_size == len(other.read_bytes())
            assert abs(other.stat().st_mtime - time.time()) < 300
    (in_bucket / NAMES[0]).unlink()
    assert not (in_bucket / NAMES[0]).exists()
    (in_bucket / NAMES[0]).unlink(missing_ok=True)
    with pytest.raises(FileNotFoundError):
        (in_bucket / NAMES[0]).unlink()
    with pytest.raises(FileNotFoundError):
        (in_bucket / NAMES[0]).read_bytes()


def test_of_writers_that_race_one_makes_the_file_and_all_read_it(place):
    """Whoever comes first; nobody replaces it."""
    for path in (place / f"{number}" for number in range(5)):
        with ThreadPoolExecutor(8) as pool:
            found = {each.result() for each in [pool.submit(first_file, path, b"%d" % each) for each in range(8)]}
        assert found == {path.read_bytes()}


def test_a_file_made_without_the_condition_is_caught(in_bucket, monkeypatch):
    """A planted fault: a put that asks for nothing replaces what another has made."""
    monkeypatch.setattr(ObjectPath, "put_first", lambda self, data: self.put(data) or True)
    with pytest.raises(AssertionError):
        test_of_writers_that_race_one_makes_the_file_and_all_read_it(in_bucket)


def test_an_error_meanwhile_leaves_what_was_there(place):
    """Neither half a file nor none: the one before."""
    replace_file(place / "file", b"before")

    def torn():
        with whole_file(place / "file") as file:
            file.write(b"x" * MANY_BYTES)
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        torn()
    assert (place / "file").read_bytes() == b"before"
    assert told(place.iterdir(), place) == ["file"]


def readers_see_whole_files(place):
    """Replaces a large file over and over while others read it."""
    wanted = [bytes([number]) * MANY_BYTES for number in range(4)]
    replace_file(place / "file", wanted[0])
    done, seen = threading.Event(), []

    def read():
        while not done.is_set():
            data = (place / "file").read_bytes()
            seen.append((len(data), data[:1] == data[-1:]))

    with ThreadPoolExecutor(2) as pool:
        reading = [pool.submit(read) for _ in range(2)]
        for data in wanted[1:]:
            with whole_file(place / "file") as file:
                for start in range(0, len(data), 1 << 20):
                    file.write(data[start : start + (1 << 20)])
        done.set()
        for each in reading:
            each.result()
    assert seen
    assert set(seen) == {(MANY_BYTES, True)}


def test_readers_never_see_half(place):
    """Not of one that is replaced in several parts either."""
    readers_see_whole_files(place)


def test_a_file_put_piece_by_piece_is_caught(in_bucket, monkeypatch):
    """A planted fault: what is there before all has come is half a file to somebody."""
    put = ObjectPath.put

    def in_pieces(self, data):
        whole = data if isinstance(data, bytes) else data.read()
        put(self, whole[: len(whole) // 2])
        put(self, whole)

    monkeypatch.setattr(ObjectPath, "put", in_pieces)
    with pytest.raises(AssertionError):
        readers_see_whole_files(in_bucket)


def test_a_writer_that_is_killed_leaves_the_old_file_or_the_new_one(place):
    """kill -9 at any moment of a write."""
    path, dice = place / "file", random.Random(0)
    replace_file(path, b"0" * MANY_BYTES)
    code = (
        "import sys; from validation.place import place_of; from validation.whole_file import replace_file\n"
        f"print(flush=True); replace_file(place_of(sys.argv[1]), b'1' * {MANY_BYTES})"
    )
    for _ in range(4):
        writer = subprocess.Popen([sys.executable, "-c", code, str(path)], stdout=subprocess.PIPE)
        with writer.stdout:
            writer.stdout.readline()
        time.sleep(dice.random() * 0.2)
        writer.send_signal(signal.SIGKILL)
        writer.wait()
        data = path.read_bytes()
        assert data in (b"0" * MANY_BYTES, b"1" * MANY_BYTES)


def test_a_hint_is_what_was_said_last(place):
    """A cursor's hint moves."""
    for number in (b"1", b"22"):
        hint_file(place / "_cursors" / "t-0", number)
        assert (place / "_cursors" / "t-0").read_text() == number.decode()


def test_a_store_that_is_away_is_an_error_of_the_system(monkeypatch):
    """Writers treat it like a full disk."""
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "key")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "secret")
    with pytest.raises(OSError, match="s3://away/file"):
        replace_file(place_of("s3://away/file"), b"")


@pytest.mark.parametrize("address", ["s3://", "gopher://a/b", "s3://bucket/a?endpoint=b"])
def test_an_address_of_an_unknown_kind_is_refused(address):
    """With what is known."""
    with pytest.raises(PlatformError, match="s3://BUCKET/PREFIX"):
        place_of(address)


def test_the_environment_leads_to_the_store(bucket):
    """No setting of ours holds a credential."""
    assert os.environ["AWS_ENDPOINT_URL"].startswith("http://127.0.0.1:")
    assert place_of(str(bucket / "a")) == bucket / "a"
    assert not isinstance(bucket, Path)
