"""Nobody waits for ever: each server broken in each way, doors of both styles, bounds on this side of the wire.

All doors and the figures: `make waits`, docs/guarantees.md.
"""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest

from tests.faults.waits.measure import Stand, measure, stand
from tests.faults.waits.proxy import Fault

#: As guarantees.md says it, and some for a machine that has two cores for all of this.
BOUNDS = {"redis": 2 * 1.0 + 1.5, "postgresql": 3.0 + 3.0 + 1.5, "broker": 5.0 + 1.5}
DOORS = {
    "redis": ("reserve, account cached",),
    "postgresql": ("reserve, account not cached",),
    "broker": ("consume", "send a task"),
}
#: The others: `make faults`.
QUICK = {
    ("redis", Fault.TRICKLE),
    ("redis", Fault.UNREACHABLE),
    ("postgresql", Fault.TRICKLE),
    ("broker", Fault.TRICKLE),
}


@pytest.fixture(scope="module")
def made() -> Iterator[Stand]:
    with stand() as made:
        yield made


@pytest.mark.parametrize("fault", list(Fault))
@pytest.mark.parametrize("server", list(BOUNDS))
def test_no_caller_waits_longer_than_the_bound(made: Stand, server: str, fault: Fault) -> None:
    if (server, fault) not in QUICK and not os.environ.get("BILLING_TEST_LONG"):
        pytest.skip("`make faults` and `make waits` look at the others")
    for door, waited in measure(made, server, fault, doors=DOORS[server]).items():
        assert waited.seconds < BOUNDS[server], (door, waited)
