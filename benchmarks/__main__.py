"""Which figures does this product claim, and do they hold on this machine?

Runs every benchmark at its default size, each as a process of its own, so that one's memory is not another's peak.
"""

import subprocess
import sys
from pathlib import Path


def main() -> int:
    """Runs the benchmarks one after the other; the exit code says how many failed."""
    folder = Path(__file__).parent
    failed = 0
    for path in sorted(folder.glob("[!_]*.py")):
        print(f"\n== {path.stem} ==", flush=True)
        failed += (
            subprocess.run([sys.executable, "-m", f"benchmarks.{path.stem}"], cwd=folder.parent, check=False).returncode
            != 0
        )
    return failed


if __name__ == "__main__":
    sys.exit(main())
