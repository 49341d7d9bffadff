"""Random histories against a model that knows the right answer: no charge lost, none made twice, nobody overspends.

Every step is one call of the product, or one accident: a worker that stops
between two effects and perhaps goes on much later, Redis emptied or restarted,
a tombstone gone, an answer lost. After each step the counters in Redis are
compared, at the end everything.

    BILLING_TEST_EXAMPLES=5000 pytest tests/property    # other histories each time; default: the same ones
"""

from __future__ import annotations

import os
import secrets
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import psycopg
import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from billing_tasks import ConsumeLog, errors
from billing_tasks.events import Event, Kind, PostedBatch
from billing_tasks.flows import consume, reserve, retry, settle
from billing_tasks.flows.effects import Effect, Enqueue, InLedger, Ring
from billing_tasks.holds.commands import Command, Pipeline
from billing_tasks.ids import new_request_id
from billing_tasks.ledger.rows import LetterState
from tests.conftest import CHANNEL, EMPTY, Billing, MakeBilling
from tests.property.model import OWNERS, SHARDS, SLOTS, UNLIMITED, Account, Filed, Model

EXAMPLES = int(os.environ.get("BILLING_TEST_EXAMPLES", "0"))
PROFILE = settings(
    max_examples=EXAMPLES or 150,
    stateful_step_count=40,
    derandomize=not EXAMPLES,
    database=None,
    deadline=None,
    print_blob=False,
    suppress_health_check=list(HealthCheck),
)
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

    def __init__(self, ledger: Any, machine: History) -> None:
        self._ledger, self._machine = ledger, machine

    def __getattr__(self, name: str) -> Any:
        return getattr(self._ledger, name)

    def post_batch(self, shard: int, batch: list[Event], **cursor: Any) -> PostedBatch:
        answer: PostedBatch = self._ledger.post_batch(shard, batch, **cursor)
        self._machine.booked(batch, [str(outcome) for outcome in answer.outcomes])
        return answer

    def post_refund(self, shard: int, event: Event) -> PostedBatch:
        answer: PostedBatch = self._ledger.post_refund(shard, event)
        self._machine.booked([event], [str(answer.outcomes[0])])
        return answer

    def add_dead_letter(self, **letter: Any) -> Any:
        kept, new = self._ledger.add_dead_letter(**letter)
        self._machine.letters.setdefault(kept.id, kept.state)
        self._machine.kept.add((letter["kind"], letter["request_id"]))
        return kept, new


class Silent:
    """A doorbell that nobody hears: the history itself says when workers come."""

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
    done: bool = False


class History(RuleBasedStateMachine):
    """One random history."""

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
        self.letters: dict[int, LetterState] = {}
        self.kept: set[tuple[str, str]] = set()
        self.workers: list[Worker] = []
        self.reserving: tuple[str, int, Any, Any] | None = None
        self.reading: list[Filed] | None = None
        b.runtime.ledger = Spy(getattr(b.runtime.ledger, "_ledger", b.runtime.ledger), self)  # type: ignore[assignment]
        b.runtime.doorbell = Silent()  # type: ignore[assignment]

    # -- what the ledger booked ---------------------------------------------------------------------------

    def booked(self, batch: list[Event], outcomes: list[str]) -> None:
        for event, outcome in zip(batch, outcomes, strict=True):
            slot = self.slots[event.request_id]
            filed = self._filed(event, slot)
            if event.kind is Kind.REFUND:
                expected = self.model.refund(slot, event.refund_id, None if event.whole else event.quota)
            else:
                expected = self.model.book(str(event.kind), slot, event.quota)
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

    def _may_reserve(self, slot: str) -> bool:
        # The ledger takes a request_id that was released, forgotten and reserved again for one hold with two ends.
        return slot in self.model.holds or slot in self.model.closed or slot not in self.model.ended

    @rule(slot=slots, amount=amounts)
    def reserve(self, slot: str, amount: int) -> None:
        if self._may_reserve(slot):
            expected = self._right_answers(slot, amount)
            self._check_reserved(slot, amount, expected, partial(self._reserve, slot, amount))

    def _reserve(self, slot: str, amount: int) -> Any:
        return self.billing.reserve((SLOTS[slot].user, SLOTS[slot].token), amount, request_id=self.ids[slot])

    @precondition(lambda self: self.reserving is None)
    @rule(slot=slots, amount=amounts)
    def reserve_and_stall_after_reading_postgresql(self, slot: str, amount: int) -> None:
        if not self._may_reserve(slot):
            return
        b, who = self.billing, SLOTS[slot]
        wanted = reserve.Wanted(self.ids[slot], who.user, who.token, amount, 600_000)
        expected = self._right_answers(slot, amount)
        flow = reserve.reserve(wanted, commands=b.runtime.commands, settings=b.settings)
        first = b.runtime.perform(next(flow))
        try:
            effect = flow.send(first)
        except (StopIteration, errors.BillingError) as end:
            self._check_reserved(slot, amount, expected, lambda: _raise(end))
            return
        assert isinstance(effect, InLedger)
        self.reserving = slot, amount, flow, b.runtime.perform(effect)

    @precondition(lambda self: self.reserving is not None)
    @rule()
    def go_on_reserving(self) -> None:
        assert self.reserving is not None
        slot, amount, flow, rows = self.reserving
        self.reserving = None
        if self._may_reserve(slot):
            expected = self._right_answers(slot, amount)
            self._check_reserved(slot, amount, expected, lambda: self._finish(flow, rows))

    def _finish(self, flow: Any, reply: Any) -> Any:
        try:
            effect = flow.send(reply)
        except StopIteration as end:
            return end.value
        return self.billing.runtime.run(_continued(flow, effect))

    def _right_answers(self, slot: str, amount: int) -> set[str]:
        """More than one only while something is booked and not yet settled."""
        m, who = self.model, SLOTS[slot]
        if slot in m.holds:
            return {"again" if m.holds[slot] == amount else "IdempotencyConflict"}
        if slot in m.closed:
            return {"ReservationClosed", "IdempotencyConflict"}  # by the amount it once held
        if OWNERS[who.token] != who.user:
            return {"TokenRefused other_user"} | ({"UserDisabled"} if not m.users[who.user].enabled else set())
        if not m.users[who.user].enabled:
            return {"UserDisabled"}
        if not m.tokens[who.token].enabled:
            return {"TokenRefused disabled"}
        answers = set()
        (user_low, user_high), (token_low, token_high) = m.bounds("user", who.user), m.bounds("token", who.token)
        if who.token in UNLIMITED:
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
        command = next(flow)
        if applied:
            b.runtime.perform(command)
            self.model.consume(slot, quota)
        try:
            b.runtime.run(_continued(flow, flow.throw(errors.Unavailable("no answer"))))
        except (errors.IdempotencyConflict, errors.TokenRefused):
            pass  # what the ledger said was compared by the spy
        self._copies_grow_old(SLOTS[slot].user, SLOTS[slot].token)

    @rule(slot=slots)
    def refund_quota(self, slot: str) -> None:
        m = self.model
        try:
            given = self.billing.bk.refund_quota(user_id=SLOTS[slot].user, request_id=self.ids[slot]).quota
        except errors.ReservationClosed:
            assert m.closed[slot].startswith("consumed")
        else:
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

    # -- settling -----------------------------------------------------------------------------------------

    @rule()
    def settle(self) -> None:
        for shard in range(SHARDS):
            self._work(self._new_worker(shard), effects=10_000)

    @rule(shard=st.integers(0, SHARDS - 1), effects=st.integers(1, 7))
    def start_a_worker_and_stop_it(self, shard: int, effects: int) -> None:
        worker = self._new_worker(shard)
        self._work(worker, effects)
        if not worker.done:
            self.workers.append(worker)

    @precondition(lambda self: self.workers)
    @rule(which=st.integers(0, 3), effects=st.sampled_from([1, 2, 10_000]))
    def let_a_worker_go_on(self, which: int, effects: int) -> None:
        worker = self.workers[which % len(self.workers)]
        self._work(worker, effects)
        if worker.done:
            self.workers.remove(worker)

    def _new_worker(self, shard: int) -> Worker:
        b = self.billing
        flow = settle.drain(
            shard, owner=secrets.token_hex(4), commands=b.runtime.commands, settings=b.settings, now=time.monotonic
        )
        return Worker(shard, flow, next(flow))

    def _work(self, worker: Worker, effects: int) -> None:
        self.billing.redis("DEL", self.billing.runtime.commands.keys.drainer(worker.shard))  # a lease that ran out
        for _ in range(effects):
            reply = self._perform(worker)
            try:
                worker.effect = worker.flow.send(reply)
            except StopIteration:
                worker.done = True
                return

    def _perform(self, worker: Worker) -> Any:
        effect, m = worker.effect, self.model
        if isinstance(effect, Ring | Enqueue):
            return None
        self.reading = worker.read
        reply = self.billing.runtime.perform(effect)
        self.reading = None
        if isinstance(effect, Command) and effect.words[0] == "XRANGE":
            worker.read = m.read(worker.shard, BATCH) if reply else []
            found = [(entry.kind, self.slots[entry.request_id], entry.weight) for entry in reply]
            wanted = [(event.kind, event.slot, event.weight) for event in m.outbox[worker.shard][:BATCH]]
            assert found == wanted, f"the outbox holds {found}, right is {wanted}"
        elif isinstance(effect, Pipeline):
            for event in worker.read:
                if event.refused or event.kind == "conflict":
                    assert (event.kind, self.ids[event.slot]) in self.kept, f"{event} left the outbox without a trace"
            m.settled(worker.shard, worker.read)
        return reply

    @precondition(lambda self: self.letters)
    @rule(which=st.integers(0, 9))
    def retry_a_dead_letter(self, which: int) -> None:
        b, number = self.billing, sorted(self.letters)[which % len(self.letters)]
        flow = retry.attempt(number, who="history", commands=b.runtime.commands, settings=b.settings)
        before = self.letters[number]
        try:
            b.runtime.run(flow)
            self.letters[number] = before if before is LetterState.DISCARDED else LetterState.RESOLVED
        except errors.ChargeNotFound:
            self.letters[number] = LetterState.RETRYING
        except errors.Refused:
            self.letters[number] = LetterState.FAILED

    # -- operators and other programs ---------------------------------------------------------------------

    @rule(user=users, quota=st.sampled_from([1, 300]), own_id=own_ids)
    def top_up(self, user: int, quota: int, own_id: str) -> None:
        self._change("topup", user, quota, own_id, lambda: self.billing.accounts.top_up(user, quota, own_id))

    @rule(user=users, quota=changes, own_id=own_ids)
    def adjust_user(self, user: int, quota: int, own_id: str) -> None:
        self._change("user", user, quota, own_id, lambda: self.billing.accounts.adjust_user(user, quota, own_id))

    @rule(token=tokens, quota=changes, own_id=own_ids)
    def adjust_token(self, token: int, quota: int, own_id: str) -> None:
        self._change("token", token, quota, own_id, lambda: self.billing.accounts.adjust_token(token, quota, own_id))

    def _change(self, kind: str, account: int, quota: int, own_id: str, call: Callable[[], tuple[Any, bool]]) -> None:
        try:
            got = "new" if call()[1] else "again"
        except errors.IdempotencyConflict:
            got = "conflict"
        assert got == self.model.change(kind, account, quota, own_id)

    @rule(which=st.sampled_from(["user", "token"]), account=users, enabled=st.booleans())
    def set_status(self, which: str, account: int, enabled: bool) -> None:
        word = "enabled" if enabled else "disabled"
        if which == "user":
            self.billing.accounts.set_user(account, status=word)  # type: ignore[arg-type]
        else:
            self.billing.accounts.set_token(account, status=word)  # type: ignore[arg-type]
        (self.model.users if which == "user" else self.model.tokens)[account].enabled = enabled

    @precondition(lambda self: not self.workers and self.reserving is None)
    @rule(which=st.sampled_from(["user", "token"]), account=users, quota=changes)
    def edit_in_plain_sql(self, which: str, account: int, quota: int) -> None:
        column = "users set quota = quota" if which == "user" else "tokens set remain_quota = remain_quota"
        self.billing.sql(f"update billing.{column} + %s where id = %s", quota, account)
        (self.model.users if which == "user" else self.model.tokens)[account].quota += quota
        if which == "user":
            self._copies_grow_old(account, None)
        else:
            self._copies_grow_old(OWNERS[account], account)

    # -- accidents ----------------------------------------------------------------------------------------

    @rule()
    def redis_is_emptied(self) -> None:
        self.billing.redis("FLUSHDB")
        self.model.lose_redis()

    @rule(shard=st.integers(0, SHARDS - 1))
    def redis_is_restarted(self, shard: int) -> None:
        """With all its data; the script sees another run_id."""
        self.billing.redis("HSET", self.billing.runtime.commands.keys.meta(shard), "run_id", "0" * 40)
        self.model.epoch += 1

    @rule(slot=slots)
    def a_tombstone_is_forgotten(self, slot: str) -> None:
        if self.model.closed.pop(slot, None):
            keys = self.billing.runtime.commands.keys
            assert self.billing.redis("DEL", keys.hold(SLOTS[slot].user % SHARDS, self.ids[slot])) == 1

    @rule()
    def idle_accounts_leave_redis(self) -> None:
        for key in self._account_keys():
            if self.billing.redis("TTL", key) > 0:
                self.billing.redis("DEL", key)  # if it explained something the counters are off now

    def _copies_grow_old(self, user: int, token: int | None) -> None:
        """More than a minute passes, for one account."""
        keys = self.billing.runtime.commands.keys
        for key in (keys.user(user), *([keys.token(user, token)] if token else [])):
            if self.billing.redis("HEXISTS", key, "loaded_at"):
                self.billing.redis("HSET", key, "loaded_at", 1)

    # -- comparing ----------------------------------------------------------------------------------------

    @invariant()
    def counters_are_right(self) -> None:
        if not hasattr(self, "model"):
            return
        looks = [
            (which, shard, account)
            for shard in range(SHARDS)
            for which, ids in (("user", self.model.users), ("token", self.model.tokens))
            for account in ids
            if which == "token" or account % SHARDS == shard
        ]
        with self.billing.runtime.holds.client.pipeline(transaction=False) as pipe:
            for which, shard, account in looks:
                key = f"{self.billing.runtime.commands.keys.shard(shard)}{which}:{account}"
                pipe.execute_command("HMGET", key, "held", "unposted")
            replies = pipe.execute()
        for (which, shard, account), reply in zip(looks, replies, strict=True):
            seen = [int(number or 0) for number in reply]
            right = [self.model.held(which, shard, account), self.model.unposted(which, shard, account)]
            assert seen == right, f"{which} {account}: held, unposted are {seen} in Redis, right is {right}"

    def teardown(self) -> None:
        if not hasattr(self, "model"):
            return
        b, m = self.billing, self.model
        self.workers.clear()
        self.settle()
        self.counters_are_right()
        for user, row in m.users.items():
            found = b.accounts.user(user)
            assert (found.quota, found.used_quota, found.request_count) == (row.quota, row.used, row.requests)
            assert b.available(user) == row.quota - m.held("user", user % SHARDS, user)
        for number, row in m.tokens.items():
            token = b.accounts.token(number)
            assert (token.remain_quota, token.used_quota) == (row.quota, row.used)
        for slot, request_id in self.ids.items():
            booked = {(e.kind, e.quota) for e in b.runtime.ledger.entries_of(request_id) if e.kind != "refund"}
            right = {("consume", m.charges.get(slot)), ("release", m.releases.get(slot))}
            assert booked == {(kind, quota) for kind, quota in right if quota is not None}
        assert {letter.id: letter.state for letter in b.runtime.ledger.dead_letters()} == self.letters
        assert [str(finding) for finding in b.verify().findings] == []

    # -- small things -------------------------------------------------------------------------------------

    def _log(self, slot: str, quota: int) -> ConsumeLog:
        who = SLOTS[slot]
        return ConsumeLog(
            user_id=who.user, token_id=who.token, channel_id=CHANNEL, quota=quota, request_id=self.ids[slot]
        )

    def _account_keys(self) -> list[str]:
        keys = self.billing.runtime.commands.keys
        return [keys.user(user) for user in self.model.users] + [
            f"{keys.shard(shard)}token:{token}" for token in OWNERS for shard in range(SHARDS)
        ]


def _continued(flow: Any, effect: Effect) -> Any:
    """A flow that was begun elsewhere, as a flow of its own: next() gives the effect it waits for."""
    while True:
        try:
            reply = yield effect
        except errors.BillingError as exc:
            effect_or_end = _step(flow.throw, exc)
        else:
            effect_or_end = _step(flow.send, reply)
        if isinstance(effect_or_end, StopIteration):
            return effect_or_end.value
        effect = effect_or_end


def _step(go: Callable[[Any], Effect], value: Any) -> Any:
    try:
        return go(value)
    except StopIteration as end:
        return end


def _raise(end: BaseException) -> Any:
    if isinstance(end, StopIteration):
        return end.value
    raise end


@pytest.fixture
def history_billing(make_billing: MakeBilling) -> Billing:
    """Two shards, small batches, and no second of grace for an old copy that refuses."""
    return make_billing(shards=SHARDS, batch_size=BATCH, refusal_fresh_seconds=0)


def test_any_history_of_requests_and_accidents_ends_with_the_right_books(history_billing: Billing) -> None:
    class Histories(History):
        billing = history_billing

    run_state_machine_as_test(Histories, settings=PROFILE)
