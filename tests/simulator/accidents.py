"""Time that passes and servers that forget. What Redis's clock would do in hours is done by hand."""

from __future__ import annotations

from dataclasses import dataclass, field
from random import Random
from typing import Any

from billing_tasks.broker import names
from billing_tasks.broker.decode import consume_log_from
from billing_tasks.holds.commands import Command
from billing_tasks.model import events
from tests.simulator.books import Key
from tests.simulator.broker import Broker
from tests.simulator.oracle import Oracle, identity
from tests.simulator.shard import Filed, Shard
from tests.simulator.world import ANOTHER_RUN, SHARDS, TOKENS, USERS, World

KEYS: list[Key] = [*(("user", user) for user in USERS), *(("token", token) for token in TOKENS)]
#: Between the settings' refusal_fresh_seconds and fresh_seconds, and beyond both.
_OLD_MS = (60_000, 3_600_000)
_AHEAD_MS = 10 * 365 * 86_400_000


#: shard, epoch, number
Number = tuple[int, int, int]


@dataclass
class Saved:
    """A file of Redis, and what the oracle knew when it was written."""

    keys: list[tuple[bytes, bytes, int]]
    shards: list[Shard]


@dataclass(frozen=True)
class Gone:
    """An event that an accident took out of an outbox, booked or not; `known`: PostgreSQL had heard of its number."""

    filed: Filed
    known: bool


@dataclass
class Accidents:
    """What goes wrong in one history, beside what goes wrong with single effects."""

    world: World
    dice: Random
    oracle: Oracle
    broker: Broker
    saved: Saved | None = None
    #: outboxes that lost something PostgreSQL could have known of: shard, epoch
    to_be_reported: set[tuple[int, int]] = field(default_factory=set)
    gone: dict[Number, Gone] = field(default_factory=dict)

    # -- time ---------------------------------------------------------------------------------------------

    def holds_come_due(self) -> str:
        """Some or all of them."""
        open_holds = [(at, request) for at, shard in enumerate(self.oracle.shards) for request in shard.due]
        selected = self.dice.sample(open_holds, self.dice.randint(min(1, len(open_holds)), len(open_holds)))
        for at, request in selected:
            self._redis("ZADD", self.world.commands.keys.due(at), 1, request)
            self.oracle.shards[at].due[request] = True
            self.oracle.shards[at].ahead.discard(request)
        return f"come due: {[request for _, request in selected]}"

    def lease_runs_out(self) -> str:
        at = self.dice.randrange(SHARDS)
        self._redis("DEL", self.world.commands.keys.drainer(at))
        self.oracle.shards[at].drainer = None
        if self.dice.random() < 0.7:  # and a worker is called in its place
            self.broker.ring(at, "")
        return f"the lease of shard {at} runs out"

    def doorbell_falls_silent(self) -> str:
        at = self.dice.randrange(SHARDS)
        self._redis("DEL", self.world.commands.keys.doorbell(at))
        self.oracle.shards[at].doorbell = False
        return f"the doorbell of shard {at} falls silent"

    def tombstone_is_forgotten(self) -> str:
        at = self.dice.randrange(SHARDS)
        shard = self.oracle.shards[at]
        closed = [request for request, hold in shard.holds.items() if hold.state != "held"]
        if closed:
            request = self.dice.choice(closed)
            self._redis("DEL", self.world.commands.keys.hold(at, request))
            del shard.holds[request]
            return f"the tombstone of {request} is forgotten"
        return "no tombstone to forget"

    def cached_accounts_grow_old(self) -> str:
        age = self.dice.choice(_OLD_MS)
        keys = self.dice.sample(KEYS, self.dice.randint(1, len(KEYS)))
        for key, (loaded_at,) in zip(keys, self.world.fields(keys, "loaded_at"), strict=True):
            if loaded_at is not None:
                self._redis("HINCRBY", self.world.account_key(key), "loaded_at", -age)
        return f"cached accounts grow {age} ms older: {keys}"

    def clock_had_run_ahead(self) -> str:
        """By ten years, and was set right: what was dated meanwhile is of the future."""
        if self.dice.random() < 0.5:
            keys = self.dice.sample(KEYS, self.dice.randint(1, len(KEYS)))
            for key, (loaded_at,) in zip(keys, self.world.fields(keys, "loaded_at"), strict=True):
                if loaded_at is not None:
                    self._redis("HINCRBY", self.world.account_key(key), "loaded_at", _AHEAD_MS)
            return f"cached accounts are of the future: {keys}"
        open_holds = [(at, request) for at, shard in enumerate(self.oracle.shards) for request in shard.due]
        selected = self.dice.sample(open_holds, min(2, len(open_holds)))
        for at, request in selected:
            due = self.world.commands.keys.due(at)
            self._redis("ZADD", due, self.world.send(self.world.commands.server_time()) + _AHEAD_MS, request)
            self.oracle.shards[at].due[request] = False
            self.oracle.shards[at].ahead.add(request)
        return f"due in ten years: {[request for _, request in selected]}"

    def dated_ahead(self) -> bool:
        """Whether something is left that a clock dated which had run ahead, and that counts as loaded."""
        loading = {self.world.loading(at) for at in range(SHARDS)}
        accounts = any(str(seen["loaded_epoch"]) in loading and seen["age_ms"] < 0 for seen in self.world.look(KEYS))
        return accounts or any(shard.dated_ahead for shard in self.oracle.shards)

    def idle_accounts_leave(self) -> str:
        """An hour later; an actor that was told the time before is late, and no task runs that long."""
        gone = []
        for key in KEYS:
            name = self.world.account_key(key)
            if self._redis("TTL", name) > 0:
                self._redis("DEL", name)  # if it explained something the counters are off now
                self.oracle.newest.pop(key, None)
                gone.append(key)
        return f"an hour passes, these leave Redis: {gone}"

    def dead_letters_come_due(self) -> str:
        self.world.sql.execute(
            "update billing.dead_letters set next_attempt_at = now() - interval '1 second' where id in"
            " (select id from billing.dead_letters where next_attempt_at is not null for update skip locked)"
        )
        return "dead letters come due"

    # -- Redis forgets ------------------------------------------------------------------------------------

    def redis_is_emptied(self) -> str:
        shards = [Shard() for _ in range(SHARDS)]
        lost = self._before(shards)
        self._redis("FLUSHDB")
        return f"Redis is emptied; lost: {lost}"

    def redis_is_restarted(self) -> str:
        """With all its data; the scripts see another run_id."""
        lost = self._before([shard.copy() for shard in self.oracle.shards])
        self._new_run_id()
        return f"Redis is restarted; lost: {lost}"

    def redis_is_saved(self) -> str:
        names = sorted(self._redis("KEYS", "*"))
        self.saved = Saved(
            [(name, self._redis("DUMP", name), max(0, self._redis("PTTL", name))) for name in names],
            [shard.copy() for shard in self.oracle.shards],
        )
        return "Redis writes a file"

    def redis_comes_back_older(self) -> str:
        """A file that misses the last writes, or a replica that does."""
        if self.saved is None:
            return "there is no file of Redis"
        lost = self._before([shard.copy() for shard in self.saved.shards])
        self._redis("FLUSHDB")
        for name, content, ttl_ms in self.saved.keys:
            self._redis("RESTORE", name, ttl_ms, content)
        self._new_run_id()
        return f"Redis comes back as it was saved; lost: {lost}"

    def redis_is_written_by_hand(self, *, being_repaired: bool) -> str:
        """What only an operator or a bug can do: counters too high, a hold taken out of the list of what is due.

        A repair counts holds by that list: one that is taken out between its finding and its repair is not counted.
        """
        keys = self.world.commands.keys
        if self.dice.random() < 0.4 and not being_repaired:
            at = self.dice.randrange(SHARDS)
            shard = self.oracle.shards[at]
            listed = [request for request in shard.due if shard.holds[request].state == "held"]
            if not listed:
                return "nothing to break"
            request = self.dice.choice(listed)
            self._redis("ZREM", keys.due(at), request)
            del shard.due[request]
            return f"{request} is taken out of the list of what is due"
        key, field, by = self.dice.choice(KEYS), self.dice.choice(("held", "unposted")), self.dice.choice((1, 5))
        row = self.oracle.books.account(key)
        shard = self.oracle.shard_of(key[1] if row.owner is None else row.owner)
        self._redis("HINCRBY", self.world.account_key(key), field, by)
        self._redis("PERSIST", self.world.account_key(key))
        held, unposted = shard.damage.get(key, (0, 0))
        shard.damage[key] = (held + by, unposted) if field == "held" else (held, unposted + by)
        return f"{field} of {key} becomes {by} more"

    def broker_is_emptied(self) -> str:
        """Requests that only a message told of are lost; everything else is found again."""
        for message in self.broker.messages:
            if message.task == names.CONSUME and "dead_letter" not in message.kwargs:
                self.oracle.destroyed.add(identity(events.of_log(consume_log_from(message.kwargs))))
        count = len(self.broker.messages)
        self.broker.messages.clear()
        return f"the broker loses {count} messages"

    def _before(self, shards: list[Shard]) -> list[str]:
        """Right before Redis changes: which events will be missing, and does PostgreSQL know their outbox."""
        self.read_outboxes()
        gone = self.oracle.redis_became(shards)
        cursors = self.world.sql.execute("select shard, epoch, seen from billing.outbox_cursors").fetchall()
        known = {(at, epoch): seen for at, epoch, seen in cursors}
        for at, filed in gone:
            _, epoch, seq = number = number_of(at, filed)
            self.gone[number] = Gone(filed, seq <= known.get((at, epoch), 0))
            if (at, epoch) in known and not self.oracle.is_recorded(filed):
                self.to_be_reported.add((at, epoch))
        return [filed.what for _, filed in gone]

    def read_outboxes(self) -> None:
        """The oracle's outboxes are the real ones, to the last event."""
        for at in range(SHARDS):
            command = self.world.commands.read_outbox(at, count=100_000)
            self.oracle.performed(command, self.world.send(command))

    def _new_run_id(self) -> None:
        """Another run; or the same one, of a server that was demoted and promoted again meanwhile."""
        changed = self.dice.choice(("run_id", "replid"))
        for at in range(SHARDS):
            meta = self.world.commands.keys.meta(at)
            if self._redis("EXISTS", meta):
                self._redis("HSET", meta, changed, ANOTHER_RUN)

    def _redis(self, *words: Any) -> Any:
        return self.world.send(Command(words, lambda reply: reply))


def number_of(at: int, filed: Filed) -> Number:
    """Under which PostgreSQL accounts for it: `at` is its shard."""
    assert filed.entry_id is not None
    epoch, seq = filed.entry_id.split("-")
    return at, int(epoch), int(seq)
