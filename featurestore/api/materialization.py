"""How does the API materialize, which needs Feast, without Feast? By the command, in a process of its own.

At most one at a time for each data folder, over all workers: the lock is the child's, so that it holds as long as the
child lives, whatever becomes of the worker that started it. What it says is kept in `materialize.log`.
"""

import asyncio
import contextlib
import fcntl
import logging
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import IO

import msgspec

from featurestore.api.faults import Refused
from featurestore.clock import iso, parse_instant
from featurestore.errors import ContractBroken, FeatureStoreError, UnknownName, UsageError
from featurestore.plan import Plan

_log = logging.getLogger(__name__)
_COMMAND = (sys.executable, "-m", "featurestore.cli.main", "materialize")


class MaterializeRequest(msgspec.Struct, frozen=True):
    """The body of /materialize, as Feast's clients send it; fields that it does not know are ignored."""

    start_ts: str | None = None
    """ISO 8601; UTC without a zone."""
    end_ts: str | None = None
    feature_views: list[str] | None = None
    """None is every view that materialization keeps."""
    disable_event_timestamp: bool = False
    """All of history, up to now."""
    version: str | None = None


class IncrementalRequest(msgspec.Struct, frozen=True):
    """The body of /materialize-incremental, as Feast's clients send it; fields that it does not know are ignored."""

    end_ts: str
    feature_views: list[str] | None = None
    version: str | None = None


def words_of(request: MaterializeRequest | IncrementalRequest, views: Sequence[str]) -> list[str]:
    """The command's options for a request about these views, each of them named; raises UsageError.

    The command takes no name for all views: what was permitted is always named, so that nothing else is done.

    >>> words_of(IncrementalRequest(end_ts="2013-01-02"), ["weather"])
    ['--incremental', '--end', '2013-01-02T00:00:00Z', '--', 'weather']
    """
    if not views:
        raise UsageError("no view to materialize: `feature_views` is empty, or the plan has no online batch view")
    if request.version is not None:
        raise UsageError("version: views have no versions to materialize here; leave it out")
    if isinstance(request, IncrementalRequest):
        words = ["--incremental", "--end", _text(request.end_ts)]
    elif request.disable_event_timestamp:
        words = []
    elif request.start_ts and request.end_ts:
        if parse_instant(request.start_ts) >= parse_instant(request.end_ts):
            raise UsageError(f"start_ts ({request.start_ts}) must be before end_ts ({request.end_ts})")
        words = ["--start", _text(request.start_ts), "--end", _text(request.end_ts)]
    else:
        raise UsageError("start_ts and end_ts are needed where disable_event_timestamp is false")
    return [*words, "--", *views]


def views_of(request: MaterializeRequest | IncrementalRequest, plan: Plan) -> list[str]:
    """The views that a request is about; raises UnknownName, and UsageError where one is windowed."""
    batch = [name for name, view in plan.views.items() if view.kind == "latest" and view.online]
    if request.feature_views is None:
        return batch
    for name in request.feature_views:
        if plan.view(name).kind == "windowed":
            raise UsageError(f"view {name!r} is windowed: the stream keeps it current, nothing can be materialized")
        if name not in batch:
            raise UnknownName("online feature view", name, batch)
    return [*dict.fromkeys(request.feature_views)]


def _text(instant: str) -> str:
    try:
        return iso(parse_instant(instant))
    except (OverflowError, ValueError):
        raise UsageError(f"{instant!r} is beyond the years 1 to 9999") from None


class Materializer:
    """Runs `featurestore materialize` for one feature repo."""

    def __init__(
        self, repo: Path, data_dir: Path, environ: Mapping[str, str], command: Sequence[str] = _COMMAND
    ) -> None:
        self._data_dir = data_dir
        self._command = [*command, "--repo", str(repo)]
        # Feast counts too, and would count into the API's files.
        self._environ = {name: value for name, value in environ.items() if name != "PROMETHEUS_MULTIPROC_DIR"}
        self._tasks: set[asyncio.Task[None]] = set()

    async def run(
        self, words: Sequence[str], *, wait: bool, ended: Callable[[BaseException | None], object] = lambda _: None
    ) -> None:
        """Starts one materialization, and waits for its end if `wait`; `ended` hears how it ended in both cases.

        Raises Refused: 409 while another runs, 422 where a contract stopped it. Raises UsageError where the command
        calls the request wrong and FeatureStoreError where it fails; without `wait` a failure is only logged.
        """
        with contextlib.ExitStack() as stack:
            lock = stack.enter_context(self._locked())
            told = stack.enter_context((self._data_dir / "materialize.log").open("wb"))
            child = await asyncio.create_subprocess_exec(
                *self._command,
                *words,
                stdin=asyncio.subprocess.DEVNULL,
                stdout=told,
                stderr=told,
                env=self._environ,
                pass_fds=(lock.fileno(),),
                start_new_session=True,
            )
        task = asyncio.create_task(self._finish(child))
        self._tasks.add(task)
        task.add_done_callback(partial(self._forget, ended, told=not wait))
        if wait:
            # A caller who goes away does not end the run, and its end is still kept.
            await asyncio.shield(task)

    @contextlib.contextmanager
    def _locked(self) -> Iterator[IO[bytes]]:
        self._data_dir.mkdir(parents=True, exist_ok=True)
        with (self._data_dir / "materialize.lock").open("ab") as lock:
            try:
                # Closing this descriptor leaves the lock with the child's copy of it.
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise Refused(
                    409, "already_materializing", "a materialization is running; ask again when it has ended"
                ) from None
            yield lock

    async def _finish(self, child: asyncio.subprocess.Process) -> None:
        code = await child.wait()
        if code == 0:
            return
        lines = (self._data_dir / "materialize.log").read_text(encoding="utf-8", errors="replace").strip().splitlines()
        said = lines[-1].removeprefix("error: ") if lines else f"ended with {code} and said nothing"
        if code in (ContractBroken.BAD_DATA, ContractBroken.CHECK_BROKE):
            raise Refused(
                422, "contract_broken" if code == ContractBroken.BAD_DATA else "check_broke", f"materialize: {said}"
            )
        raise (UsageError if code == UsageError.exit_code else FeatureStoreError)(f"materialize: {said}")

    def _forget(self, ended: Callable[[BaseException | None], object], task: asyncio.Task[None], *, told: bool) -> None:
        self._tasks.discard(task)
        error = asyncio.CancelledError("the service stopped while it ran") if task.cancelled() else task.exception()
        if told and error is not None:
            _log.error("%s", error)
        try:
            ended(error)
        except FeatureStoreError as unkept:
            _log.error("%s", unkept)
