"""Let one `apply` of a project change the Plan at a time, on whatever machine: a lease in the online store.

The lease ends by itself when its holder dies, and is renewed while it lives. What its holder publishes is fenced: the
store takes it only while the lease is still that holder's.
"""

import os
import secrets
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Protocol

from featurestore.errors import StaleStore, StoreUnavailable
from featurestore.online.keys import applying_key

LEASE_S = 20.0
WAIT_S = 60.0
_TAKE = """
return redis.call('SET', KEYS[1], ARGV[1], 'NX', 'PX', ARGV[2]) and '' or redis.call('GET', KEYS[1]) or '?'
"""
_RENEW = "return redis.call('GET', KEYS[1]) == ARGV[1] and redis.call('PEXPIRE', KEYS[1], ARGV[2]) or 0"
_LEAVE = "return redis.call('GET', KEYS[1]) == ARGV[1] and redis.call('DEL', KEYS[1]) or 0"


class Scripts(Protocol):
    """The call that a lease makes of a key-value client."""

    def eval(self, script: str, numkeys: int, /, *keys_and_args: bytes) -> object:
        """Run a script atomically."""
        ...


@contextmanager
def plan_lease(client: Scripts, project: str, *, lease_s: float = LEASE_S, wait_s: float = WAIT_S) -> Iterator[bytes]:
    """Hold the lease for the block, whose value proves it; waits for another holder, then raises StaleStore."""
    key, span = applying_key(project), b"%d" % round(lease_s * 1000)
    token = f"{socket.gethostname()} process {os.getpid()} {secrets.token_hex(8)}".encode()
    deadline = time.monotonic() + wait_s
    while holder := client.eval(_TAKE, 1, key, token, span):
        if time.monotonic() >= deadline:
            assert isinstance(holder, bytes)
            raise StaleStore(
                f"another `apply` of project {project!r} is running ({holder.decode(errors='replace')}); wait for it"
            )
        time.sleep(0.1)
    ended = threading.Event()

    def renew() -> None:
        while not ended.wait(lease_s / 4):
            try:
                client.eval(_RENEW, 1, key, token, span)
            except StoreUnavailable:
                continue  # what is published without the lease is refused

    renewing = threading.Thread(target=renew, name="plan lease", daemon=True)
    renewing.start()
    try:
        yield token
    finally:
        ended.set()
        renewing.join()
        with suppress(StoreUnavailable):  # it ends by itself
            client.eval(_LEAVE, 1, key, token)
