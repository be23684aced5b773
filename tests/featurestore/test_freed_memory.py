"""Does a process keep what it has freed?"""

import platform
import subprocess
import sys

import pytest

PROGRAM = """
import resource, sys
from featurestore.freed_memory import keep_freed_memory
if sys.argv[1] == "keep":
    assert keep_freed_memory()
def faults():
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt
def answer():
    return [b"x" * (3 << 20), b"".join([b"x" * 2000] * 1000), [b"x" * 2000 for _ in range(5000)]]
answer()
before = faults()
for _ in range(20):
    answer()
print(faults() - before)
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="other allocators are left as they are")
def test_freed_memory_is_used_again() -> None:
    """Pages are asked for once, not with every answer."""
    kept, given_back = (
        int(subprocess.run([sys.executable, "-c", PROGRAM, word], capture_output=True, check=True, text=True).stdout)
        for word in ("keep", "leave")
    )
    assert kept * 10 < given_back
