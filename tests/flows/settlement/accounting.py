"""What the tests of accounting do to an outbox, and ask of it."""

from __future__ import annotations

from billing_tasks.flows.settlement import ring
from tests.conftest import Billing, Payer


def look(billing: Billing) -> None:
    billing.runtime.run(ring.ring_stale(commands=billing.runtime.commands, settings=billing.settings))


def outbox(billing: Billing, payer: Payer) -> str:
    keys = billing.runtime.commands.keys
    return keys.outbox(keys.shard_of(payer[0]))


def use(billing: Billing, payer: Payer, times: int) -> None:
    for _ in range(times):
        billing.use(billing.reserve(payer, 10), 10)


def lose_events(billing: Billing, payer: Payer, first: int, last: int) -> None:
    """Events by their place in the outbox, with their weight: what a bug or a stranger may do."""
    entries = billing.redis("XRANGE", outbox(billing, payer), "-", "+")[first - 1 : last]
    for entry_id, _ in entries:
        billing.redis("XDEL", outbox(billing, payer), entry_id)
    keys = billing.runtime.commands.keys
    for account in (billing.user_key(payer[0]), keys.token(keys.shard_of(payer[0]), payer[1])):
        billing.redis("HINCRBY", account, "unposted", -10 * len(entries))


def restart(billing: Billing, payer: Payer) -> None:
    """With all it knows; to the scripts it is another run."""
    keys = billing.runtime.commands.keys
    billing.redis("HSET", keys.meta(keys.shard_of(payer[0])), "run_id", "0" * 40)


def incidents(billing: Billing) -> list[tuple[str, int | None]]:
    found = billing.runtime.ledger.incidents()
    return [(incident.kind, incident.events_bound) for incident in reversed(found)]


def accounted(billing: Billing) -> list[tuple[tuple[int, int], ...]]:
    return [cursor.accounted for cursor in billing.runtime.ledger.outbox_cursors() if cursor.accounted]
