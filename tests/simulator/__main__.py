"""Runs histories: python -m tests.simulator --seeds 1000 [--first-seed 1] [--processes 2] [--mutant NAME] [--trace]

Each process has servers of its own. A failing seed is printed with the claim, its last steps and how to run it again.
"""

from __future__ import annotations

import argparse
import signal
import sys
from contextlib import nullcontext

from tests.simulator.mutations import MUTANTS
from tests.simulator.runner import Outcome, run_seed, run_seeds
from tests.simulator.world import open_world


def main() -> int:
    """0 if every claim held."""
    parser = argparse.ArgumentParser(prog="python -m tests.simulator", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--seeds", type=int, default=1, help="how many")
    parser.add_argument("--first-seed", type=int, default=1)
    parser.add_argument("--processes", type=int, default=1)
    parser.add_argument("--mutant", choices=sorted(MUTANTS), help="with this guard of the product removed")
    parser.add_argument("--trace", action="store_true", help="print every step; one process")
    parser.add_argument("--stop-at", type=int, default=3, help="give up after so many failed seeds")
    args = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that the servers go, too
    seeds = range(args.first_seed, args.first_seed + args.seeds)
    if args.trace:
        with open_world() as world, MUTANTS[args.mutant].applied(world) if args.mutant else nullcontext():
            total = Outcome()
            for seed in seeds:
                done = run_seed(world, seed, trace=True)
                print("\n".join(done.failed.values()))
                total.add(done)
    else:
        total = run_seeds(seeds, mutant=args.mutant, processes=args.processes, stop_at=args.stop_at)
    print("what was exercised:")
    for what, count in sorted(total.counts.items()):
        print(f"  {count:9,}  {what}")
    print(f"{total.seeds} seeds, {len(total.failed)} failed")
    return 1 if total.failed else 0


if __name__ == "__main__":
    sys.exit(main())
