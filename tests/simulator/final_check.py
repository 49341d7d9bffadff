"""After the storm: servers are back, every actor finishes, everything drains; then all is compared with the books."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from billing_tasks.errors import InsufficientUserQuota, Refused, TokenRefused, UserDisabled
from billing_tasks.flows.audit import verify
from billing_tasks.flows.dead_letters import retry
from billing_tasks.flows.requests import expire
from billing_tasks.flows.settlement import ring
from billing_tasks.ledger.rows import DeadLetterState
from tests.simulator.accidents import KEYS
from tests.simulator.claims import Claim, demand
from tests.simulator.gateways import request_id
from tests.simulator.history import History
from tests.simulator.world import TOKENS

#: Dead letters are tried max_attempts times; everything else is done after two.
MAX_ROUNDS = 12
MAX_STEPS = 5000


def run_history(history: History) -> None:
    """The whole history. Raises Violation."""
    history.storm()
    history.trace.note("  -- the storm is over")
    calm(history)
    drain(history)
    compare(history)
    reserve_the_rest(history)
    drain(history)
    compare(history)
    verify_agrees(history)
    check_incidents(history)


def calm(h: History) -> None:
    """Nothing fails any more. Some actors crash, the others finish."""
    rough = h.profile
    h.profile = replace(rough, faults=0, parking=0, lossy=0)
    h.broker.lossy = 0
    h.settings = h.world.calm_settings
    h.away.update(dict.fromkeys(h.away, 0))
    h.refused.clear()
    for actor in list(h.actors):
        if h.dice.random() < rough.faults * 3:
            h._crash(actor)
    finish(h)


def finish(h: History) -> None:
    """Every actor that is there goes on to the end, in turns."""
    for _ in range(MAX_STEPS):
        if not h.actors:
            return
        h.step(h.dice.choice(h.actors))
    demand(False, Claim.SETTLES, f"{[actor.name for actor in h.actors]} don't come to an end")


def drain(h: History) -> None:
    """Time passes and workers work until nothing waits."""
    for _ in range(MAX_ROUNDS):
        while h.broker.messages:
            h._worker_comes()
            finish(h)
        for shard, hold_keys in enumerate(h.oracle.shards):
            h.accidents._redis("DEL", h.world.commands.keys.drainer(shard), h.world.commands.keys.doorbell(shard))
            hold_keys.drainer, hold_keys.doorbell = None, False
            for request in hold_keys.due:
                h.accidents._redis("ZADD", h.world.commands.keys.due(shard), 1, request)
                hold_keys.due[request] = True
            if hold_keys.due:
                h._enter("sweeper", expire.expire_shard(shard, commands=h.world.commands), does="expire")
                finish(h)
        # A refund of what was never charged may wait for ever.
        waiting = [
            key
            for key, state in h.books.dead_letters.items()
            if state is DeadLetterState.RETRYING and (key[0] != "refund" or key[1] in h.books.charges)
        ]
        if waiting:
            h.accidents.dead_letters_come_due()
            h._enter("sweeper", retry.send_again(limit=100, due_only=True, settings=h.world.settings), does="retry")
            finish(h)
        h._enter("sweeper", ring.ring_stale(commands=h.world.commands, settings=h.world.settings), does="ring")
        finish(h)
        if any(shard.damage or shard.unlisted for shard in h.oracle.shards) or h.accidents.dated_ahead():
            h._reconciler_comes()
            finish(h)
            continue
        quiet = not any(shard.outbox or shard.due for shard in h.oracle.shards)
        while h.spool:
            h._relay()
            finish(h)
        if quiet and not waiting and not h.broker.messages:
            return
    left = [filed.what for shard in h.oracle.shards for filed in shard.outbox]
    demand(False, Claim.SETTLES, f"still there: {left}, dead letters {waiting}")


def compare(h: History) -> None:
    """Every row and every counter."""
    h.accidents.read_outboxes()
    h.check_redis()
    b, rows = h.books, _rows(h)
    for user, row in b.users.items():
        right = (row.quota, row.used, row.requests, row.status)
        demand(rows["user"][user] == right, Claim.BALANCES, f"user {user} is {rows['user'][user]}, right is {right}")
    for token, row in b.tokens.items():
        found = rows["token"][token]
        demand(found == (row.quota, row.used, row.status), Claim.BALANCES, f"token {token} is {found}, right is {row}")
    right_charges = {request: (c.user, c.token, c.quota, c.held, c.channel or None) for request, c in b.charges.items()}
    _same(rows["consume"], right_charges, Claim.BOOKED_ONCE, "charges")
    right_releases = {request: (held, expired) for request, (_, held, expired, _) in b.releases.items()}
    _same(rows["release"], right_releases, Claim.HOLD_ENDS_ONCE, "releases")
    right_refunds = {refund_id: (given.request, given.quota) for refund_id, given in b.refunds.items()}
    _same(rows["refund"], right_refunds, Claim.REFUNDS_WITHIN_CHARGE, "refunds")
    _same(rows["top_up"], {i: quota for i, (_, _, quota) in b.own_ids.items()}, Claim.BOOKED_ONCE, "top-ups")
    _same(
        rows["dead letter"],
        {key: str(state) for key, state in b.dead_letters.items()},
        Claim.BOOKED_OR_KEPT,
        "dead letters",
    )
    _same(rows["channel"], {key: used for key, used in b.channels.items() if used}, Claim.BALANCES, "channels")
    for event, sent in h.applications.accepted:
        what = f"{event.kind} of {event.request_id} {event.refund_id}"
        demand(h.oracle.accounted_for(event, sent=sent), Claim.NOTHING_VANISHES, what)


def verify_agrees(h: History) -> None:
    """The product's own check finds nothing either."""
    findings = verify.check(holds=h.world.runtime.holds, ledger=h.world.ledger).findings
    demand(not findings, Claim.BALANCES, f"verify finds {[str(finding) for finding in findings]}")


def _same(found: dict[Any, Any], right: dict[Any, Any], claim: Claim, what: str) -> None:
    if found != right:
        wrong = {key for key in found.keys() | right.keys() if found.get(key) != right.get(key)}
        told = {key: (found.get(key), right.get(key)) for key in wrong}
        demand(False, claim, f"{what} (found, right): {told}")


def _rows(h: History) -> dict[str, dict[Any, Any]]:
    """PostgreSQL's tables, by what they are called here."""
    ask = h.world.sql.execute
    users = ask("select id, quota, used_quota, request_count, status from billing.users")
    tokens = ask("select id, remain_quota, used_quota, status from billing.tokens")
    entries = ask("select kind, entry_id::text, user_id, token_id, quota, held_quota, channel_id, expired"
                  " from billing.ledger_entries where kind in ('consume', 'release')").fetchall()  # fmt: skip
    refunds = ask("select refund_id, request_id::text, quota from billing.refunds")
    dead_letters = ask("select kind, request_id, fingerprint, state from billing.dead_letters")
    channels = ask("select channel_id, shard, used_quota from billing.channel_usage")
    return {
        "user": {user: tuple(rest) for user, *rest in users},
        "token": {token: tuple(rest) for token, *rest in tokens},
        "consume": {e: (u, t, q, held, c) for kind, e, u, t, q, held, c, _ in entries if kind == "consume"},
        "release": {e: (q, expired) for kind, e, _, _, q, _, _, expired in entries if kind == "release"},
        "refund": {refund_id: (request, quota) for refund_id, request, quota in refunds},
        "top_up": dict(ask("select id, quota from billing.top_ups").fetchall()),
        "dead letter": {tuple(key): state for *key, state in dead_letters},
        "channel": {(channel, shard): used for channel, shard, used in channels if used},
    }


def reserve_the_rest(h: History) -> None:
    """Exactly what is available can be reserved, and not one more."""
    for key, (loaded_at,) in zip(KEYS, h.world.fields(KEYS, "loaded_at"), strict=True):
        if loaded_at is not None:  # too old to be believed
            h.accidents._redis("HINCRBY", h.world.account_key(key), "loaded_at", -3_600_000)
    number = 1000
    for user in h.profile.users:
        token = next(token for token, (owner, _, _) in TOKENS.items() if owner == user)
        for amount, right in _wanted(h, user, token):
            number += 1
            wanted = request_id(number, h.dice)
            h.trace.name(wanted, f"last{number}")
            said = _reserve(h, wanted, user, token, amount)
            detail = f"{amount} for user {user}, token {token}: {said}, right is {right}"
            demand(said == right, Claim.ALL_RESERVABLE, detail)
            if said == "held":
                flow = h.world.gateway._refund_quota(None, user, wanted, "")
                h._enter("gateway", flow, does=f"gives {amount} back")
                finish(h)


def _wanted(h: History, user: int, token: int) -> list[tuple[int, str]]:
    row, card = h.books.users[user], h.books.tokens[token]
    if row.status != "enabled":
        return [(1, "UserDisabled")]
    if card.status != "enabled":
        return [(1, "TokenRefused")]
    most = min(row.quota, card.quota) if not card.unlimited else row.quota
    too_much = max(most, 0) + 1
    refused = "InsufficientUserQuota" if row.quota < too_much else "TokenRefused"
    return [(too_much, refused), *([(most, "held")] if most >= 0 else [])]


def _reserve(h: History, wanted: str, user: int, token: int, amount: int) -> str:
    actor = h._enter(
        "gateway", h.world.gateway._reserve(amount, user, token, None, wanted, None, ""), does=f"reserves {amount}"
    )
    finish(h)
    if actor.error is None:
        return "held"
    known = (InsufficientUserQuota, TokenRefused, UserDisabled)
    demand(isinstance(actor.error, Refused) and isinstance(actor.error, known), Claim.ALL_RESERVABLE, str(actor.error))
    return type(actor.error).__name__


def check_incidents(h: History) -> None:
    """What an accident destroyed is on record, and nothing is on record without one."""
    found = h.world.sql.execute("select shard, epoch, kind from billing.incidents").fetchall()
    h.counts["incidents"] += len(found)
    h.restores.check()
    if not h.oracle.accidents and not h.restores.count:
        # What PostgreSQL refused is passed over; booked after all, it looks like an outbox that went back.
        false = [row for row in found if row[2] != "rewind" or not h.counts["refused by PostgreSQL"]]
        demand(not false, Claim.NO_FALSE_ALARM, f"{false}")
    for shard, epoch in sorted(h.accidents.to_be_reported):
        told = any(at == shard and kind != "gap" and later > epoch for at, later, kind in found)
        demand(told, Claim.LOSS_IS_RECORDED, f"shard {shard}, epoch {epoch}; incidents: {found}")
