"""Runs many seeds, in one process or in several, each with servers of its own."""

from __future__ import annotations

import multiprocessing
import queue
import signal
import sys
import time
import traceback
from collections import Counter
from collections.abc import Iterator
from contextlib import nullcontext
from dataclasses import dataclass, field
from typing import Any

from tests.simulator.claims import Claim, Violation
from tests.simulator.final_check import run_history
from tests.simulator.history import History
from tests.simulator.mutations import MUTANTS
from tests.simulator.world import World, open_world

#: Seeds that one process takes at a time.
CHUNK = 10
LAST_STEPS = 40


@dataclass
class Outcome:
    """What came of some seeds."""

    seeds: int = 0
    counts: Counter[str] = field(default_factory=Counter)
    failed: dict[int, str] = field(default_factory=dict)  # seed -> what to print
    claims: dict[int, Claim] = field(default_factory=dict)

    def add(self, other: Outcome) -> None:
        self.seeds += other.seeds
        self.counts += other.counts
        self.failed |= other.failed
        self.claims |= other.claims


def run_seed(world: World, seed: int, *, trace: bool = False) -> Outcome:
    """One history; a violation becomes a text, anything else is a fault of the simulator and is raised."""
    history = History(world, seed)
    history.trace.live = trace
    done = Outcome(seeds=1)
    try:
        run_history(history)
    except Violation as violation:
        last = history.trace.last(LAST_STEPS)
        story = f"seed {seed}: {violation}\n{last}\nagain: python -m tests.simulator --first-seed {seed} --trace"
        done.failed[seed], done.claims[seed] = history.trace.named(story), violation.claim
    finally:
        history.leave()
    done.counts = history.counts
    return done


def run_seeds(seeds: range, *, mutant: str | None, processes: int, stop_at: int) -> Outcome:
    """Many histories, with a line that says how far they are."""
    total, began = Outcome(), time.monotonic()
    for done in _chunks(seeds, mutant, processes):
        total.add(done)
        for text in done.failed.values():
            print(f"\n{text}\n", flush=True)
        _progress(total, len(seeds), began)
        if len(total.failed) >= stop_at:
            break
    print(file=sys.stderr)
    return total


def _chunks(seeds: range, mutant: str | None, processes: int) -> Iterator[Outcome]:
    chunks = [seeds[at : at + CHUNK] for at in range(0, len(seeds), CHUNK)]
    if processes == 1:
        with open_world() as world, MUTANTS[mutant].applied(world) if mutant else nullcontext():
            for chunk in chunks:
                yield _run_chunk(world, chunk)
        return
    spawn = multiprocessing.get_context("spawn")
    todo, done = spawn.Queue(), spawn.Queue()
    for chunk in [*chunks, *[None] * processes]:
        todo.put(chunk)
    workers = [spawn.Process(target=_worker, args=(todo, done, mutant)) for _ in range(processes)]
    for worker in workers:
        worker.start()
    try:
        for _ in chunks:
            yield _next(done, workers)
    finally:
        for worker in workers:
            worker.terminate()
            worker.join()


def _next(done: Any, workers: list[Any]) -> Outcome:
    while True:
        try:
            outcome: Outcome | str = done.get(timeout=1)
        except queue.Empty:
            if not any(worker.is_alive() for worker in workers):
                codes = [worker.exitcode for worker in workers]
                raise SystemExit(f"all processes of the simulator have died: {codes}") from None
            continue
        if isinstance(outcome, str):
            raise SystemExit(outcome)
        return outcome


def _worker(todo: Any, done: Any, mutant: str | None) -> None:
    # Ended by its parent only: then its servers must go, too.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit())
    try:
        with open_world() as world, MUTANTS[mutant].applied(world) if mutant else nullcontext():
            while (chunk := todo.get()) is not None:
                done.put(_run_chunk(world, chunk))
    except Exception:
        done.put(traceback.format_exc())


def _run_chunk(world: World, chunk: range) -> Outcome:
    total = Outcome()
    for seed in chunk:
        total.add(run_seed(world, seed))
    return total


def _progress(total: Outcome, of: int, began: float) -> None:
    share, seconds = total.seeds / of, time.monotonic() - began
    bar = "#" * round(30 * share)
    line = f"\r[{bar:30}] {total.seeds} of {of} seeds, {total.seeds / seconds:.1f}/s, {len(total.failed)} failed"
    print(line, end="", file=sys.stderr, flush=True)
