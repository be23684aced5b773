"""Who is in a consumer group, in which generation, and with which assignment?

The classic group protocol: members join, one of them (the leader) is told all members and sends back everyone's
assignment; any change begins a new generation. Static members (with an instance id) come back under their old
assignment without disturbing the others.
"""

import asyncio
import uuid
from enum import Enum
from typing import NamedTuple

from streaming.embedded.codes import ErrorCode


class State(Enum):
    """Names as the protocol reports them."""

    EMPTY = "Empty"
    PREPARING = "PreparingRebalance"
    COMPLETING = "CompletingRebalance"
    STABLE = "Stable"


class JoinAsk(NamedTuple):
    """A member's wish to be in the group; protocols in its order of preference."""

    member_id: str
    instance_id: str | None
    client_id: str
    session_s: float
    rebalance_s: float
    protocol_type: str
    protocols: tuple[tuple[str, bytes], ...]
    must_know_its_id: bool


class Joined(NamedTuple):
    """The answer to a join; `members` (id, instance id, metadata) only for the leader."""

    error: ErrorCode
    member_id: str
    generation: int = -1
    protocol: str = ""
    leader: str = ""
    members: tuple[tuple[str, str | None, bytes], ...] = ()


class Synced(NamedTuple):
    """The answer to a sync."""

    error: ErrorCode
    assignment: bytes = b""


class Member:
    """One consumer of the group, as the broker sees it."""

    def __init__(self, member_id: str, ask: JoinAsk) -> None:
        self.member_id = member_id
        self.ask = ask
        self.assignment = b""
        self.joining: asyncio.Future[Joined] | None = None
        self.syncing: asyncio.Future[Synced] | None = None
        self.expiry: asyncio.TimerHandle | None = None


class Group:
    """One group. All methods run on the broker's event loop; joins and syncs wait there for the others."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.state = State.EMPTY
        self.generation = 0
        self.protocol = ""
        self.protocol_type = ""
        self.members: dict[str, Member] = {}
        self._leader = ""
        self._expected: set[str] = set()
        self._static: dict[str, str] = {}
        self._deadline: asyncio.TimerHandle | None = None

    async def join(self, ask: JoinAsk) -> Joined:
        """Enter, or enter again; returns once the generation is complete."""
        error = self._refusal(ask)
        if error:
            return Joined(error, ask.member_id)
        if ask.member_id:
            member = self._admit(ask.member_id, ask, rebalance=False)
        else:
            fresh = f"{ask.instance_id or ask.client_id}-{uuid.uuid4()}"
            if ask.instance_id in self._static:
                answer = self._replace(fresh, ask)
                if answer:
                    return answer
            elif ask.must_know_its_id and not ask.instance_id:
                self._expected.add(fresh)
                return Joined(ErrorCode.MEMBER_ID_REQUIRED, fresh)
            member = self._admit(fresh, ask, rebalance=True)
        if member.joining is None:
            return self._answer(member)
        return await asyncio.shield(member.joining)

    async def sync(
        self, member_id: str, instance_id: str | None, generation: int, assignments: dict[str, bytes]
    ) -> Synced:
        """Fetch one's assignment; the leader's call brings everyone's."""
        error = self.check(member_id, instance_id, generation)
        if error or self.state is State.PREPARING:
            return Synced(error or ErrorCode.REBALANCE_IN_PROGRESS)
        member = self.members[member_id]
        self.touch(member)
        if self.state is State.COMPLETING and member_id == self._leader:
            self.state = State.STABLE
            for each in self.members.values():
                each.assignment = assignments.get(each.member_id, b"")
                self._release(each, Synced(ErrorCode.NONE, each.assignment))
        if self.state is State.STABLE:
            return Synced(ErrorCode.NONE, member.assignment)
        member.syncing = asyncio.get_running_loop().create_future()
        return await asyncio.shield(member.syncing)

    def heartbeat(self, member_id: str, instance_id: str | None, generation: int) -> ErrorCode:
        """Stay in the group; REBALANCE_IN_PROGRESS asks the member to join again."""
        error = self.check(member_id, instance_id, generation)
        if error:
            return error
        self.touch(self.members[member_id])
        return ErrorCode.REBALANCE_IN_PROGRESS if self.state is State.PREPARING else ErrorCode.NONE

    def leave(self, member_id: str, instance_id: str | None) -> ErrorCode:
        """Go, at once; a static member may be named by its instance id alone."""
        if instance_id and not member_id:
            member_id = self._static.get(instance_id, "")
        if member_id not in self.members:
            return ErrorCode.UNKNOWN_MEMBER_ID
        self._remove(self.members[member_id])
        return ErrorCode.NONE

    def check(self, member_id: str, instance_id: str | None, generation: int) -> ErrorCode:
        """Whether a request comes from a present member of the present generation."""
        if instance_id and self._static.get(instance_id, member_id) != member_id:
            return ErrorCode.FENCED_INSTANCE_ID
        if member_id not in self.members:
            return ErrorCode.UNKNOWN_MEMBER_ID
        if generation != self.generation:
            return ErrorCode.ILLEGAL_GENERATION
        return ErrorCode.NONE

    def may_commit(self, member_id: str, instance_id: str | None, generation: int) -> ErrorCode:
        """Whether offsets may be committed; without a generation only while nobody is in the group."""
        if generation < 0 and not member_id:
            return ErrorCode.UNKNOWN_MEMBER_ID if self.members else ErrorCode.NONE
        error = self.check(member_id, instance_id, generation)
        if not error:
            self.touch(self.members[member_id])
        return error or (ErrorCode.REBALANCE_IN_PROGRESS if self.state is State.COMPLETING else ErrorCode.NONE)

    def touch(self, member: Member) -> None:
        """The member is alive: its session begins anew."""
        if member.expiry:
            member.expiry.cancel()
        member.expiry = asyncio.get_running_loop().call_later(member.ask.session_s, self._expire, member)

    def close(self) -> None:
        """Stop all timers."""
        for timer in (self._deadline, *(member.expiry for member in self.members.values())):
            if timer:
                timer.cancel()

    def _refusal(self, ask: JoinAsk) -> ErrorCode:
        if ask.member_id:
            if ask.instance_id and self._static.get(ask.instance_id, ask.member_id) != ask.member_id:
                return ErrorCode.FENCED_INSTANCE_ID
            if ask.member_id not in self.members and ask.member_id not in self._expected:
                return ErrorCode.UNKNOWN_MEMBER_ID
        others = [member for member in self.members.values() if member.member_id != ask.member_id]
        if others and (ask.protocol_type != self.protocol_type or not self._common(others, ask)):
            return ErrorCode.INCONSISTENT_GROUP_PROTOCOL
        return ErrorCode.NONE

    def _admit(self, member_id: str, ask: JoinAsk, *, rebalance: bool) -> Member:
        """Take the member in, with a new generation where `rebalance` says so or its wishes changed.

        Its `joining` is set where it has to wait for that generation.
        """
        self._expected.discard(member_id)
        member = self.members.get(member_id)
        unchanged = member is not None and member.ask.protocols == ask.protocols
        if member is None:
            member = self.members[member_id] = Member(member_id, ask)
            if ask.instance_id:
                self._static[ask.instance_id] = member_id
        member.ask = ask
        self.protocol_type = ask.protocol_type
        settled = self.state is State.COMPLETING or (self.state is State.STABLE and member_id != self._leader)
        if unchanged and settled and not rebalance:
            self.touch(member)
            return member
        if member.joining is None or member.joining.done():
            member.joining = asyncio.get_running_loop().create_future()
        if member.expiry:
            member.expiry.cancel()  # who waits in a join is alive
        self._begin()
        return member

    def _replace(self, fresh: str, ask: JoinAsk) -> Joined | None:
        """A static member came back under a new id; the answer where the group need not be disturbed."""
        assert ask.instance_id is not None
        old = self.members.pop(self._static[ask.instance_id])
        if old.expiry:
            old.expiry.cancel()
        if old.joining and not old.joining.done():
            old.joining.set_result(Joined(ErrorCode.FENCED_INSTANCE_ID, old.member_id))
        self._release(old, Synced(ErrorCode.FENCED_INSTANCE_ID))
        member = self.members[fresh] = Member(fresh, ask)
        member.assignment = old.assignment
        self._static[ask.instance_id] = fresh
        led = self._leader == old.member_id
        if led:
            self._leader = fresh
        if self.state is not State.STABLE or ask.protocols != old.ask.protocols:
            return None
        self.touch(member)
        # Named leader under its old id it will not assign anew: the assignment in force is waiting for its sync.
        leader = old.member_id if led else self._leader
        return Joined(ErrorCode.NONE, fresh, self.generation, self.protocol, leader)

    def _begin(self) -> None:
        """Begin a rebalance, or see whether the one under way is complete."""
        if self.state is not State.PREPARING:
            self.state = State.PREPARING
            for member in self.members.values():
                self._release(member, Synced(ErrorCode.REBALANCE_IN_PROGRESS))
            patience_s = max(member.ask.rebalance_s for member in self.members.values())
            self._deadline = asyncio.get_running_loop().call_later(patience_s, self._complete)
        if all(member.joining for member in self.members.values()):
            self._complete()

    def _complete(self) -> None:
        """Everyone has joined, or the patience is over: the next generation begins."""
        if self._deadline:
            self._deadline.cancel()
        for member in [m for m in self.members.values() if not m.joining and not m.ask.instance_id]:
            self._forget(member)
        present = [member for member in self.members.values() if member.joining]
        if not present:
            self.state = State.EMPTY if not self.members else self.state
            return
        self.generation += 1
        self.state = State.COMPLETING
        self.protocol = self._common(list(self.members.values()), present[0].ask)[0]
        if self._leader not in {member.member_id for member in present}:
            self._leader = present[0].member_id
        for member in present:
            assert member.joining is not None
            member.joining.set_result(self._answer(member))
            member.joining = None
            self.touch(member)

    def _answer(self, member: Member) -> Joined:
        everyone: tuple[tuple[str, str | None, bytes], ...] = ()
        if member.member_id == self._leader:
            everyone = tuple(
                (each.member_id, each.ask.instance_id, dict(each.ask.protocols)[self.protocol])
                for each in self.members.values()
            )
        return Joined(ErrorCode.NONE, member.member_id, self.generation, self.protocol, self._leader, everyone)

    @staticmethod
    def _common(members: list[Member], ask: JoinAsk) -> list[str]:
        """Protocols that all support, in the order of `ask`."""
        sets = [{name for name, _ in member.ask.protocols} for member in members]
        return [name for name, _ in ask.protocols if all(name in held for held in sets)]

    @staticmethod
    def _release(member: Member, answer: Synced) -> None:
        if member.syncing and not member.syncing.done():
            member.syncing.set_result(answer)
        member.syncing = None

    def _expire(self, member: Member) -> None:
        if member.member_id in self.members:
            self._remove(member)

    def _remove(self, member: Member) -> None:
        self._forget(member)
        if self.members:
            self._begin()
            return
        if self._deadline:
            self._deadline.cancel()
        self.state = State.EMPTY
        self.generation += 1

    def _forget(self, member: Member) -> None:
        del self.members[member.member_id]
        if member.expiry:
            member.expiry.cancel()
        if member.ask.instance_id:
            self._static.pop(member.ask.instance_id, None)
        if member.joining and not member.joining.done():
            member.joining.set_result(Joined(ErrorCode.UNKNOWN_MEMBER_ID, member.member_id))
        self._release(member, Synced(ErrorCode.UNKNOWN_MEMBER_ID))
