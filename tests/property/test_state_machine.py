"""Random histories against a model that knows the right answer: no charge lost, none made twice, no account overspent.

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
from typing import Any

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from billing_tasks import errors
from billing_tasks.flows.dead_letters import retry
from billing_tasks.flows.effects import Enqueue, Ring
from billing_tasks.flows.settlement import settle
from billing_tasks.holds.commands import Command, Commands, Pipeline
from billing_tasks.holds.replies import Available
from billing_tasks.ledger.rows import DeadLetterState
from tests.conftest import Billing, MakeBilling
from tests.flows.settlement.turns import in_turns
from tests.property.machine import (
    BATCH,
    Machine,
    Worker,
    changes,
    own_ids,
    slots,
    tokens,
    users,
)
from tests.property.model import OWNERS, SHARDS, SLOTS

EXAMPLES = int(os.environ.get("BILLING_TEST_EXAMPLES", "0"))
PROFILE = settings(
    max_examples=EXAMPLES or 50,
    stateful_step_count=40,
    derandomize=not EXAMPLES,
    database=None,
    deadline=None,
    print_blob=False,
    report_multiple_bugs=False,
    suppress_health_check=list(HealthCheck),
)


MINUTE_MS = 60_000


class History(Machine):
    """One random history."""

    # -- settling -----------------------------------------------------------------------------------------

    @rule()
    def settle(self) -> None:
        for shard in range(SHARDS):
            self._work(self._new_worker(shard), effects=10_000)

    # After two effects the events are read, after three they are booked and still in the outbox.
    @rule(shard=st.integers(0, SHARDS - 1), effects=st.sampled_from([3, 2, 1, 4, 5, 6, 7]))
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
        drain = settle.drain(
            shard, owner=secrets.token_hex(4), commands=b.runtime.commands, settings=b.settings, now=time.monotonic
        )
        flow = in_turns(drain, lambda: True)
        return Worker(shard, flow, flow.send(None))

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
            behind = worker.before = worker.read if effect.words[2] != "-" else []
            outbox = [event for event in m.outbox[worker.shard] if event not in behind]
            worker.read = m.read(worker.shard, BATCH, behind) if reply else []
            found = [(entry.kind, self.slots[entry.request_id], entry.weight) for entry in reply]
            wanted = [(event.kind, event.slot, event.weight) for event in outbox[:BATCH]]
            assert found == wanted, f"the outbox holds {found}, right is {wanted}"
        elif isinstance(effect, Pipeline):
            leaving = worker.before or worker.read
            worker.before = []
            for event in leaving:
                if event.refused or event.kind == "conflict":
                    assert (event.kind, self.ids[event.slot]) in self.kept, f"{event} left the outbox without a trace"
            m.settled(worker.shard, leaving)
        return reply

    @precondition(lambda self: self.dead_letters)
    @rule(which=st.integers(0, 9))
    def retry_a_dead_letter(self, which: int) -> None:
        b, number = self.billing, sorted(self.dead_letters)[which % len(self.dead_letters)]
        flow = retry.attempt(number, actor="history", commands=b.runtime.commands, settings=b.settings)
        before = self.dead_letters[number]
        try:
            b.runtime.run(flow)
            self.dead_letters[number] = before if before is DeadLetterState.DISCARDED else DeadLetterState.RESOLVED
        except errors.ChargeNotFound:
            self.dead_letters[number] = DeadLetterState.RETRYING
        except errors.Refused:
            self.dead_letters[number] = DeadLetterState.FAILED

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
            self._cached_accounts_grow_old(account, None)
        else:
            self._cached_accounts_grow_old(OWNERS[account], account)

    # -- accidents ----------------------------------------------------------------------------------------

    @rule()
    def redis_is_emptied(self) -> None:
        self.billing.redis("FLUSHDB")
        self.model.restart_redis(None)

    @rule()
    def redis_is_restarted(self) -> None:
        """With all its data; the scripts see another run_id."""
        self._new_run_id()
        self.model.restart_redis(self.model.save_redis())

    @rule()
    def redis_is_saved(self) -> None:
        names = self.billing.redis("KEYS", "*")
        file = [(name, self.billing.redis("DUMP", name), max(0, self.billing.redis("PTTL", name))) for name in names]
        self.saved = self.model.save_redis(), file

    @precondition(lambda self: self.saved is not None)
    @rule()
    def redis_comes_back_as_it_was_saved(self) -> None:
        """A restart with an older file: holds and events that were settled since are there again."""
        assert self.saved is not None
        saved, file = self.saved
        self.billing.redis("FLUSHDB")
        for name, content, ttl_ms in file:
            self.billing.redis("RESTORE", name, ttl_ms, content)
        self._new_run_id()
        self.model.restart_redis(saved)

    def _new_run_id(self) -> None:
        keys = self.billing.runtime.commands.keys
        for shard in range(SHARDS):
            if self.billing.redis("EXISTS", keys.meta(shard)):
                self.billing.redis("HSET", keys.meta(shard), "run_id", "0" * 40)

    @rule(slot=slots)
    def a_tombstone_is_forgotten(self, slot: str) -> None:
        if self.model.closed.pop(slot, None):
            keys = self.billing.runtime.commands.keys
            assert self.billing.redis("DEL", keys.hold(SLOTS[slot].user % SHARDS, self.ids[slot])) == 1

    @rule()
    def idle_accounts_leave_redis(self) -> None:
        for _, _, _, key in self._accounts():
            if self.billing.redis("TTL", key) > 0:
                self.billing.redis("DEL", key)  # if it explained something the counters are off now

    def _cached_accounts_grow_old(self, user: int, token: int | None) -> None:
        """More than a minute passes, for one account."""
        keys = self.billing.runtime.commands.keys
        for key in (keys.user(keys.shard_of(user), user), *([keys.token(keys.shard_of(user), token)] if token else [])):
            if self.billing.redis("HEXISTS", key, "loaded_at"):
                self.billing.redis("HSET", key, "loaded_at", 1)

    # -- comparing ----------------------------------------------------------------------------------------

    @invariant()
    def redis_is_right(self) -> None:
        """Counters equal what explains them, and no cached account in use promises more than there is."""
        if not hasattr(self, "model"):
            return
        m, holds, accounts = self.model, self.billing.runtime.holds, self._accounts()
        looks = [
            holds.commands.balance(user_id=account) if which == "user" else _token_in(shard, account, holds.commands)
            for which, shard, account, _ in accounts
        ]
        ttls = [Command(("TTL", key), int) for *_, key in accounts]
        seen = holds.send_all(Pipeline((*looks, *ttls)))
        for (which, shard, account, _), cached, ttl in zip(accounts, seen, seen[len(accounts) :], strict=False):
            right = m.held(which, shard, account), m.unposted(which, shard, account)
            found = cached.held, cached.unposted
            assert found == right, f"{which} {account}: held, unposted are {found} in Redis, right is {right}"
            assert right == (0, 0) or ttl == -1, f"{which} {account}: {right} leave Redis in {ttl} s"
            owner = account if which == "user" else OWNERS[account]
            if cached.loaded and cached.age_ms < MINUTE_MS and owner % SHARDS == shard:
                most = m.bounds(which, account)[1]
                assert cached.available <= most, (
                    f"{which} {account}: {cached.available} can be reserved, right is {most}"
                )

    def teardown(self) -> None:
        if not hasattr(self, "model"):
            return
        b, m = self.billing, self.model
        self.workers.clear()
        self.settle()
        self.redis_is_right()
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
        assert {
            dead_letter.id: dead_letter.state for dead_letter in b.runtime.ledger.dead_letters()
        } == self.dead_letters
        assert [str(finding) for finding in b.verify().findings] == []


def _token_in(shard: int, token: int, commands: Commands) -> Command[Available]:
    return commands.balance(user_id=shard, token_id=token)  # shards are user ids modulo SHARDS


@pytest.fixture
def history_billing(make_billing: MakeBilling) -> Billing:
    """Two shards, small batches, and no second of grace for an old cached account that refuses."""
    return make_billing(shards=SHARDS, batch_size=BATCH, refusal_fresh_seconds=0)


@pytest.mark.timeout(900)  # finding the shortest history that fails takes its time; passing takes seconds
@pytest.mark.timeout(900)
def test_any_history_of_requests_and_accidents_ends_with_the_right_books(history_billing: Billing) -> None:
    class Histories(History):
        billing = history_billing

    run_state_machine_as_test(Histories, settings=PROFILE)
