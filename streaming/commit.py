"""How do tiles and the offset that they stand for change together, by one writer at a time?

Redis is the state store. One control hash per shard holds `epoch`, `offset`, `watermark`, `complete_from` and
`plan_version`, and where event ids are kept `seen`, `duplicates` and `reused_ids`. The shard's tiles and event ids
carry the same hash tag, so that one script can change all of it. A *claim* takes a new epoch (a counter and a random
token: a Redis that was rolled back repeats its counter) and reads the offset. A *commit* is one script that checks
epoch and offset, writes absolute slots and the ids that counted, and advances the offset. So:

- a crash before the commit replays the batch from the stored offset; after it, it goes on behind the batch;
- a zombie's commit finds another epoch, one whose reply was lost finds another offset: `Fenced`, nothing written;
  what it reads meanwhile is refused alike, so that what it cached is never of another offset than it believes;
- a Redis that came back older, or lost a key, answers with another epoch or offset: the same.

Whatever goes wrong, the caller drops what it cached of the shard and claims again.
"""

import hashlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final

import msgspec
import pyarrow as pa
import redis

from featurestore.clock import Clock
from featurestore.errors import ConfigurationError, FeatureStoreError, StaleStore, StoreRefused
from featurestore.offline.event_log import ARRIVAL
from featurestore.online.connection import StoreClient
from featurestore.online.control import CONTROL_CHECK, CONTROL_FIELDS, control_damage
from featurestore.online.failures import failure
from featurestore.online.keys import DROPPED, Shard, shards_key, version_tag
from featurestore.online.sealed import FORMAT, sealed, unsealed
from featurestore.online.writer import RowWriter
from featurestore.plan import View
from streaming.seen_ids import SeenChange
from streaming.shard_state import BlockWrite

NOT_YET: Final = 2**63 - 1
"""`complete_from_us` of a shard that nobody has claimed yet: no window is complete."""
_AS_IT_IS: Final = -1
_ANY_US: Final = 2**61
_SAY_AGAIN_MS: Final = 600_000
"""A block that has its expiry keeps it; one that expires sooner is told again: it may be gone, and would come back."""

_CHECK = """
local function check(control)
  local held = redis.call('HMGET', control, FIELDS)
  for i = 1, #held do held[i] = held[i] or '' end
  return redis.sha1hex('FORMAT|' .. table.concat(held, '|'))
end
local function refused(control)
  local held = redis.call('HGET', control, 'check')
  if held == check(control) then return false end
  return redis.error_reply('DAMAGED ' .. (held and 'its check does not match' or 'it is of another format'))
end
""".replace("FIELDS", ", ".join(f"'{name}'" for name in CONTROL_FIELDS)).replace("FORMAT", str(FORMAT))
"""The check of a control hash: what every script that changes it looks at first and writes last."""

_CLAIM = (
    _CHECK
    + """
local control = KEYS[1]
if redis.call('EXISTS', control) == 0 then
  if ARGV[2] == '' then return false end
  redis.call('HSET', control, 'offset', ARGV[2], 'watermark', '', 'complete_from', ARGV[3])
else
  local damage = refused(control)
  if damage then return damage end
end
local held = redis.call('HGET', control, 'epoch')
local count = 1
if held then count = tonumber(string.match(held, '^%d+')) + 1 end
local epoch = string.format('%d', count) .. ':' .. ARGV[1]
redis.call('HSET', control, 'epoch', epoch, 'plan_version', ARGV[4])
redis.call('HSET', control, 'check', check(control))
local state = redis.call('HMGET', control, 'offset', 'watermark', 'complete_from', 'seen')
return {epoch, state[1], state[2], state[3], state[4] or ''}
"""
)

# ARGV: epoch, offset before, offset after, watermark, complete_from, plan version, number of blocks, and how many of
# them (the first of KEYS[2..]: heads, mostly) are replaced from their first byte on and keep their time to live; of
# these the bytes; then for each other block its time to live in ms (0: what it has), how many runs it has, and each
# run's offset and bytes. Where there are event ids, then the spans that are kept, how many duplicates and reused ids
# the batch had, and for each further key whether it begins afresh, how many fields it has, each field and value.
_COMMIT = (
    _CHECK
    + """
local held = redis.call('HMGET', KEYS[1], 'epoch', 'offset')
if held[1] ~= ARGV[1] then return redis.error_reply('FENCED epoch is ' .. tostring(held[1])) end
if held[2] ~= ARGV[2] then return redis.error_reply('FENCED offset is ' .. tostring(held[2])) end
local damage = refused(KEYS[1])
if damage then return damage end
local blocks, replaced = tonumber(ARGV[7]) + 1, tonumber(ARGV[8]) + 1
for block = 2, replaced do redis.call('SETRANGE', KEYS[block], 0, ARGV[block + 7]) end
local at = replaced + 8
for block = replaced + 1, blocks do
  local key, ttl = KEYS[block], ARGV[at]
  local last = at + 2 * tonumber(ARGV[at + 1])
  for run = at + 2, last, 2 do redis.call('SETRANGE', key, ARGV[run], ARGV[run + 1]) end
  if ttl ~= '0' then redis.call('PEXPIRE', key, ttl) end
  at = last + 2
end
if ARGV[at] then
  redis.call('HSET', KEYS[1], 'seen', ARGV[at])
  if ARGV[at + 1] ~= '0' then redis.call('HINCRBY', KEYS[1], 'duplicates', ARGV[at + 1]) end
  if ARGV[at + 2] ~= '0' then redis.call('HINCRBY', KEYS[1], 'reused_ids', ARGV[at + 2]) end
  at = at + 3
  for span = blocks + 1, #KEYS do
    if ARGV[at] == '1' then redis.call('UNLINK', KEYS[span]) end
    local last = at + 2 * tonumber(ARGV[at + 1])
    for field = at + 2, last, 2 do redis.call('HSET', KEYS[span], ARGV[field], ARGV[field + 1]) end
    at = last + 2
  end
end
redis.call('HSET', KEYS[1], 'offset', ARGV[3], 'watermark', ARGV[4], 'complete_from', ARGV[5], 'plan_version', ARGV[6])
redis.call('HSET', KEYS[1], 'check', check(KEYS[1]))
return 1
"""
)

# Replaces a value only where it is still what was read: two workers register their shards at once.
_REPLACE = """
local held = redis.call('GET', KEYS[1])
if (held or '') ~= ARGV[1] then return 0 end
redis.call('SET', KEYS[1], ARGV[2])
return 1
"""


class Fenced(FeatureStoreError):
    """Another claim holds the shard, or its state is not what this one left: drop the cache and claim again."""


class StateLost(FeatureStoreError):
    """The control hash of a shard that has been written before is gone: Redis lost its state."""


class StateDamaged(FeatureStoreError):
    """What the store holds of a shard is not as it was written, or of another format: it must be made again."""


class Claim(msgspec.Struct, frozen=True):
    """A shard in one writer's hands, as of its last commit."""

    shard: Shard
    epoch: bytes
    offset: int
    watermark_us: int | None
    """Greatest min(event time, arrival) committed; None before the first event."""
    complete_from_us: int | None
    """Windows that reach before it lack events; 0: none do; None: not known before the first event."""
    spans: tuple[int, ...] = ()
    """The spans of arrival whose event ids are kept, where the topic declares a horizon."""


class Commit(msgspec.Struct, frozen=True, kw_only=True):
    """How far one claim's shard is to be brought, and by what."""

    claim: Claim
    writes: Sequence[BlockWrite]
    offset: int
    watermark_us: int | None
    complete_from_us: int | None
    plan_version: int
    seen: SeenChange | None = None


class Registered(msgspec.Struct, frozen=True):
    """A shard as readers find it listed."""

    topic_id: str
    partition: int
    complete_from_us: int | None
    """Windows that reach before it lack events; None: it has seen every event there ever was."""
    home: int | None = None
    """Among so many partitions every event of the shard lies where its key belongs; None: that is not known."""


class Control(msgspec.Struct, frozen=True):
    """What a control hash says, for those who only look."""

    epoch: str
    offset: int
    watermark_us: int | None
    complete_from_us: int | None
    plan_version: int
    duplicates: int = 0
    """Events that were left out because they had counted already; only where the topic declares a horizon."""
    reused_ids: int = 0
    """Events that counted under the id of another event of the same key: a fault of the producer's."""


class ShardStore:
    """The shards' state in Redis. Not shared by threads; raises StoreUnavailable where Redis does not answer."""

    def __init__(self, client: StoreClient, clock: Clock) -> None:
        self._client = client
        self._clock = clock
        self._claim = client.register_script(_CLAIM)
        self._commit = _COMMIT
        self._commit_sha = hashlib.sha1(_COMMIT.encode(), usedforsecurity=False).hexdigest()
        self._replace = client.register_script(_REPLACE)
        self._writers: dict[tuple[str, str, int], RowWriter] = {}

    def check_policy(self) -> None:
        """Refuse a Redis that may evict keys: raises ConfigurationError."""
        try:
            found: dict[Any, Any] = self._client.config_get("maxmemory-policy")
            policy = next(iter(found.values()), "noeviction")
        except StoreRefused:
            # Managed services hide CONFIG; INFO says the same.
            policy = dict(self._client.info("memory")).get("maxmemory_policy", "noeviction")
        name = policy.decode() if isinstance(policy, bytes) else str(policy)
        if name != "noeviction":
            raise ConfigurationError(
                f"the online store's maxmemory-policy is {name!r}: it would drop tiles without a trace; "
                "set it to noeviction"
            )

    def claim(
        self,
        shard: Shard,
        *,
        token: str,
        plan_version: int,
        start: int | None = None,
        complete_from_us: int | None = None,
    ) -> Claim | None:
        """Take the shard from whoever holds it. None where it has no control hash and no `start` to begin at."""
        begin = "" if start is None else str(start)
        arguments = [token, begin, _text(complete_from_us), str(plan_version)]
        try:
            found = self._run(self._claim, [shard.control_key], arguments)
        except StateDamaged as error:
            raise _damaged(shard.control_key, str(error.__cause__)) from error
        if found is None:
            return None
        epoch, offset, watermark, complete_from, seen = found
        spans = tuple(map(int, seen.split()))
        return Claim(shard, epoch, int(offset), _number(watermark), _number(complete_from), spans)

    def read(self, claim: Claim, keys: Sequence[bytes]) -> dict[bytes, bytes | None]:
        """Blocks of the claim's shard, as of its offset; None where Redis has none. Raises Fenced like `commit`."""
        if not keys:
            return {}
        [blocks] = self._read(claim, lambda pipeline: pipeline.execute_command("MGET", *keys))
        return dict(zip(keys, blocks, strict=True))

    def read_seen(
        self, claim: Claim, fields: Mapping[bytes, Sequence[bytes]]
    ) -> dict[bytes, dict[bytes, bytes | None]]:
        """By key of a span of event ids, those of its fields that are named; None where Redis has none."""
        if not fields:
            return {}

        def ask(pipeline: Any) -> None:
            for key, names in fields.items():
                pipeline.hmget(key, names)

        found = self._read(claim, ask)
        return {
            key: dict(zip(names, each, strict=True)) for (key, names), each in zip(fields.items(), found, strict=True)
        }

    def _read(self, claim: Claim, ask: Callable[[Any], object]) -> list[Any]:
        """What is asked, if epoch and offset are the claim's still after it was read.

        A zombie would else read what its successor wrote, and could commit it to a store that came back older, from
        before it had a successor. On one connection a store does not come back: looking once, afterwards, is enough.
        """
        pipeline = self._client.pipeline(transaction=False)
        ask(pipeline)
        pipeline.hmget(claim.shard.control_key, ["epoch", "offset"])
        *found, (epoch, offset) = self._run(pipeline.execute)
        if epoch != claim.epoch or offset != b"%d" % claim.offset:
            raise Fenced(
                f"the shard is not as this claim left it: epoch {epoch!r}, offset {offset!r}; it must be claimed again"
            )
        return list(found)

    def commit(self, commits: Sequence[Commit]) -> list[Claim | Fenced]:
        """Of each shard write slots and event ids and move its offset, all or nothing; the claims of the next commits.

        Each stands for itself: one that found another epoch or offset than its claim's is Fenced, and the others take
        place. Blocks that the clock has already expired are left out. After any error that is raised it is unknown
        which of the commits took place.
        """
        now_us = self._clock()
        words = [self._words(each, now_us) for each in commits]
        found: list[Any] = self._run(self._evaluate, words)
        strange = [place for place, answer in enumerate(found) if isinstance(answer, redis.exceptions.NoScriptError)]
        if strange:
            # A server that was started just now, without its scripts.
            self._run(self._client.script_load, self._commit)
            again = self._run(self._evaluate, [words[place] for place in strange])
            for place, answer in zip(strange, again, strict=True):
                found[place] = answer
        return [self._outcome(each, answer) for each, answer in zip(commits, found, strict=True)]

    def _evaluate(self, scripts: Sequence[Sequence[bytes | str | int]]) -> list[Any]:
        pipeline = self._client.pipeline(transaction=False)
        for words in scripts:
            # Not `evalsha`: the library's pipeline of a cluster lacks it, and takes the command.
            pipeline.execute_command("EVALSHA", self._commit_sha, *words)  # type: ignore[no-untyped-call]
        return pipeline.execute(raise_on_error=False)

    def _outcome(self, commit: Commit, answer: object) -> Claim | Fenced:
        if isinstance(answer, Exception):
            if str(answer).startswith("FENCED"):
                return _fenced(answer)
            if str(answer).startswith("DAMAGED"):
                raise _damaged(commit.claim.shard.control_key, answer)
            raise failure(self._client.address, answer) from answer
        return msgspec.structs.replace(
            commit.claim,
            offset=commit.offset,
            watermark_us=commit.watermark_us,
            complete_from_us=commit.complete_from_us,
            spans=commit.claim.spans if commit.seen is None else commit.seen.spans,
        )

    @staticmethod
    def _words(commit: Commit, now_us: int) -> list[bytes | str | int]:
        """The script's keys and arguments, the number of keys first."""
        claim, seen = commit.claim, commit.seen
        replaced: list[bytes] = []
        replacements: list[bytes] = []
        others: list[bytes] = []
        told: list[bytes | str | int] = []
        for write in commit.writes:
            ttl_ms = 0 if write.expires_us is None else -((now_us - write.expires_us) // 1000)
            if ttl_ms <= 0 and write.expires_us is not None:
                continue
            if write.lasting and ttl_ms > _SAY_AGAIN_MS:
                ttl_ms = 0
            [run, *more] = write.runs
            if not (ttl_ms or more or run[0]):
                replaced.append(write.key)
                replacements.append(run[1])
                continue
            others.append(write.key)
            told += (ttl_ms, len(write.runs))
            for run in write.runs:
                told += run
        keys = [claim.shard.control_key, *replaced, *others]
        arguments: list[bytes | str | int] = [
            claim.epoch,
            claim.offset,
            commit.offset,
            _text(commit.watermark_us),
            _text(commit.complete_from_us),
            commit.plan_version,
            len(keys) - 1,
            len(replaced),
            *replacements,
            *told,
        ]
        if seen is not None:
            arguments += (" ".join(map(str, seen.spans)), seen.duplicates, seen.reused)
            for span in seen.writes:
                keys.append(span.key)
                arguments += (int(span.afresh), len(span.fields))
                for field in span.fields:
                    arguments += field
        return [len(keys), *keys, *arguments]

    def write_rows(self, project: str, view: View, rows: pa.Table) -> None:
        """Latest values of a view without aggregations: the greatest (event time, arrival) of a key stays.

        Repeating it changes nothing, so that it may go before the commit that moves the offset.
        """
        known = (project, view.name, view.version)
        writer = self._writers.get(known)
        if writer is None:
            # What is too far ahead was set aside by its arrival; this process's clock has no say in it.
            writer = RowWriter(self._client, project, view, clock=self._clock, tolerance_us=_ANY_US)
            self._writers[known] = writer
        self._run(lambda: writer.write(rows, event_timestamp=view.source.timestamp_field, created=ARRIVAL))

    def register(
        self, shard: Shard, complete_from_us: int, *, only_new: bool = False, home: int | None = _AS_IT_IS
    ) -> None:
        """List the shard for readers, or correct its `complete_from_us` (0: ever); repeating it changes nothing.

        Its `home` stays what it is, None for a shard that was not listed, unless another is given.
        """
        self._list(shard, complete_from_us or None, only_new=only_new, home=home)

    def scatter(self, shard: Shard) -> None:
        """Tell readers that keys may be in the shard whose partition is another."""
        self._list(shard, _AS_IT_IS, only_new=False, home=None)

    def _list(self, shard: Shard, complete_from_us: int | None, *, only_new: bool, home: int | None) -> None:
        key = shards_key(shard.project, shard.view, shard.version)
        while True:
            held = self._run(self._client.get, key) or b""
            if held == DROPPED:
                raise Fenced(f"version {shard.version} of view {shard.view!r} was dropped: it is not written any more")
            listed = self._listed(shard.view, held)
            others = [item for item in listed if (item.topic_id, item.partition) != (shard.topic_id, shard.partition)]
            known = next((item for item in listed if item not in others), None)
            entry = Registered(
                shard.topic_id,
                shard.partition,
                (known.complete_from_us if known else NOT_YET) if complete_from_us == _AS_IT_IS else complete_from_us,
                (known.home if known else None) if home == _AS_IT_IS else home,
            )
            if entry == known or (only_new and known is not None):
                return
            ordered = sorted([*others, entry], key=lambda item: (item.topic_id, item.partition))
            if self._run(self._replace, [key], [held, sealed(msgspec.json.encode(ordered))]):
                return

    def registered(self, project: str, view: str, version: int) -> list[Registered]:
        """The shards that readers of the view version merge."""
        held = self._run(self._client.get, shards_key(project, view, version))
        return self._listed(view, held) if held != DROPPED else []

    @staticmethod
    def _listed(view: str, held: bytes | None) -> list[Registered]:
        what, remedy = f"the list of shards of view {view!r}", "stop the stream, then run `featurestore stream rebuild`"
        try:
            return msgspec.json.decode(unsealed(held, what, remedy), type=list[Registered]) if held else []
        except (StaleStore, msgspec.MsgspecError) as error:
            raise StateDamaged(str(error)) from error

    def is_dropped(self, project: str, view: str, version: int) -> bool:
        """Whether the version was given up: nobody may write it any more."""
        return bool(self._run(self._client.get, shards_key(project, view, version)) == DROPPED)

    def give_up(self, project: str, view: str, version: int) -> None:
        """Tell readers and writers that a version is none any more; its tiles may go once open reads have ended."""
        self._run(self._client.set, shards_key(project, view, version), DROPPED)

    def begin_again(self, project: str, view: str, version: int) -> None:
        """Remove what a version keeps in the store, the list of its shards first: readers then find none."""
        self._run(self._client.unlink, shards_key(project, view, version))
        self.remove(project, view, version)

    def remove(self, project: str, view: str, version: int, *, shard: Shard | None = None, after_s: float = 0.0) -> int:
        """Delete what a version keeps in the store, or one shard of it; how many keys. The list of shards stays.

        With `after_s` tiles stay for so long, for reads that have begun, and go by themselves. What only
        writers read goes at once, control hashes too: no writer can commit from then on.
        """
        tag = version_tag(project, view, version) if shard is None else shard.tag
        written = tuple(f"fs:{kind}:{tag}".encode() for kind in ("ctl", "seen"))
        keys = self._run(lambda: list(self._client.scan_iter(match="fs:*", count=5_000)))
        removed = self._doomed([key for key in keys if key.startswith(written)], 0.0)
        tiles = f"fs:tile:{tag}".encode()
        return removed + self._doomed([key for key in keys if key.startswith(tiles)], after_s)

    def _doomed(self, keys: list[bytes], after_s: float) -> int:
        for first in range(0, len(keys), 500):
            some = keys[first : first + 500]
            if after_s:
                with self._client.pipeline(transaction=False) as pipe:
                    for key in some:
                        pipe.pexpire(key, round(after_s * 1_000))
                    self._run(pipe.execute)
            else:
                self._run(self._client.unlink, *some)
        return len(keys)

    def control(self, shard: Shard) -> Control | None:
        """The shard's control hash; None where there is none. Raises StateDamaged."""
        held = self._run(self._client.hgetall, shard.control_key)
        if not held:
            return None
        values = [held.get(name.encode()) for name in CONTROL_FIELDS]
        if damage := control_damage(values, held.get(CONTROL_CHECK.encode())):
            raise _damaged(shard.control_key, damage)
        return Control(
            epoch=held[b"epoch"].decode(),
            offset=int(held[b"offset"]),
            watermark_us=_number(held.get(b"watermark", b"")),
            complete_from_us=_number(held.get(b"complete_from", b"")),
            plan_version=int(held.get(b"plan_version", b"0")),
            duplicates=int(held.get(b"duplicates", b"0")),
            reused_ids=int(held.get(b"reused_ids", b"0")),
        )

    def _run(self, call: Any, *arguments: Any) -> Any:
        try:
            return call(*arguments)
        except StoreRefused as error:
            if error.code == "FENCED":
                raise _fenced(error) from error
            if error.code == "DAMAGED":
                raise _damaged(b"of a shard", error) from error
            raise
        except redis.exceptions.NoScriptError as error:
            raise failure(self._client.address, error) from error


def _fenced(error: Exception) -> Fenced:
    return Fenced(f"the shard is not as this claim left it: {error}; it must be claimed again")


def _damaged(key: bytes, found: object) -> StateDamaged:
    return StateDamaged(
        f"control hash {key.decode()} in the online store cannot be believed: {str(found).removeprefix('DAMAGED ')}; "
        "stop the stream, then run `featurestore stream rebuild`, which makes the shard again from the event log"
    )


def _text(number: int | None) -> str:
    return "" if number is None else str(number)


def _number(text: bytes) -> int | None:
    return int(text) if text else None
