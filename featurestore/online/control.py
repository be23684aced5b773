"""The check of a shard's control hash, as the scripts that write it compute it."""

import hashlib
from collections.abc import Sequence
from typing import Final

from featurestore.online.sealed import FORMAT

CONTROL_FIELDS: Final = (
    "epoch", "offset", "watermark", "complete_from", "plan_version", "seen", "duplicates", "reused_ids"
)  # fmt: skip
"""The fields that the check stands for, in its order."""
CONTROL_CHECK: Final = "check"


def control_check(values: Sequence[bytes | None]) -> bytes:
    """The check of a control hash that holds these values of `CONTROL_FIELDS`."""
    told = b"|".join([b"%d" % FORMAT, *(value or b"" for value in values)])
    return hashlib.sha1(told, usedforsecurity=False).hexdigest().encode()


def control_damage(values: Sequence[bytes | None], check: bytes | None) -> str | None:
    """What is wrong with a control hash that holds these values of `CONTROL_FIELDS`; None: it is as it was written."""
    if check is None:
        return "it is of another format" if any(values) else None
    return None if check == control_check(values) else "its check does not match"
