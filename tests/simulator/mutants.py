"""Guards of the product, each removed once, in memory only: does the oracle notice?

    python -m tests.simulator.mutants [--seeds 500] [--only NAME ...]

A mutant that survives is either equivalent (said below, and why), or the simulator is blind there.
"""

from __future__ import annotations

import argparse
import sys
import time

from tests.simulator.mutations import MUTANTS
from tests.simulator.runner import run_seed
from tests.simulator.world import open_world


def main() -> int:
    """Prints the table; 0 if every mutant was caught that should be."""
    parser = argparse.ArgumentParser(prog="python -m tests.simulator.mutants", description=__doc__)
    parser.add_argument("--seeds", type=int, default=600, help="give up on a mutant after so many")
    parser.add_argument("--first-seed", type=int, default=1)
    parser.add_argument("--only", nargs="*", choices=sorted(MUTANTS))
    args = parser.parse_args()
    blind = []
    print(f"{'mutant':40} {'seeds':>5}  {'claim violated':66} without")
    with open_world() as world:
        for mutant in [m for m in MUTANTS.values() if not args.only or m.name in args.only]:
            began = time.monotonic()
            with mutant.applied(world):
                caught = None
                for seed in range(args.first_seed, args.first_seed + args.seeds):
                    done = run_seed(world, seed)
                    if done.failed:
                        caught = seed
                        break
            if caught is not None:
                told, needed = str(done.claims[caught]), str(caught - args.first_seed + 1)
            else:
                told, needed = f"survives: {mutant.survives}" if mutant.survives else "SURVIVES", f">{args.seeds}"
                blind += [] if mutant.survives else [mutant.name]
            seconds = time.monotonic() - began
            print(f"{mutant.name:40} {needed:>5}  {told:66} {mutant.without} ({seconds:.0f} s)", flush=True)
    print(f"not caught: {', '.join(blind)}" if blind else "each was caught, or is said to be equivalent")
    return 1 if blind else 0


if __name__ == "__main__":
    sys.exit(main())
