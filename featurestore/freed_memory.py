"""What becomes of memory that a process has freed? It stays with the process, up to a bound."""

import ctypes

KEPT_BYTES = 32 << 20
_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3
"""Of glibc's mallopt(3)."""


def keep_freed_memory(most_bytes: int = KEPT_BYTES) -> bool:
    """Lets the allocator keep so much of what is freed; whether it can be told so (glibc's can).

    Left alone it gives large pieces back to the system at once and asks for them again with the next request, which
    fills them with zeros page by page: half of the processor time of an answer made of megabytes of tiles.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is None:
        return False
    return all(mallopt(name, most_bytes) == 1 for name in (_TRIM_THRESHOLD, _MMAP_THRESHOLD))
