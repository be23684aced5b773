"""How is a Redis Cluster read and written? Scripts stay within a hash tag; an MGET is split by node and slot.

The library's own split sends one slot after another; here every node gets all its slots in one write, and all nodes
work at once. Nothing is promised across slots.
"""

from collections.abc import Sequence
from functools import lru_cache
from typing import Any

import redis
from redis.cluster import ClusterNode, ClusterPipeline
from redis.crc import key_slot

from featurestore.online.failures import mapped

_slot_of_tag = lru_cache(maxsize=65536)(key_slot)


def slot_of(name: bytes) -> int:
    """The slot of a key of ours, told by its hash tag.

    >>> slot_of(b"fs:row:{2:ml 1:v 7}:a") == slot_of(b"fs:row:{2:ml 1:v 7}:b") == key_slot(b"2:ml 1:v 7")
    True
    """
    start = name.find(b"{")
    end = name.find(b"}", start)
    # Tags repeat and keys do not: only tags are worth remembering.
    return int(_slot_of_tag(name[start : end + 1]) if 0 <= start < end - 1 else key_slot(name))


class ClusterClient(redis.RedisCluster):
    """A client of a whole cluster (bytes, RESP2) whose failures are this product's errors."""

    address: str = ""

    # The library's own stubs are untyped here; Any stops in this room.
    def execute_command(self, *args: Any, **options: Any) -> Any:
        """As the library's; raises StoreUnavailable where the cluster does not answer."""
        with mapped(self.address):
            return super().execute_command(*args, **options)  # type: ignore[no-untyped-call]

    def pipeline(self, transaction: bool | None = None, shard_hint: Any = None) -> "_Pipeline":  # noqa: ARG002, FBT001 - the library's signature
        """A pipeline of commands that each stay within one slot; there are no transactions across them."""
        found = _Pipeline(
            nodes_manager=self.nodes_manager,
            commands_parser=self.commands_parser,
            # As the library does it, whose annotation is narrower.
            startup_nodes=self.nodes_manager.startup_nodes,  # type: ignore[arg-type]
            result_callbacks=self.result_callbacks,
            cluster_response_callbacks=self.cluster_response_callbacks,
            reinitialize_steps=self.reinitialize_steps,
            retry=self.retry,
            lock=self._lock,
            transaction=False,
        )
        found.address = self.address
        return found

    def mget(self, keys: Any, *more: Any) -> Any:
        """The values of keys of any slots, in order; None where there is none."""
        names: list[bytes] = [*keys, *more]
        by_node: dict[str, tuple[ClusterNode, dict[int, list[int]]]] = {}
        with mapped(self.address):
            for place, name in enumerate(names):
                slot = slot_of(name)
                node = self.nodes_manager.get_node_from_slot(slot)
                by_node.setdefault(node.name, (node, {}))[1].setdefault(slot, []).append(place)
            held: list[Any] = [None] * len(names)
            again: list[list[int]] = []
            self._from_nodes(names, [*by_node.values()], held, again)
            for places in again:
                # A slot that moves, or a node that went: the library follows redirections and finds the new map.
                found = super().execute_command("MGET", *[names[i] for i in places])  # type: ignore[no-untyped-call]
                for place, value in zip(places, found, strict=True):
                    held[place] = value
        return held

    def _from_nodes(
        self,
        names: Sequence[bytes],
        nodes: Sequence[tuple[ClusterNode, dict[int, list[int]]]],
        held: list[Any],
        again: list[list[int]],
    ) -> None:
        """1. Write every node all its slots' MGETs. 2. Read the answers. 3. Give the connections back."""
        sent = []
        for node, slots in nodes:
            client = self.get_redis_connection(node)
            pool = client.connection_pool
            connection: Any = None
            try:
                connection = pool.get_connection()
                commands = [("MGET", *[names[i] for i in places]) for places in slots.values()]
                connection.send_packed_command(connection.pack_commands(commands))
            except (redis.exceptions.ConnectionError, redis.exceptions.TimeoutError):
                if connection is not None:
                    connection.disconnect()
                    pool.release(connection)
                again += slots.values()
            else:
                sent.append((pool, connection, slots))
        for pool, connection, slots in sent:
            whole = True
            for places in slots.values():
                try:
                    found = connection.read_response() if whole else None
                except redis.exceptions.ResponseError:
                    found = None
                except (redis.exceptions.ConnectionError, redis.exceptions.TimeoutError):
                    found, whole = None, False
                if found is None:
                    again.append(places)
                    continue
                for place, value in zip(places, found, strict=True):
                    held[place] = value
            if not whole:
                # What it still has to say belongs to nobody.
                connection.disconnect()
            pool.release(connection)


class _Pipeline(ClusterPipeline):
    address: str = ""

    def execute(self, raise_on_error: bool = True) -> list[Any]:  # noqa: FBT001, FBT002 - the library's signature
        """As the library's; raises StoreUnavailable where the cluster does not answer."""
        with mapped(self.address):
            return list(super().execute(raise_on_error))
