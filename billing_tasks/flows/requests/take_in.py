"""Take in: usage that a gateway logged elsewhere while all was away, booked straight into PostgreSQL.

Each outcome is the ledger's own, so whoever asks learns at once what was booked before, what contradicts it and what
can't be booked. Nothing becomes a dead letter: the file it came from is still there.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

from billing_tasks.flows.account_cache import clock_of, push_accounts
from billing_tasks.flows.dead_letters.answers import WHY
from billing_tasks.flows.dead_letters.record import reason_of
from billing_tasks.flows.effects import InLedger
from billing_tasks.holds.commands import Commands
from billing_tasks.ledger.failures import LedgerRefusedData
from billing_tasks.ledger.store import Ledger
from billing_tasks.model.events import Event
from billing_tasks.model.posting import PostOutcome


@dataclass(frozen=True, slots=True)
class TakenIn:
    """What became of one event: `posted`, `duplicate`, or the code and the sentence of a refusal."""

    outcome: str
    message: str = ""


async def take_in(events: Sequence[Event], *, commands: Commands, dry_run: bool = False) -> list[TakenIn]:
    """Book consumes, each once per request_id, and answer for each. Raises Unavailable: repeating is safe.

    `dry_run`: what booking each by itself would answer; nothing is changed.
    """
    answers: dict[int, TakenIn] = {}
    by_shard: defaultdict[int, list[int]] = defaultdict(list)
    for at, event in enumerate(events):
        by_shard[commands.keys.shard_of(event.user_id)].append(at)
    for shard, chosen in by_shard.items():
        if dry_run:
            for at in chosen:
                answers[at] = await _previewed(shard, events[at])
        else:
            answers.update(await _post(shard, {at: events[at] for at in chosen}, commands))
    return [answers[at] for at in range(len(events))]


async def _previewed(shard: int, event: Event) -> TakenIn:
    try:
        return _answer((await InLedger(Ledger.preview, shard, event)).outcome)
    except LedgerRefusedData as exc:
        return TakenIn(reason_of(exc), exc.message)


async def _post(shard: int, events: dict[int, Event], commands: Commands) -> dict[int, TakenIn]:
    """Halved down to the one that PostgreSQL can't store."""
    order = list(events)
    clock = await clock_of(events[order[0]].user_id, commands)
    try:
        answer = await InLedger(Ledger.post_batch, shard, list(events.values()))
    except LedgerRefusedData as exc:
        if len(order) == 1:
            return {order[0]: TakenIn(reason_of(exc), exc.message)}
        half = len(order) // 2
        first = await _post(shard, {at: events[at] for at in order[:half]}, commands)
        return first | await _post(shard, {at: events[at] for at in order[half:]}, commands)
    # What gateways have cached of these accounts is older now.
    users = [row for row in answer.users if commands.keys.shard_of(row.id) == shard]
    tokens = [row for row in answer.tokens if commands.keys.shard_of(row.user_id) == shard]
    await push_accounts(clock, users=users, tokens=tokens, commands=commands)
    return {at: _answer(outcome) for at, outcome in zip(order, answer.outcomes, strict=True)}


def _answer(outcome: PostOutcome) -> TakenIn:
    return TakenIn(str(outcome), "" if outcome.booked else WHY[outcome])
