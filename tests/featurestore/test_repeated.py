"""Does what is looked at beside a process's work go on whatever a look raises, and end when it is told to?"""

import logging
import threading
import time

import pytest

from featurestore.errors import SourceError
from featurestore.repeated import attempt, repeated

PATIENCE_S = 30.0


class Looks:
    """Counts looks; the first ones raise what they are given."""

    def __init__(self, *errors):
        self.errors, self.count, self.enough = list(errors), 0, threading.Event()

    def __call__(self, stopping):
        self.count += 1
        if self.errors:
            raise self.errors.pop(0)
        if self.count >= 4:
            self.enough.set()


def test_what_a_look_raises_is_counted_and_does_not_end_it(caplog):
    """A failure that is foreseen is one line; any other has its traceback, and neither is the last look."""
    looks, failed = Looks(SourceError("away"), OSError(28, "full"), ValueError("unforeseen")), []
    with caplog.at_level(logging.WARNING), repeated("compaction", looks, every_s=0.001, failed=failed.append):
        assert looks.enough.wait(PATIENCE_S)
    assert failed == ["compaction"] * 3
    assert [bool(each.exc_info) for each in caplog.records] == [False, False, True]
    assert "compaction failed and will be tried again: away" in caplog.text


def test_it_ends_at_once_and_leaves_no_thread():
    """Whoever leaves does not wait for the interval, and no look comes before or after."""
    looks, began = Looks(), time.monotonic()
    with repeated("long interval", looks, every_s=3_600):
        assert "long interval" in {each.name for each in threading.enumerate()}
    assert time.monotonic() - began < PATIENCE_S
    assert "long interval" not in {each.name for each in threading.enumerate()}
    assert looks.count == 0


def test_a_look_under_way_hears_of_the_end_and_is_waited_for():
    """It may stop early; what it does last is done before the process goes on."""
    begun, done = threading.Event(), []

    def look(stopping):
        begun.set()
        assert stopping.wait(PATIENCE_S)
        done.append(1)

    with repeated("slow", look, every_s=0.001):
        assert begun.wait(PATIENCE_S)
    assert done == [1]


def test_a_look_that_hangs_keeps_nobody_from_leaving():
    """Where it may hang, it is left behind after a while."""
    begun, hanging = threading.Event(), threading.Event()

    def look(stopping):
        begun.set()
        hanging.wait(PATIENCE_S)

    with repeated("hanging", look, every_s=0.001, leave_s=0.01):
        assert begun.wait(PATIENCE_S)
    [left] = [each for each in threading.enumerate() if each.name == "hanging"]
    hanging.set()
    left.join()


def test_an_error_of_the_work_itself_goes_on_its_way():
    """It ends the looks and is not swallowed."""
    looks = Looks()
    with pytest.raises(KeyError), repeated("beside an error", looks, every_s=3_600):
        raise KeyError("work")
    assert "beside an error" not in {each.name for each in threading.enumerate()}


def test_no_interval_is_never():
    """0 seconds switch it off."""
    looks = Looks()
    with repeated("off", looks, every_s=0):
        assert "off" not in {each.name for each in threading.enumerate()}
    assert looks.count == 0


def test_a_single_attempt_lets_a_process_be_told_to_stop():
    """What is no error, like Ctrl+C, passes."""

    def interrupted():
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        attempt("interrupted", interrupted)
