"""Workers, sweepers and operators: the flows that tasks.py, beat and Accounts run, as scripts."""

from __future__ import annotations

from collections.abc import Callable
from random import Random
from typing import Any

from billing_tasks.broker import names
from billing_tasks.broker.decode import consume_log_from, refund_request_from
from billing_tasks.errors import InvalidRequest, Refused
from billing_tasks.flows.dead_letters import record, retry
from billing_tasks.flows.effects import Flow, InLedger
from billing_tasks.flows.requests import consume, expire, refund
from billing_tasks.flows.settlement import ring, settle
from billing_tasks.ledger.store import Ledger
from billing_tasks.model.events import Event, Kind
from billing_tasks.settings import Settings
from tests.flows.settlement.turns import in_turns
from tests.simulator.broker import Message
from tests.simulator.watched import WatchedLedger
from tests.simulator.world import SHARDS, TOKENS, World


async def task(
    message: Message, world: World, *, settings: Settings, owner: str, now: Callable[[], float], dice: Random
) -> None:
    """What tasks.py does for a message."""
    commands, kwargs = world.commands, dict(message.kwargs)
    if message.task == names.SETTLE:
        flow = settle.drain(kwargs["shard"], owner=owner, commands=commands, settings=settings, now=now)
        await in_turns(flow, lambda: dice.random() < 0.4)
        return
    if "dead_letter" in kwargs:
        number, count = kwargs["dead_letter"], kwargs["attempt"]
        await retry.attempt(number, actor="worker", commands=commands, settings=settings, count=count)
    elif message.task == names.CONSUME:
        try:
            await consume.consume(consume_log_from(kwargs), commands=commands)
        except InvalidRequest as exc:
            await record.keep([record.of_message("consume", kwargs, exc, task_id=message.task_id)])
            raise
    else:
        try:
            await refund.refund(refund_request_from(kwargs), commands=commands)
        except Refused as exc:
            await record.keep([record.of_message("refund", kwargs, exc, task_id=message.task_id)])
            raise


async def relay(event: Event, world: World) -> None:
    """What the relayer does for a file of the spool."""
    flow = refund.file if event.kind is Kind.REFUND else consume.file
    await flow(event, commands=world.commands)


def sweep(world: World, dice: Random) -> tuple[str, Flow[Any]]:
    """One of beat's tasks."""
    kind = dice.choice(("expire", "ring", "ring", "retry", "retry all"))
    commands = world.commands
    if kind == "expire":
        shard = dice.randrange(SHARDS)
        return f"expire shard {shard}", expire.expire_shard(shard, commands=commands)
    if kind == "ring":
        return "ring", ring.ring_stale(commands=commands, settings=world.settings)
    limit = dice.choice((1, 10))
    return kind, retry.send_again(limit=limit, due_only=kind == "retry", settings=world.settings)


def operate(world: World, dice: Random, users: list[int]) -> tuple[str, Flow[Any]]:
    """An operator changes an account, or another program does."""
    user = dice.choice(users)
    token = dice.choice([token for token, (owner, _, _) in TOKENS.items() if owner == user])
    which = dice.choice(("top up", "top up", "adjust user", "adjust token", "edit", "disable", "enable", "enable"))
    key = ("user", user) if dice.random() < 0.6 else ("token", token)
    change, number = dice.choice((-6, -2, 3, 8)), dice.randrange(3)
    if which == "top up":
        return f"top up user {user}", _twice(
            world, dice, user, InLedger(Ledger.top_up, user, 5 + user, f"topup-{number}"), _first
        )
    if which == "adjust user":
        return f"adjust user {user}", _twice(
            world, dice, user, InLedger(Ledger.adjust_user, user, change, f"user-{number}-{change}"), _first
        )
    if which == "adjust token":
        return f"adjust token {token}", _twice(
            world, dice, user, InLedger(Ledger.adjust_token, token, change, f"token-{number}-{change}"), _first
        )
    if which == "edit":
        return f"edit {key} by {change}", _edit(key, change)
    status = f"{which}d"
    if key[0] == "user":
        return f"{which} user {user}", world.accounts._pushed(
            user, InLedger(Ledger.set_user, user, status=status), lambda row: row
        )
    return f"{which} token {token}", world.accounts._pushed(
        user, InLedger(Ledger.set_token, token, status=status), lambda row: row
    )


def _first(done: Any) -> Any:
    return done[0]


async def _edit(key: tuple[str, int], change: int) -> None:
    await InLedger(WatchedLedger.edit_in_plain_sql, key, change)  # type: ignore[arg-type]


async def _twice(world: World, dice: Random, user: int, change: InLedger[Any], row: Callable[[Any], Any]) -> Any:
    """Operators repeat, too, with the same id."""
    await world.accounts._pushed(user, change, row)
    if dice.random() < 0.3:
        await world.accounts._pushed(user, change, row)
