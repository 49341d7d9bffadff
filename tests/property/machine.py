"""The state machine's base: servers, model, what the ledger books, reserving and closing."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import msgspec
import psycopg
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    precondition,
    rule,
)

from billing_tasks import ConsumeLog, errors
from billing_tasks.flows.effects import Effect, InLedger
from billing_tasks.flows.requests import consume, reserve
from billing_tasks.ledger.rows import DeadLetterState
from billing_tasks.model.events import Event, Kind
from billing_tasks.model.ids import new_request_id
from billing_tasks.model.posting import OutboxPart, PostedBatch
from tests.conftest import CHANNEL, EMPTY, Billing
from tests.property.model import OWNERS, SHARDS, SLOTS, UNLIMITED, Account, Filed, Model, Saved

#: So small that most events need more than one batch.
BATCH = 4

slots = st.sampled_from(sorted(SLOTS))
users = st.sampled_from([1, 2, 3])
tokens = st.sampled_from(sorted(OWNERS))
amounts = st.sampled_from([0, 1, 40, 100, 250])
changes = st.sampled_from([-300, -1, 1, 500])
own_ids = st.sampled_from(["first", "second"])


class Spy:
    """The ledger, watched: whatever the real one books, the model books, and both must answer alike."""

    def __init__(self, ledger: Any, machine: Machine) -> None:
        self._ledger, self._machine = ledger, machine

    def __getattr__(self, name: str) -> Any:
        return getattr(self._ledger, name)

    def post_batch(self, shard: int, batch: list[Event]) -> PostedBatch:
        return self.post_outboxes(batch, [OutboxPart(shard)])

    def post_outboxes(self, batch: list[Event], parts: list[OutboxPart]) -> PostedBatch:
        answer: PostedBatch = self._ledger.post_outboxes(batch, parts)
        self._machine.booked(batch, [str(outcome) for outcome in answer.outcomes])
        return answer

    def post_refund(self, shard: int, event: Event) -> PostedBatch:
        answer: PostedBatch = self._ledger.post_refund(shard, event)
        self._machine.booked([event], [str(answer.outcomes[0])])
        return answer

    def book_dead_letter(self, number: int, shard: int, event: Event, verdict: Any) -> Any:
        dead_letter, batch = self._ledger.book_dead_letter(number, shard, event, verdict)
        if batch is not None:
            if event.kind is Kind.CONSUME:  # nothing was set aside for it any more
                event = msgspec.structs.replace(event, held_quota=0)
            self._machine.booked([event], [str(batch.outcomes[0])])
        return dead_letter, batch

    def add_dead_letter(self, **dead_letter: Any) -> Any:
        kept, new = self._ledger.add_dead_letter(**dead_letter)
        self._machine.dead_letters.setdefault(kept.id, kept.state)
        self._machine.kept.add((dead_letter["kind"], dead_letter["request_id"]))
        return kept, new


class Silent:
    """A doorbell that calls no worker: the history itself says when workers come."""

    def ring(self, shard: int, request_id: str) -> None:
        pass

    def enqueue(self, task: str, task_id: str, kwargs: dict[str, Any]) -> None:
        pass

    def close(self) -> None:
        pass


@dataclass
class Worker:
    """A drainer that can be stopped before any of its effects."""

    shard: int
    flow: Any
    effect: Effect
    read: list[Filed] = field(default_factory=list)
    before: list[Filed] = field(default_factory=list)  # read before that, and still in the outbox
    done: bool = False


class Machine(RuleBasedStateMachine):
    """Requests; test_state_machine.py adds workers, operators and accidents."""

    billing: Billing  # set by the test

    @initialize()
    def empty_servers(self) -> None:
        b = self.billing
        b.runtime.holds.client.flushdb()
        with psycopg.connect(b.settings.database_url, autocommit=True) as connection:
            connection.execute(EMPTY)
        self.model = Model(
            users={1: Account(500), 2: Account(300), 3: Account(200)},
            tokens={1: Account(400), 2: Account(0), 3: Account(1000), 4: Account(150)},
        )
        for user, row in self.model.users.items():
            b.accounts.create_user(user, quota=row.quota)
        for token, row in self.model.tokens.items():
            b.accounts.create_token(OWNERS[token], token, quota=row.quota, unlimited=token in UNLIMITED)
        self.ids = {slot: new_request_id() for slot in SLOTS}
        self.slots = {request_id: slot for slot, request_id in self.ids.items()}
        self.dead_letters: dict[int, DeadLetterState] = {}
        self.kept: set[tuple[str, str]] = set()
        self.workers: list[Worker] = []
        self.reserving: tuple[str, int, Any, Any] | None = None
        self.reading: list[Filed] | None = None
        self.saved: tuple[Saved, list[tuple[bytes, bytes, int]]] | None = None
        b.runtime.ledger = Spy(getattr(b.runtime.ledger, "_ledger", b.runtime.ledger), self)  # type: ignore[assignment]
        b.runtime.doorbell = Silent()  # type: ignore[assignment]

    # -- what the ledger booked ---------------------------------------------------------------------------

    def booked(self, batch: list[Event], outcomes: list[str]) -> None:
        released = {event.request_id for event in batch if event.kind is Kind.RELEASE}
        for event, outcome in zip(batch, outcomes, strict=True):
            slot = self.slots[event.request_id]
            filed = self._filed(event, slot)
            if event.kind is Kind.REFUND:
                expected = self.model.refund(slot, event.refund_id, None if event.whole else event.quota)
            else:
                held = 0 if event.request_id in released else event.held_quota
                expected = self.model.book(str(event.kind), slot, event.quota, held)
            assert outcome == expected, f"{event.kind} of {slot}: the ledger says {outcome}, right is {expected}"
            if filed is not None:
                filed.refused = outcome not in ("posted", "duplicate")

    def _filed(self, event: Event, slot: str) -> Filed | None:
        """The outbox entry that a worker is booking; None if the event came another way."""
        if self.reading is None:
            return None
        for filed in self.reading:
            if filed.kind == event.kind and filed.slot == slot and filed.refund_id == event.refund_id:
                amounts_of = {"consume": (filed.weight, filed.held), "release": (filed.held, 0)}
                if amounts_of.get(filed.kind, (event.quota, 0)) == (event.quota, event.held_quota):
                    return filed
        raise AssertionError(f"a worker books {event}, which it did not read from the outbox")

    # -- reserving ----------------------------------------------------------------------------------------

    @rule(slot=slots, amount=amounts)
    def reserve(self, slot: str, amount: int) -> None:
        expected = self._right_answers(slot, amount)
        self._check_reserved(slot, amount, expected, partial(self._reserve, slot, amount))

    def _reserve(self, slot: str, amount: int) -> Any:
        return self.billing.reserve((SLOTS[slot].user, SLOTS[slot].token), amount, request_id=self.ids[slot])

    @precondition(lambda self: self.reserving is None)
    @rule(slot=slots, amount=amounts)
    def reserve_and_stall_after_reading_postgresql(self, slot: str, amount: int) -> None:
        b, actor = self.billing, SLOTS[slot]
        wanted = reserve.Wanted(self.ids[slot], actor.user, actor.token, amount, 600_000)
        expected = self._right_answers(slot, amount)
        flow = reserve.reserve(wanted, commands=b.runtime.commands, settings=b.settings)
        first = b.runtime.perform(flow.send(None))
        try:
            effect = flow.send(first)
        except StopIteration as end:
            done = end.value
            self._check_reserved(slot, amount, expected, lambda: done)
            return
        except errors.BillingError as exc:
            self._check_reserved(slot, amount, expected, partial(raise_again, exc))
            return
        assert isinstance(effect, InLedger)
        self.reserving = slot, amount, flow, b.runtime.perform(effect)

    @precondition(lambda self: self.reserving is not None)
    @rule()
    def go_on_reserving(self) -> None:
        assert self.reserving is not None
        slot, amount, flow, rows = self.reserving
        self.reserving = None
        expected = self._right_answers(slot, amount)
        self._check_reserved(slot, amount, expected, lambda: self._finish(flow, rows))

    def _finish(self, flow: Any, reply: Any) -> Any:
        try:
            effect = flow.send(reply)
        except StopIteration as end:
            return end.value
        return self.billing.runtime.run(continued(flow, effect))

    def _right_answers(self, slot: str, amount: int) -> set[str]:
        """More than one only while something is booked and not yet settled."""
        m, actor = self.model, SLOTS[slot]
        if slot in m.holds:
            return {"again" if m.holds[slot] == amount else "IdempotencyConflict"}
        if slot in m.closed:
            return {"ReservationClosed", "IdempotencyConflict"}  # by the amount it once held
        if OWNERS[actor.token] != actor.user:
            return {"TokenRefused other_user"} | ({"UserDisabled"} if not m.users[actor.user].enabled else set())
        if not m.users[actor.user].enabled:
            return {"UserDisabled"}
        if not m.tokens[actor.token].enabled:
            return {"TokenRefused disabled"}
        answers = set()
        (user_low, user_high), (token_low, token_high) = m.bounds("user", actor.user), m.bounds("token", actor.token)
        if actor.token in UNLIMITED:
            token_low = token_high = amount
        if amount > user_low:
            answers.add("InsufficientUserQuota")
        if amount <= user_high and amount > token_low:
            answers.add("TokenRefused quota")
        if amount <= user_high and amount <= token_high:
            answers.add("held")
        return answers

    def _check_reserved(self, slot: str, amount: int, expected: set[str], call: Callable[[], Any]) -> None:
        try:
            done = call()
        except errors.Refused as exc:
            reason = f" {exc.reason}" if isinstance(exc, errors.TokenRefused) else ""
            got = type(exc).__name__ + reason
        else:
            got = "again" if done.again else "held"
            self.model.holds[slot] = amount
        assert got in expected, f"reserving {amount} for {slot}: {got}, right is {' or '.join(sorted(expected))}"

    # -- closing ------------------------------------------------------------------------------------------

    @rule(slot=slots, quota=amounts)
    def consume(self, slot: str, quota: int) -> None:
        try:
            receipt = self.billing.bk.consume(self._log(slot, quota))
            got = "again" if receipt.again else "late" if receipt.late else "charged"
        except errors.IdempotencyConflict:
            got = "conflict"
        assert got == self.model.consume(slot, quota)

    @precondition(lambda self: not self.workers and self.reserving is None)
    @rule(slot=slots, quota=amounts, applied=st.booleans())
    def consume_while_redis_does_not_answer(self, slot: str, quota: int, applied: bool) -> None:
        """Perhaps it applied the command all the same. The usage goes straight into the ledger."""
        b = self.billing
        flow = consume.consume(self._log(slot, quota), commands=b.runtime.commands)
        command = flow.send(None)
        if applied:
            b.runtime.perform(command)
            self.model.consume(slot, quota)
        # What the ledger said was compared by the spy.
        with suppress(errors.IdempotencyConflict, errors.TokenRefused):
            b.runtime.run(continued(flow, flow.throw(errors.Unavailable("no answer"))))
        self._cached_accounts_grow_old(SLOTS[slot].user, SLOTS[slot].token)

    @rule(slot=slots)
    def refund_quota(self, slot: str) -> None:
        m = self.model
        try:
            given = self.billing.bk.refund_quota(user_id=SLOTS[slot].user, request_id=self.ids[slot]).quota
        except errors.ReservationClosed:
            assert m.closed[slot].startswith("consumed")
        else:
            assert not m.closed.get(slot, "").startswith("consumed"), "a charge is not released as a hold"
            assert given == (m.close(slot, "released") if slot in m.holds else 0)

    @rule(slot=slots, refund_id=own_ids, amount=st.sampled_from([None, 1, 40, 100]))
    def refund_charge(self, slot: str, refund_id: str, amount: int | None) -> None:
        self.billing.bk.refund_charge(
            user_id=SLOTS[slot].user, request_id=self.ids[slot], refund_id=refund_id, quota=amount
        )
        self.model.file(Filed("refund", slot, refund_id=refund_id, amount=amount))

    @rule(slot=slots)
    def renew(self, slot: str) -> None:
        reservation = self.billing.runtime.commands.renew(
            user_id=SLOTS[slot].user, request_id=self.ids[slot], ttl_ms=600_000
        )
        outcome, _ = self.billing.runtime.holds.send(reservation)
        closed = "HOLD_CLOSED" if slot in self.model.closed else "NO_HOLD"
        assert outcome == ("RENEWED" if slot in self.model.holds else closed)

    @rule(slot=slots, renewed=st.booleans())
    def expire(self, slot: str, renewed: bool) -> None:
        if slot in self.model.holds:
            keys, shard = self.billing.runtime.commands.keys, SLOTS[slot].user % SHARDS
            self.billing.redis("ZADD", keys.due(shard), 1, self.ids[slot])
            if renewed:
                self.renew(slot)
            else:
                self.model.close(slot, "expired")
            assert self.billing.expire() == (0 if renewed else 1)

    # -- small things -------------------------------------------------------------------------------------

    def _log(self, slot: str, quota: int) -> ConsumeLog:
        actor = SLOTS[slot]
        return ConsumeLog(
            user_id=actor.user, token_id=actor.token, channel_id=CHANNEL, quota=quota, request_id=self.ids[slot]
        )

    def _accounts(self) -> list[tuple[str, int, int, str]]:
        """which, shard, id and key of every account that Redis may hold."""
        keys = self.billing.runtime.commands.keys
        return [("user", user % SHARDS, user, keys.user(keys.shard_of(user), user)) for user in self.model.users] + [
            ("token", shard, token, keys.token(shard, token)) for token in OWNERS for shard in range(SHARDS)
        ]


def continued(flow: Any, effect: Effect) -> Any:
    """A flow that was begun elsewhere, as a flow of its own: next() gives the effect it waits for."""
    while True:
        try:
            reply = yield effect
        except errors.BillingError as exc:
            effect_or_end = step(flow.throw, exc)
        else:
            effect_or_end = step(flow.send, reply)
        if isinstance(effect_or_end, StopIteration):
            return effect_or_end.value
        effect = effect_or_end


def step(go: Callable[[Any], Effect], value: Any) -> Any:
    try:
        return go(value)
    except StopIteration as end:
        return end


def raise_again(end: BaseException) -> Any:
    if isinstance(end, StopIteration):
        return end.value
    raise end
