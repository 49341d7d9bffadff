"""Records the release that is installed: python -m tests.releases record [--release X] [--into FOLDER]"""

from __future__ import annotations

import argparse
import signal
import sys
from pathlib import Path

from billing_tasks import __version__
from tests.releases.record import HERE, record


def main() -> int:
    """0 when the folder is written."""
    parser = argparse.ArgumentParser(prog="python -m tests.releases", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("do", choices=["record"])
    parser.add_argument("--release", default=__version__, help="by default the version of the package")
    parser.add_argument("--into", type=Path, help="by default tests/releases/<release>")
    asked = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that the servers go, too
    folder = asked.into or HERE / asked.release
    record(asked.release, folder)
    print(f"{folder} is recorded.")
    return 0


if __name__ == "__main__":
    sys.exit(main())
