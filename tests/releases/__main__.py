"""Records the release that is installed: python -m tests.releases record [--release X] [--into FOLDER]

`python -m tests.releases meant` writes down what differs from the last release, to be read before it is committed.
"""

from __future__ import annotations

import argparse
import signal
import sys
from pathlib import Path

from billing_tasks import __version__
from tests.releases.record import HERE, note_meant, record


def main() -> int:
    """0 when the folder is written."""
    parser = argparse.ArgumentParser(prog="python -m tests.releases", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("do", choices=["record", "meant"])
    parser.add_argument("--release", default=__version__, help="by default the version of the package")
    parser.add_argument("--into", type=Path, help="by default tests/releases/<release>")
    asked = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that the servers go, too
    if asked.do == "meant":
        print(f"Meant to differ: {', '.join(note_meant()) or 'nothing'}.")
        return 0
    folder = asked.into or HERE / asked.release
    record(asked.release, folder)
    print(f"{folder} is recorded.")
    return 0


if __name__ == "__main__":
    sys.exit(main())
