"""Which concept signals were told of a service? One small JSON file each, the latest of every segment and period."""

from pathlib import Path
from urllib.parse import quote

import msgspec

from featurestore.errors import SourceError
from featurestore.monitor.concept import Signal
from validation.whole_file import replace_file


def put_signals(folder: Path, service: str, found: list[Signal]) -> None:
    """Keeps signals, in place of earlier ones of the same segments and periods."""
    known = {_key(each): each for each in read_signals(folder, service)}
    known |= {_key(each): each for each in found}
    replace_file(_path(folder, service), msgspec.json.encode(sorted(known.values(), key=_key)))


def read_signals(folder: Path, service: str) -> list[Signal]:
    """The signals that are kept of a service; raises SourceError for a torn file."""
    path = _path(folder, service)
    try:
        return msgspec.json.decode(path.read_bytes(), type=list[Signal])
    except FileNotFoundError:
        return []
    except (OSError, msgspec.MsgspecError) as error:
        raise SourceError(f"{path}: signals cannot be read: {error}; remove it and give the labels again") from error


def _key(signal: Signal) -> tuple[str, int]:
    return msgspec.json.encode(signal.segment, order="sorted").decode(), signal.period_us


def _path(folder: Path, service: str) -> Path:
    return folder / f"{quote(service, safe='')}.json"
