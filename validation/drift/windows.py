"""Which profiles does a window name? A boundary and two instants, a name given to them, or past weeks.

event@2026-01-05T00:00Z/2026-01-12T00:00Z     profiles of a boundary, the end excluded
window:launch                                 the same under a name, kept beside the profiles
past:4                                        the current window's weekdays and hours, in the 4 weeks before it
"""

import re
from typing import Final

import msgspec

from validation.drift.compare import DriftError
from validation.drift.rows import same_hours
from validation.errors import did_you_mean
from validation.instant import iso, to_us
from validation.profile.baseline import Baseline, ProfileError
from validation.profile.profile import Profile
from validation.profile.store import ProfileStore

_RANGE: Final = re.compile(r"([A-Za-z0-9._=-]+)@([^/]+)/([^/]+)")
_PAST: Final = re.compile(r"past:([1-9][0-9]?)")


class Window(msgspec.Struct, frozen=True, kw_only=True):
    """Profiles of a boundary on one baseline, of hours in [start, end)."""

    boundary: str
    start_us: int
    end_us: int
    baseline: str = ""
    """Empty: the only baseline of that boundary."""

    @property
    def text(self) -> str:
        """As it is written on the command line."""
        return f"{self.boundary}@{iso(self.start_us)}/{iso(self.end_us)}"


def is_window(text: str) -> bool:
    """Whether a text is meant as a window and not as a path."""
    return bool(_RANGE.fullmatch(text) or _PAST.fullmatch(text) or text.startswith("window:"))


def parse_window(text: str, store: ProfileStore) -> Window:
    """A range or a named window; raises DriftError."""
    if text.startswith("window:"):
        name = text.removeprefix("window:")
        known = named_windows(store)
        if name not in known:
            raise DriftError(f"{store.folder}: no window {name!r}; {did_you_mean(name, known)}")
        return known[name]
    found = _RANGE.fullmatch(text)
    if found is None:
        raise DriftError(f"window {text!r}: expected BOUNDARY@START/END, window:NAME, or past:WEEKS as a reference")
    try:
        start_us, end_us = to_us(found[2]), to_us(found[3])
    except ValueError as error:
        raise DriftError(f"window {text!r}: {error}; expected ISO 8601 instants") from error
    assert start_us is not None
    assert end_us is not None
    if start_us >= end_us:
        raise DriftError(f"window {text!r} ends before it starts")
    return Window(boundary=found[1], start_us=start_us, end_us=end_us)


def name_window(store: ProfileStore, name: str, window: Window) -> None:
    """Keeps a window under a name, instead of what had the name before."""
    known = named_windows(store) | {name: window}
    path = store.folder / "windows.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    draft = path.with_name(".windows.json.draft")
    draft.write_bytes(msgspec.json.format(msgspec.json.encode(known, order="sorted"), indent=2))
    draft.replace(path)


def named_windows(store: ProfileStore) -> dict[str, Window]:
    """The windows that have names."""
    path = store.folder / "windows.json"
    return msgspec.json.decode(path.read_bytes(), type=dict[str, Window]) if path.exists() else {}


def baseline_of_window(store: ProfileStore, window: Window) -> Baseline:
    """The baseline of the window's profiles; raises ProfileError where there are several and none is named."""
    if window.baseline:
        return store.baseline(window.baseline)
    folder = store.folder / window.boundary
    found = sorted(path.name for path in folder.iterdir() if path.is_dir()) if folder.is_dir() else []
    if len(found) != 1:
        what = f"{len(found)} baselines ({', '.join(found)}): name one with --baseline" if found else "no profiles"
        raise ProfileError(f"{folder}: {what}")
    return store.baseline(found[0])


def profiles_in(store: ProfileStore, window: Window, baseline: Baseline) -> list[Profile]:
    """The profiles of a window, an hour each."""
    return store.read(boundary=window.boundary, baseline=baseline.id, start_us=window.start_us, end_us=window.end_us)


def past_profiles(text: str, store: ProfileStore, current: Window, baseline: Baseline) -> list[Profile] | None:
    """The profiles that `past:WEEKS` names for a current window; None for another text."""
    found = _PAST.fullmatch(text)
    if found is None:
        return None
    return [
        profile
        for start_us, end_us in same_hours(current.start_us, current.end_us, int(found[1]))
        for profile in profiles_in(store, msgspec.structs.replace(current, start_us=start_us, end_us=end_us), baseline)
    ]
