"""`make waits`: the table of docs/guarantees.md. Minutes."""

from __future__ import annotations

import sys

from tests.faults.waits.measure import SERVERS, measure, stand
from tests.faults.waits.proxy import Fault


def main() -> None:
    """One line per door and server: the longest wait in seconds, by fault."""
    print("| server | door | " + " | ".join(fault.value for fault in Fault) + " |")
    print("|---|---|" + "---:|" * len(Fault))
    with stand() as made:
        for server in SERVERS:
            columns = {}
            for fault in Fault:
                columns[fault] = measure(made, server, fault)
                print(f"{server} {fault.value}: measured", file=sys.stderr, flush=True)
            for door in columns[Fault.REFUSED]:
                waits = " | ".join(f"{columns[fault][door].seconds:.1f}" for fault in Fault)
                print(f"| {server} | {door} | {waits} |", flush=True)


if __name__ == "__main__":
    main()
