"""One history: a seed decides which actor takes the next step, what goes wrong with it, and when servers fail."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

from billing_tasks.errors import InvalidRequest, Refused, Unavailable
from billing_tasks.flows.audit import reconcile, verify
from billing_tasks.flows.requests import expire
from billing_tasks.model.events import Event
from tests.simulator import workers
from tests.simulator.accidents import KEYS, Accidents
from tests.simulator.actors import Actor
from tests.simulator.books import Account
from tests.simulator.claims import Claim, demand
from tests.simulator.gateways import Applications, Request
from tests.simulator.oracle import identity
from tests.simulator.performing import Stage
from tests.simulator.restores import Restores
from tests.simulator.world import SHARDS, TOKENS, USERS

MAX_ACTORS = 7


class History(Stage):
    """One seed, run."""

    def __post_init__(self) -> None:
        super().__post_init__()
        self.books = self.oracle.books
        self.books.users = {user: Account(quota) for user, quota in USERS.items()}
        self.books.tokens = {
            token: Account(quota, owner=owner, unlimited=free) for token, (owner, quota, free) in TOKENS.items()
        }
        self.accidents = Accidents(self.world, self.dice, self.oracle, self.broker)
        self.restores = Restores(self.world, self.oracle, self.accidents)
        oracle = self.oracle
        self.applications = Applications(
            self.world, self.dice, self.profile.users, oracle.available, oracle.is_open, oracle.is_due
        )
        self.refused: set[str] = set()
        self.clock = 0.0
        self.settings = self.world.settings
        self.names: Counter[str] = Counter()
        dead_letter_keys: dict[int, tuple[str, str, str]] = {}
        for ledger in (self.world.ledger, self.world.patient):
            ledger.begin(self.books, self.refused, dead_letter_keys)

    # -- the storm ----------------------------------------------------------------------------------------

    def storm(self) -> None:
        """Steps in an order that only the seed knows."""
        self.world.empty()
        for key, version in self.world.opening_versions():
            row = self.books.account(key)
            self.books.versions[key] = {version: (row.quota, row.status)}
        for _ in range(self.profile.steps):
            for server, left in self.away.items():
                self.away[server] = max(0, left - 1)
            self._next()
            if self.dice.random() < 0.25:
                self.check_redis()

    def _next(self) -> None:
        profile, busy = self.profile, len(self.actors)
        doings: list[tuple[Callable[[], Any], float]] = [
            (self._an_actor_steps, 10.0 if busy else 0),
            (self._gateway_comes, profile.rush if busy < MAX_ACTORS else 0),
            (self._worker_comes, 2.5 if self.broker.messages and busy < MAX_ACTORS + 2 else 0),
            (self._sweeper_comes, 0.6 if busy < MAX_ACTORS else 0),
            (self._operator_comes, profile.operators if busy < MAX_ACTORS else 0),
            (partial(self._happens, self._redis_is_damaged), profile.damage),
            (self._reconciler_comes, profile.damage * 2),
            (self._time_passes, profile.time),
            (self._accident, profile.accidents),
            (self._outage, profile.outages),
            (self._backup_or_restore, profile.restores),
            (self._poison, profile.poison),
            (self._relay, 2.0 if self.spool and busy < MAX_ACTORS else 0),
        ]
        self._one_of(doings)()

    def _one_of(self, weighted: Sequence[tuple[Callable[[], Any], float]]) -> Callable[[], Any]:
        return self.dice.choices([one for one, _ in weighted], [weight for _, weight in weighted])[0]

    def _enter(self, kind: str, script: Any, *, does: str, **more: Any) -> Actor:
        self.names[kind] += 1
        actor = Actor(f"{kind}{self.names[kind]}", script, **more)
        self.trace.note("%s comes: %s", actor.name, does)
        actor.start()
        self._after(actor)
        return actor

    def _gateway_comes(self) -> None:
        known = {request.id for request in self.applications.requests}
        contested = [actor.request for actor in self.actors if actor.parked is not None and actor.request in known]
        if contested and self.dice.random() < 0.7:
            self._comes(*self.applications.at_the_same_time(contested), cut_off=self.dice.random() < 0.85)
        else:
            self._comes(*self.applications.script())

    def _comes(self, request: Request, story: str, script: Any, *, cut_off: bool = False) -> None:
        self.trace.name(request.id, request.name)
        self.counts["gateways"] += 1
        does = f"{request.name} ({request.id}) of user {request.user}, token {request.token}: "
        does += f"{story}; {request.amount} held, {request.quota} used"
        self._enter("gateway", script, does=does, cut_off=cut_off)

    def _worker_comes(self) -> None:
        message = self.broker.take()
        self.counts[f"task {message.task}"] += 1
        owner = f"worker{self.names['worker'] + 1}"
        script = workers.task(
            message, self.world, settings=self.settings, owner=owner, now=lambda: self.clock, dice=self.dice
        )
        self._enter("worker", script, does=f"{message.task} {message.kwargs}", message=message, killable=True)

    def _sweeper_comes(self) -> None:
        does, script = workers.sweep(self.world, self.dice)
        self.counts[f"sweep {does.split()[0]}"] += 1
        self._enter("sweeper", script, does=does, killable=True)

    def _reconciler_comes(self) -> None:
        """Finds what was broken by hand, and nothing else, whatever is under way."""
        if self.away["Redis"] or self.away["PostgreSQL"]:
            return
        self.counts["reconciled"] += 1
        findings = verify.check(holds=self.world.runtime.holds, ledger=self.world.ledger).findings
        if self.oracle.accidents:  # what one destroyed is missed before an incident says so
            findings = [one for one in findings if one.what != "events of outbox"]
        broken = any(shard.damage or shard.unlisted for shard in self.oracle.shards) or self.accidents.dated_ahead()
        broken = broken or self.restores.unaware()  # accounts in Redis are newer than the truth
        demand(broken or not findings, Claim.NO_FALSE_ALARM, f"verify finds {[str(finding) for finding in findings]}")
        repairs = [finding.repair for finding in findings if finding.repair is not None]
        flow = reconcile.repair(repairs, commands=self.world.commands, settings=self.world.settings)
        self._enter("reconciler", flow, does=f"{[str(repair) for repair in repairs]}", killable=True)

    def _operator_comes(self) -> None:
        does, script = workers.operate(self.world, self.dice, self.profile.users)
        self.counts["operators"] += 1
        self._enter("operator", script, does=does)

    def _relay(self) -> None:
        """One file of the spool; it leaves when its event has arrived somewhere, or is refused."""
        event = self.spool[0]
        self.counts["relayed from the spool"] += 1
        self._enter("relayer", self._relaying(event), does=f"{event.kind} of {event.request_id}")

    async def _relaying(self, event: Event) -> None:
        try:
            await workers.relay(event, self.world)
        except InvalidRequest:
            self.oracle.set_aside.add(identity(event))  # for a person
        except Refused:
            pass  # the flow has kept it
        if event in self.spool:
            self.spool.remove(event)

    def _time_passes(self) -> None:
        a = self.accidents
        passing: list[tuple[Callable[[], str], int]] = [
            (self._holds_come_due, 6 if any(shard.due for shard in self.oracle.shards) else 0),
            (a.lease_runs_out, 4),
            (a.doorbell_falls_silent, 2),
            (a.tombstone_is_forgotten, 2),
            (a.clock_had_run_ahead, 1),
            (a.cached_accounts_grow_old, 3),
            (self._an_hour_passes, 2),
            (a.dead_letters_come_due, 1),
            (self._budget_runs_out, 1),
        ]
        self._happens(self._one_of(passing))

    def _holds_come_due(self) -> str:
        said = self.accidents.holds_come_due()
        for at, shard in enumerate(self.oracle.shards):
            if any(shard.due.values()) and self.dice.random() < 0.7:  # beat is never far
                flow = expire.expire_shard(at, commands=self.world.commands)
                self._enter("sweeper", flow, does=f"expire shard {at}", killable=True)
        return said

    def _redis_is_damaged(self) -> str:
        being_repaired = any(actor.name.startswith("reconciler") for actor in self.actors)
        return self.accidents.redis_is_written_by_hand(being_repaired=being_repaired)

    def _accident(self) -> None:
        a = self.accidents
        self.check_redis()
        if a.saved is None:
            self._happens(a.redis_is_saved)
            return
        accidents: list[tuple[Callable[[], str], int]] = [
            (a.redis_is_saved, 2),
            (a.redis_is_restarted, 2),
            (a.redis_is_emptied, 1),
            (self._redis_comes_back_older, 4),
            (a.broker_is_emptied, 1),
            (self._postgresql_restarts, 2),
        ]
        self._happens(self._one_of(accidents))

    def _redis_comes_back_older(self) -> str:
        """And gateways whose hold is open again repeat a call for it."""
        said = self.accidents.redis_comes_back_older()
        for request in self.applications.requests:
            if self.oracle.is_open(request.user, request.id) and self.dice.random() < 0.5:
                self._comes(*self.applications.again(request))
        return said

    def _happens(self, what: Callable[[], str]) -> None:
        self.counts[what.__name__.strip("_").replace("_", " ")] += 1
        self.trace.note("  -- %s", what())
        if self.dice.random() < 0.5:
            # The slow become fast: what an actor saw before this is used right after it.
            for actor in self.actors:
                actor.pace = 3.0 if actor.pace < 1 else 0.3

    def _outage(self) -> None:
        for server in self.dice.choice((["Redis"], ["PostgreSQL"], ["broker"], ["Redis", "PostgreSQL"])):
            self.away[server] = self.dice.randint(3, 15)
            self.counts[f"{server} away"] += 1
            self.trace.note("  -- %s is away for %s steps", server, self.away[server])

    def _poison(self) -> None:
        """PostgreSQL can't store what this request brings, until it can."""
        if self.refused or not self.applications.requests:
            self.refused.clear()
        else:
            self.refused.add(self.dice.choice(self.applications.requests).id)
            self.counts["refused by PostgreSQL"] += 1
        self.trace.note("  -- PostgreSQL can't store %s", self.refused)

    def _budget_runs_out(self) -> str:
        self.clock += 60
        return "drainers' time is used up"

    def _an_hour_passes(self) -> str:
        for actor in [actor for actor in self.actors if actor.killable]:
            self._crash(actor)
        for actor in self.actors:
            actor.late_ms += 3_600_000
        if self.dice.random() < 0.3:  # only then an old cached account is the best there is
            self.away["PostgreSQL"] = self.dice.randint(5, 20)
        return self.accidents.idle_accounts_leave()

    def _backup_or_restore(self) -> None:
        if self.restores.backup is None or self.dice.random() < 0.2:
            self._happens(self.restores.postgresql_is_saved)
        else:
            self._happens(self._postgresql_is_restored)

    def _postgresql_is_restored(self) -> str:
        self._postgresql_restarts()
        return self.restores.postgresql_is_restored(self.applications.accepted)

    def _postgresql_restarts(self) -> str:
        for actor in self.actors:
            if actor.parked is not None:
                actor.parked.rollback()
                actor.parked = None
                actor.answer = partial(actor.throw, Unavailable("PostgreSQL restarted"))
        return "PostgreSQL restarts"

    # -- looking ------------------------------------------------------------------------------------------

    def check_redis(self) -> None:
        """Counters equal what explains them; cached accounts are versions PostgreSQL had."""
        for key, seen in zip(KEYS, self.world.look(KEYS), strict=True):
            row = self.books.account(key)
            user = key[1] if row.owner is None else row.owner
            shard = self.oracle.shard_of(user)
            right = shard.counters(*key)
            found = seen["held"] or 0, seen["unposted"] or 0
            demand(found == right, Claim.COUNTERS, f"{key}: held, unposted are {found}, right is {right}")
            if not seen["loaded"] or not self.world.is_aware(user % SHARDS):
                continue
            known, balance = self.books.versions.get(key, {}).get(seen["version"]), seen["balance"]
            fine = known is not None and known[0] == balance
            demand(fine, Claim.CACHE, f"{key} is {balance} at version {seen['version']}; PostgreSQL had {known}")
            self.oracle.grew(key, seen["loaded_epoch"], seen["version"])
            if not row.unlimited and 0 <= seen["age_ms"] < self.world.settings.fresh_seconds * 1000:
                self.oracle.promised(key, balance - sum(found), seen["version"])
