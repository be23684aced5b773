"""When may a version of a view go, and how does it go without a reader that takes its absence for zero events?

In this order; whoever comes next goes on where it was left, for the Plan says how far it is:

1. nobody reports a Plan older than the one that made it `retiring`: the Plan calls it `unused`;
2. nobody reports a Plan in which it was kept current: a mark takes the place of its list of shards, so that a reader
   that was asleep all the while is refused, not answered;
3. its control hashes are deleted, its tiles go by themselves once reads that began before the mark have ended, and the
   Plan forgets it.
"""

import time
from collections.abc import Callable
from contextlib import suppress
from typing import Final

import msgspec

from featurestore.clock import Clock
from featurestore.errors import StaleStore, StoreUnavailable
from featurestore.plan import Plan
from featurestore.plan_store import PlanStore
from featurestore.plan_users import PlanUsers
from featurestore.plan_versions import dropped, retired
from streaming.commit import ShardStore

GRACE_S: Final = 10.0
"""Longer than any read takes: clients of the store give up after five seconds."""
_AGAIN_S: Final = 0.5


class Gone(msgspec.Struct, frozen=True):
    """A version that was removed, and how many keys it had."""

    view: str
    version: int
    keys: int


class Retirement:
    """Takes versions out of use that no reader needs any more."""

    def __init__(
        self,
        plans: PlanStore,
        users: PlanUsers,
        store: ShardStore,
        *,
        clock: Clock,
        sleep: Callable[[float], None],
        published: Callable[[Plan], None] = lambda plan: None,  # noqa: ARG005 - nobody keeps a copy
        grace_s: float = GRACE_S,
    ) -> None:
        self._plans = plans
        self._users = users
        self._store = store
        self._clock = clock
        self._sleep = sleep
        self._published = published
        self._grace_s = grace_s

    def waits_for(self) -> list[str]:
        """Who still goes by an older Plan than the one in force."""
        return self._users.behind(self._plans.load().version)

    def step(self) -> tuple[Gone, ...] | None:
        """Do what can be done now; None where it waits for somebody, else what was removed (nothing: all is done)."""
        plan = self._plans.load()
        if not plan.retiring and not plan.unused:
            return ()
        if self._users.behind(plan.version):
            return None
        if plan.retiring:
            changed = plan
            for view in plan.retiring:
                changed = retired(changed, view.name, view.version, now_us=self._clock())
            self._put(plan, msgspec.structs.replace(changed, version=plan.version + 1))
            return None
        for view in plan.unused:
            self._store.give_up(plan.project, view.name, view.version)
        gone = []
        changed = plan
        for view in plan.unused:
            keys = self._store.remove(plan.project, view.name, view.version, after_s=self._grace_s)
            gone.append(Gone(view.name, view.version, keys))
            changed = dropped(changed, view.name, view.version, now_us=self._clock())
        self._put(plan, msgspec.structs.replace(changed, version=plan.version + 1))
        return tuple(gone)

    def complete(
        self,
        wait_s: float,
        stop: Callable[[], bool],
        say: Callable[[str], object],
        warn: Callable[[str], object],
        *,
        seconds: Callable[[], float] = time.monotonic,
    ) -> bool:
        """Step until all is done, `stop` says so, or it has waited so long; whether all is done.

        What goes is said, and of whom it waits for it is warned, once each time that these are others.
        """
        until_s = seconds() + wait_s
        told: list[str] = []
        while not stop():
            # Another process put a plan in force, or the store refuses for a while: look again.
            with suppress(StaleStore, *(() if seconds() > until_s else (StoreUnavailable,))):
                done = self.step()
                if done is not None:
                    for gone in done:
                        say(f"view {gone.view}: version {gone.version} dropped, {gone.keys} keys")
                    return True
                waiting = self.waits_for()
                if waiting and seconds() > until_s:
                    warn(f"still used by {', '.join(waiting)}; `featurestore stream drop` goes on with it")
                    return False
                if waiting and waiting != told:
                    warn(f"waits for {', '.join(waiting)} to go over to the plan in force, {wait_s:g} s at most")
                    told = waiting
            self._sleep(_AGAIN_S)
        return False

    def _put(self, held: Plan, plan: Plan) -> None:
        self._plans.replace(held, plan)
        self._published(plan)
