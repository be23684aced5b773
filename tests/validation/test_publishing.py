"""Is every change of a violation told, signed, at least once and as itself, whatever fails on the way?"""

import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import msgspec
import pytest

from validation import publishing as module
from validation import webhook as webhook_module
from validation.errors import PlatformError
from validation.place import Place
from validation.publishing import Publication, WebhookChannel, key_of
from validation.testing import SMALL, small_report
from validation.violations import Folded, ViolationStore
from validation.webhook import IDEMPOTENCY, SIGNATURE, Patience, Unreachable, Webhook, sign, verify

SECRET = b"a secret of sixteen bytes or more"


class Receiver:
    """A web service that takes what is signed by whoever knows the secret; its next answers can be told it."""

    def __init__(self) -> None:
        self.asked: list[tuple[str, str, bytes]] = []
        self.taken: dict[str, bytes] = {}
        self.forged = 0
        self.next: list[tuple[int, dict[str, str]]] = []
        receiver = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["Content-Length"]))
                key, signature = self.headers[IDEMPOTENCY], self.headers[SIGNATURE]
                receiver.asked.append((key, signature, body))
                status, headers = receiver.next.pop(0) if receiver.next else (204, {})
                if status == 204 and not verify(SECRET, signature, body, now_s=time.time()):
                    receiver.forged += 1
                    status = 401
                if status == 204:
                    receiver.taken[key] = body
                if status == 0:
                    self.close_connection = True
                    return
                self.send_response(status)
                for name, value in headers.items():
                    self.send_header(name, value)
                self.send_header("Content-Length", "0")
                self.end_headers()

            def log_message(self, *_: object) -> None:
                """Says nothing."""

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._server.server_port}/violations"
        threading.Thread(target=self._server.serve_forever, daemon=True).start()

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()

    def hook(self, waits: list[float] | None = None, **patience: float) -> Webhook:
        return Webhook(
            self.url,
            SECRET,
            patience=msgspec.structs.replace(Patience(timeout_s=5.0), **patience),
            sleep=(waits if waits is not None else []).append,
            chance=lambda: 0.0,
        )


@pytest.fixture
def receiver() -> Iterator[Receiver]:
    running = Receiver()
    yield running
    running.close()


def record(store: ViolationStore, number: int, **changed: object) -> None:
    """One report of one violation."""
    store.record(msgspec.structs.replace(small_report(SMALL)[1], report_id=f"r{number}", **changed))


def told(receiver: Receiver) -> dict[str, tuple[str, int]]:
    """What the receiver knows: key -> origin and count."""
    found = {key: msgspec.json.decode(body, type=Folded) for key, body in receiver.taken.items()}
    return {key: (each.origin, each.count) for key, each in found.items()}


def test_a_signature_is_of_these_bytes_by_this_secret_at_this_time() -> None:
    """One bit, another secret, another time or a header that is none: all are refused."""
    header = sign(SECRET, b"body", 1_000)
    assert verify(SECRET, header, b"body", now_s=1_300)
    assert not verify(SECRET, header, b"bodz", now_s=1_000)
    assert not verify(SECRET + b"x", header, b"body", now_s=1_000)
    assert not verify(SECRET, header.replace("t=1000", "t=1001"), b"body", now_s=1_000)
    assert not verify(SECRET, header, b"body", now_s=1_301)
    for wrong in ("", "t=1000", "v1=abc", "t=x,v1=y", "nonsense", header.replace("v1", "v0")):
        assert not verify(SECRET, wrong, b"body", now_s=1_000)


def test_each_change_is_told_once_while_nothing_fails(place: Place, receiver: Receiver) -> None:
    """A repetition that is told later has the higher count; nothing new, nothing told."""
    store = ViolationStore(place)
    publication = Publication(store, WebhookChannel(receiver.hook()))
    for number in range(3):
        record(store, number, origin=f"f{number}")
    assert publication.round() == 3
    assert publication.round() == 0
    record(store, 3, origin="f1")
    record(store, 4, origin="f1")
    assert publication.round() == 1
    assert sorted(told(receiver).values()) == [("f0", 1), ("f1", 1), ("f1", 3), ("f2", 1)]
    assert len(receiver.asked) == 4
    assert (publication.pending, receiver.forged, publication.counters["sent"]) == (0, 0, 4)


def test_failures_are_tried_again_with_growing_waits(tmp_path: Path, receiver: Receiver) -> None:
    """The same key, each time signed anew; as long as is asked for, never longer than is bearable."""
    waits: list[float] = []
    receiver.next = [(500, {}), (0, {}), (429, {"Retry-After": "7"}), (503, {"Retry-After": "900"})]
    assert receiver.hook(waits).send(b"{}", "k-1")
    assert waits == [0.5, 1.0, 7.0, 30.0]
    assert [key for key, _, _ in receiver.asked] == ["k-1"] * 5


def test_after_all_attempts_it_is_for_later(tmp_path: Path, receiver: Receiver) -> None:
    """The cursor stays: the next round tells the same, and what was folded in meanwhile."""
    store = ViolationStore(tmp_path)
    record(store, 0)
    receiver.next = [(500, {})] * 5
    publication = Publication(store, WebhookChannel(receiver.hook()))
    with pytest.raises(Unreachable, match="in 5 attempts: status 500"):
        publication.round()
    assert (publication.counters["failed"], publication.pending) == (1, 1)
    record(store, 1)
    assert publication.round() == 1
    assert list(told(receiver).values()) == [("orders.jsonl", 2)]


def test_what_is_refused_for_good_holds_nothing_up(tmp_path: Path, receiver: Receiver) -> None:
    """It is counted, not tried again; a redirect is no acceptance and is not followed."""
    store = ViolationStore(tmp_path)
    for number in range(3):
        record(store, number, origin=f"f{number}")
    receiver.next = [(400, {}), (307, {"Location": receiver.url})]
    publication = Publication(store, WebhookChannel(receiver.hook()))
    assert publication.round() == 1
    assert publication.counters["refused"] == 2
    assert len(receiver.asked) == 3
    assert publication.round() == 0


class Crash(BaseException):
    """The process is gone."""


def crashed(store: ViolationStore, receiver: Receiver, monkeypatch: pytest.MonkeyPatch) -> None:
    """A publisher that dies after its second violation was taken, before its cursor moved."""
    publication = Publication(store, WebhookChannel(receiver.hook()))
    move = Publication._move
    moves: list[int] = []

    def moving(self: Publication, marks: object) -> None:
        moves.append(1)
        if len(moves) == 2:
            raise Crash
        move(self, marks)

    with monkeypatch.context() as patched:
        patched.setattr(Publication, "_move", moving)
        with pytest.raises(Crash):
            publication.round()


def test_a_crash_tells_again_and_leaves_none_out(
    tmp_path: Path, receiver: Receiver, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The one told twice has one key: the receiver knows it."""
    store = ViolationStore(tmp_path)
    for number in range(4):
        record(store, number, origin=f"f{number}")
    crashed(store, receiver, monkeypatch)
    Publication(store, WebhookChannel(receiver.hook())).round()
    assert [key for key, _, _ in receiver.asked].count(receiver.asked[1][0]) == 2
    assert sorted(told(receiver).values()) == [(f"f{n}", 1) for n in range(4)]


def test_a_cursor_that_moves_first_would_be_caught(
    tmp_path: Path, receiver: Receiver, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The planted fault: moved before the answer, it leaves one untold after a failure."""
    store = ViolationStore(tmp_path)
    for number in range(2):
        record(store, number, origin=f"f{number}")
    publication = Publication(store, WebhookChannel(receiver.hook(attempts=1)))
    send = WebhookChannel.send

    def early(self: WebhookChannel, key: str, violation: Folded) -> bool:
        publication._move(store.news({}).marks)
        return send(self, key, violation)

    receiver.next = [(500, {})]
    with monkeypatch.context() as patched:
        patched.setattr(WebhookChannel, "send", early)
        with pytest.raises(Unreachable):
            publication.round()
    publication.round()
    assert len(told(receiver)) < 2


def test_a_signature_over_other_bytes_would_be_caught(
    tmp_path: Path, receiver: Receiver, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The planted fault: what is signed is not what is sent, and the receiver refuses it."""
    monkeypatch.setattr(webhook_module, "sign", lambda secret, body, at_s: sign(secret, body + b" ", at_s))
    store = ViolationStore(tmp_path)
    record(store, 0)
    publication = Publication(store, WebhookChannel(receiver.hook()))
    assert publication.round() == 0
    assert (receiver.forged, receiver.taken, publication.counters["refused"]) == (1, {}, 1)


def test_what_was_pushed_out_untold_is_counted(
    tmp_path: Path, receiver: Receiver, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Once; the store is the queue, and it is bounded."""
    monkeypatch.setattr("validation.violations.KEPT", 3)
    store = ViolationStore(tmp_path)
    publication = Publication(store, WebhookChannel(receiver.hook()))
    for number in range(8):
        record(store, number, origin=f"f{number}")
    assert (publication.round(), publication.counters["lost"]) == (3, 5)
    publication.round()
    assert publication.counters["lost"] == 5


def test_of_two_publishers_one_tells(tmp_path: Path, receiver: Receiver) -> None:
    """The other has nothing to do, and takes over when the first is gone."""
    store = ViolationStore(tmp_path)
    record(store, 0)
    one, other = (Publication(store, WebhookChannel(receiver.hook())) for _ in range(2))
    with one._alone() as mine:
        assert mine
        assert other.round() == 0
    assert other.round() == 1


def test_channels_and_producers_have_cursors_of_their_own(tmp_path: Path, receiver: Receiver) -> None:
    """Another address, or another choice of producers, is told from the beginning; each of what it may know."""
    store = ViolationStore(tmp_path)
    record(store, 0, owner="fares", producer="fares")
    record(store, 1, owner="weather", producer="weather", origin="w")
    assert Publication(store, WebhookChannel(receiver.hook()), among=["weather"]).round() == 1
    assert list(told(receiver).values()) == [("w", 1)]
    assert Publication(store, WebhookChannel(receiver.hook())).round() == 2
    hook = Webhook(receiver.url + "?other", SECRET)
    assert Publication(store, WebhookChannel(hook)).round() == 2


def test_it_follows_until_it_is_told_to_stop(tmp_path: Path, receiver: Receiver) -> None:
    """A round that fails is followed by another; a torn cursor tells everything again."""
    store = ViolationStore(tmp_path)
    record(store, 0)
    receiver.next = [(500, {})]
    publication = Publication(store, WebhookChannel(receiver.hook(attempts=1)))
    rounds = iter([False, False, True])
    publication.follow(lambda: next(rounds), lambda _: None)
    assert (publication.counters["failed"], publication.counters["sent"]) == (1, 1)
    publication._path.write_text("torn")
    assert publication.round() == 1
    assert len(receiver.taken) == 1


def test_publishing_makes_no_writer_wait(tmp_path: Path, receiver: Receiver) -> None:
    """A webhook that hangs holds no lock that a report needs."""
    store = ViolationStore(tmp_path)
    record(store, 0)
    hanging = threading.Event()

    class Slow(WebhookChannel, frozen=True):
        def send(self, key: str, violation: Folded) -> bool:
            return hanging.wait(30)

    thread = threading.Thread(target=Publication(store, Slow(receiver.hook())).round)
    thread.start()
    started = time.monotonic()
    for number in range(1, 20):
        record(store, number)
    assert time.monotonic() - started < 20
    assert thread.is_alive()
    hanging.set()
    thread.join()


def test_the_key_is_id_and_count(tmp_path: Path) -> None:
    """The same news has the same key."""
    store = ViolationStore(tmp_path)
    record(store, 0)
    record(store, 1)
    (one,) = store.find()
    assert key_of(one) == f"{one.id}-2"
    assert issubclass(Unreachable, PlatformError)
    assert module.WebhookChannel.group == 1
