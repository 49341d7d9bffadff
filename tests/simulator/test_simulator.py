"""A few hundred histories of gateways, workers, sweepers and operators, each preempted at every effect.

make simulate SEEDS=20000 PROCESSES=2     # many more
make mutants                              # every guard removed once
"""

from __future__ import annotations

import os
import re
import time
from collections.abc import Iterator

import pytest

from tests.simulator.final_check import run_history
from tests.simulator.history import History
from tests.simulator.mutations import MUTANTS
from tests.simulator.runner import Outcome, run_seed
from tests.simulator.world import World, open_world

#: Enough on an idle machine to run SEEDS; a busy one runs fewer, but never fewer than LEAST.
SECONDS = 45
SEEDS = int(os.environ.get("BILLING_TEST_SEEDS", "300"))
LEAST = 20


@pytest.fixture(scope="module")
def world() -> Iterator[World]:
    with open_world() as opened:
        yield opened


@pytest.mark.timeout(900)
def test_every_interleaving_tried_keeps_every_claim(world: World) -> None:
    total, began = Outcome(), time.monotonic()
    for seed in range(1, SEEDS + 1):
        total.add(run_seed(world, seed))
        assert not total.failed, "\n\n".join(total.failed.values())
        if seed >= LEAST and time.monotonic() - began > SECONDS:
            break
    assert total.counts["parked before COMMIT"]
    assert total.counts["lost answers"]
    assert total.counts["crashes"]


def test_a_seed_gives_the_same_history_again(world: World) -> None:
    first, second = (_told(world, 42) for _ in range(2))
    assert first == second


def _told(world: World, seed: int) -> str:
    history = History(world, seed)
    run_history(history)
    # Times, epochs and ages are the clock's own.
    told = re.sub(r"datetime\.datetime\([^)]*\)|\d{5,}|age_ms=\d+", "#", history.trace.last(10_000))
    return "\n".join(line[:300] for line in told.split("\n"))  # the trace cuts long lines before they are masked


@pytest.mark.timeout(300)
@pytest.mark.parametrize(
    "name", ["post_batch: sums of inserted rows", "consume: tombstone", "settle: dead letters first", "expire: weight"]
)
def test_a_guard_that_is_removed_is_missed(world: World, name: str) -> None:
    with MUTANTS[name].applied(world):
        assert any(run_seed(world, seed).failed for seed in range(1, 61)), f"no claim failed without {name}"
