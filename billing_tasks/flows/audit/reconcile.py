"""Reconcile: set right in Redis what verify found off there. Never touches the ledger.

PostgreSQL is the truth, and Redis's own holds and events explain its counters, so the
cache side can be repaired without an operator. Each repair looks again inside its
script; a crash between two of them leaves the rest for the next run.
"""

from __future__ import annotations

from collections.abc import Iterable

from billing_tasks.holds.commands import Commands
from billing_tasks.holds.repairs import Repair
from billing_tasks.settings import Settings


async def repair(repairs: Iterable[Repair], *, commands: Commands, settings: Settings) -> list[Repair]:
    """Make the repairs, each once; returns those that changed something. Raises Unavailable."""
    made = []
    for wanted in dict.fromkeys(repairs):
        changed = await wanted.command(commands, settings)
        made += [wanted] if changed else []
    return made
