"""Does a worker that is started before its broker wait for it, and no longer than it was told to?"""

import pytest

from streaming.cluster import waited_for
from streaming.source.records import SourceUnavailable


class Broker:
    """Answers from a second on; `now` moves on while somebody sleeps."""

    def __init__(self, up_at):
        self.now = 0.0
        self.up_at = up_at
        self.asked = 0

    def reach(self):
        self.asked += 1
        if self.now < self.up_at:
            raise SourceUnavailable("nobody answers")
        return "reached"

    def sleep(self, seconds):
        self.now += seconds

    def waited_for(self, wait_s, stop=lambda: False):
        return waited_for(self.reach, wait_s=wait_s, stop=stop, seconds=lambda: self.now, sleep=self.sleep)


def test_a_broker_that_comes_in_time_is_waited_for():
    """It is asked again every half second."""
    broker = Broker(up_at=3)
    assert broker.waited_for(30) == "reached"
    assert (broker.asked, broker.now) == (7, 3)


@pytest.mark.parametrize("wait_s", [0, 2, 2.75])
def test_a_broker_that_does_not_come_ends_the_wait(wait_s):
    """Not before what was asked for, and not after it."""
    broker = Broker(up_at=60)
    with pytest.raises(SourceUnavailable, match="nobody answers"):
        broker.waited_for(wait_s)
    assert broker.now == wait_s


def test_who_shall_leave_does_not_wait():
    """A worker that is asked to leave while it waits gives up at once."""
    broker = Broker(up_at=60)
    with pytest.raises(SourceUnavailable):
        broker.waited_for(30, stop=lambda: broker.now >= 1)
    assert broker.now == 1
