"""How far is a view's source loaded, and from where does the next run go on?

The answer lies beside the rows, since it is about them: a store that lost its rows has lost this too, one that came
back older says what it holds, and the next run makes up for both.
"""

import msgspec

from featurestore.online.connection import StoreClient
from featurestore.online.keys import loaded_key
from featurestore.online.sealed import sealed, unsealed


class Loaded(msgspec.Struct, frozen=True, kw_only=True):
    """What all runs together have loaded: instants in microseconds."""

    start_us: int
    end_us: int
    """All rows dated from the start to the end are loaded that were there when a run last looked at all of them."""
    created_us: int | None = None
    """The newest created time of what that run saw; None where there was none."""
    ahead_until_us: int | None = None
    """Rows were seen that are dated after the end, up to here, ahead of the clock; None: none."""


class Run(msgspec.Struct, frozen=True, kw_only=True):
    """What one run reads: rows dated from the start to the end, and rows created late."""

    start_us: int
    end_us: int
    created_since_us: int | None = None
    """Rows created since then are read too, however old they say they are; None: rows of the range alone."""
    whole: bool
    """Whether all that arrived since the last such run is read."""


def run_of(loaded: Loaded | None, start_us: int, end_us: int, *, goes_on: bool, overlap_us: int, created: bool) -> Run:
    """The run that is asked for; `end_us` is not after what the clock allows.

    One that `goes_on` where the last one ended begins `overlap_us` before that, and where rows have a `created` time it
    takes besides what was created since the last one looked, or up to `overlap_us` before: rows become visible
    some time after they were stamped. Where nothing says what is loaded, it begins at the beginning. A run that does
    not go on reads the range that was asked for.

    >>> run_of(Loaded(start_us=0, end_us=50, created_us=48), 50, 90, goes_on=True, overlap_us=5, created=True)
    Run(start_us=45, end_us=90, created_since_us=43, whole=True)
    >>> run_of(None, 50, 90, goes_on=True, overlap_us=5, created=True).start_us
    0
    >>> run_of(Loaded(start_us=0, end_us=50), 60, 90, goes_on=False, overlap_us=5, created=False)
    Run(start_us=60, end_us=90, created_since_us=None, whole=False)
    """
    if loaded is None:
        return Run(start_us=min(0, start_us) if goes_on else start_us, end_us=end_us, whole=True)
    # Rows that were ahead of the clock wait right behind the end; a range that begins later must not leave them there.
    if goes_on or (loaded.ahead_until_us is not None and loaded.end_us < start_us):
        since_us = (loaded.created_us or 0) - overlap_us if created else None
        return Run(
            start_us=min(start_us, loaded.end_us) - overlap_us,
            end_us=end_us,
            created_since_us=since_us,
            whole=end_us >= loaded.end_us,
        )
    return Run(start_us=start_us, end_us=end_us, whole=start_us <= loaded.start_us and end_us >= loaded.end_us)


def after_run(loaded: Loaded | None, run: Run, *, created_us: int | None, ahead_until_us: int | None) -> Loaded:
    """What is loaded after a run that saw rows created up to `created_us`, and ahead ones up to `ahead_until_us`.

    >>> before = Loaded(start_us=0, end_us=50, created_us=48)
    >>> part = Run(start_us=40, end_us=90, whole=False)
    >>> after_run(before, part, created_us=88, ahead_until_us=None)
    Loaded(start_us=0, end_us=90, created_us=48, ahead_until_us=None)
    >>> apart = Run(start_us=60, end_us=90, whole=False)
    >>> after_run(before, apart, created_us=88, ahead_until_us=None).end_us
    50
    """
    if loaded is None:
        return Loaded(start_us=run.start_us, end_us=run.end_us, created_us=created_us, ahead_until_us=ahead_until_us)
    seen = [each for each in (loaded.created_us, created_us if run.whole else None) if each is not None]
    waiting = [each for each in (loaded.ahead_until_us, ahead_until_us) if each is not None and each > run.end_us]
    return Loaded(
        start_us=min(loaded.start_us, run.start_us) if run.whole else loaded.start_us,
        # A range that begins later leaves a gap, which the next run that goes on fills.
        end_us=loaded.end_us if run.start_us > loaded.end_us else max(loaded.end_us, run.end_us),
        created_us=max(seen, default=None),
        ahead_until_us=max(waiting, default=None),
    )


class LoadedStore:
    """What is loaded of one project's views, in the online store."""

    def __init__(self, client: StoreClient, project: str) -> None:
        self._client = client
        self._project = project

    def of(self, view: str) -> Loaded | None:
        """None where nothing is, or what was is gone."""
        held = self._client.get(loaded_key(self._project, view))
        if not isinstance(held, bytes):
            return None
        remedy = "materialize the view again, without --incremental"
        return msgspec.json.decode(unsealed(held, f"how far view {view!r} is loaded", remedy), type=Loaded)

    def put(self, view: str, loaded: Loaded) -> None:
        """After the rows: a crash before this loads them again."""
        self._client.set(loaded_key(self._project, view), sealed(msgspec.json.encode(loaded)))
