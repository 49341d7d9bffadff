"""One step of one actor: its effect is performed, or lost, or done and not heard of, or its actor dies of it."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from functools import partial
from random import Random
from typing import Any

from billing_tasks.errors import BillingError, OutboxStuck, Unavailable
from billing_tasks.flows.effects import Effect, Enqueue, InLedger, IntoSpool, Ring
from billing_tasks.holds.commands import Command, Pipeline
from billing_tasks.model.events import Event
from tests.simulator.actors import Actor
from tests.simulator.broker import Broker
from tests.simulator.claims import Claim, Violation, demand
from tests.simulator.oracle import Oracle
from tests.simulator.profile import Profile
from tests.simulator.shard import Shard
from tests.simulator.stepping import Parked
from tests.simulator.trace import Trace
from tests.simulator.world import SHARDS, World

MAX_PARKED = 3


@dataclass
class Stage:
    """Where the actors are, and what their effects meet."""

    world: World
    seed: int
    trace: Trace = field(default_factory=Trace)
    counts: Counter[str] = field(default_factory=Counter)

    def __post_init__(self) -> None:
        self.dice = Random(self.seed)
        self.profile = Profile.of(self.dice)
        self.oracle = Oracle([Shard() for _ in range(SHARDS)], self.world.version_in, is_aware=self.world.is_aware)
        self.oracle.seen = self.counts
        self.broker = Broker(self.dice, self.profile.lossy)
        self.actors: list[Actor] = []
        self.away: dict[str, int] = {"Redis": 0, "PostgreSQL": 0, "broker": 0}  # for so many steps
        self.spool: list[Event] = []

    def leave(self) -> None:
        """Nothing stays open for the next history."""
        for actor in self.actors:
            actor.crash()

    def _an_actor_steps(self) -> None:
        actor = self.dice.choices(self.actors, [actor.pace for actor in self.actors])[0]
        # Now and then an actor stalls, as does one that waits before COMMIT, so that others meet its locks.
        actor.pace = 0.04 if self.dice.random() < self.profile.stalls else 1.0
        self.step(actor)
        if actor.parked is not None:
            actor.pace = min(actor.pace, 0.2)

    def step(self, actor: Actor) -> None:
        """Bring one actor to its next effect, or to its end."""
        if actor.answer is not None:
            actor.answer()
        elif actor.parked is not None:
            self._resolve(actor, actor.parked)
        else:
            self._attempt(actor)
        self._after(actor)

    def _attempt(self, actor: Actor) -> None:
        effect = actor.waits_for
        assert effect is not None
        roll, faults = self.dice.random(), self.profile.faults
        if roll < faults * 0.3:
            self._crash(actor)
            return
        flaky = _closes(effect) and (actor.cut_off or self.dice.random() < self.profile.flaky)
        if flaky or self._is_away(effect) or (roll < faults * 0.6 and not isinstance(effect, Ring)):
            self.counts["lost requests"] += 1
            self.trace.effect(actor.name, effect, "the request is lost")
            actor.throw(Unavailable("no answer"))
            return
        try:
            self._perform(actor, effect)
        except BillingError as error:
            self._judge_error(effect, error)
            self.trace.effect(actor.name, effect, f"{type(error).__name__}: {error.message}")
            actor.throw(error)

    def _is_away(self, effect: Effect) -> bool:
        match effect:
            case Command() | Pipeline():
                return self.away["Redis"] > 0
            case InLedger():
                return self.away["PostgreSQL"] > 0
            case Enqueue():
                return self.away["broker"] > 0
        return False

    def _judge_error(self, effect: Effect, error: BillingError) -> None:
        if isinstance(effect, Command | Pipeline):
            raise Violation(Claim.ANSWERS, f"Redis: {error.message}")
        if isinstance(error, Unavailable) and isinstance(effect, InLedger):
            parked = any(actor.parked for actor in self.actors)
            demand(parked and error.reason == "55P03", Claim.ANSWERS, f"PostgreSQL: {error.message}")
            self.counts["met a lock"] += 1
        self.world.ledger.take_staged()
        self.world.patient.take_staged()

    def _perform(self, actor: Actor, effect: Effect) -> None:
        match effect:
            case Command():
                self._answer(actor, effect, self._command(actor, effect))
            case Pipeline():
                self._pipeline(actor, effect)
            case InLedger():
                self._ledger(actor, effect)
            case Ring():
                self.broker.ring(effect.shard, effect.request_id)
                self._answer(actor, effect, None, may_fail=False)
            case Enqueue():
                self.broker.enqueue(effect.task, effect.task_id, effect.kwargs)
                self._answer(actor, effect, None)
            case IntoSpool():
                if self.profile.spool:
                    self.spool.append(effect.event)
                self._answer(actor, effect, self.profile.spool)

    def _command(self, actor: Actor, command: Command[Any]) -> Any:
        script = command.script.name if command.script else ""
        if script in ("reserve", "balance", "lease") and not actor.replies:
            actor.late_ms = 0  # it is told the time anew
        if script == "load" and actor.late_ms:
            words = list(command.words)
            words[5] -= actor.late_ms  # began_ms
            command = Command(tuple(words), command.read, command.script)
        reply = self.world.send(command)
        self.oracle.performed(command, reply)
        return reply

    def _pipeline(self, actor: Actor, pipeline: Pipeline[Any]) -> None:
        """Others come between its commands, and it may be cut."""
        while len(actor.replies) < len(pipeline.commands):
            if actor.replies and self.dice.random() < self.profile.faults:
                self.trace.effect(actor.name, pipeline, f"cut after {len(actor.replies)}")
                self.counts["pipelines cut"] += 1
                actor.throw(Unavailable("the connection broke"))
                return
            actor.replies.append(self._command(actor, pipeline.commands[len(actor.replies)]))
            if len(actor.replies) < len(pipeline.commands) and self.dice.random() < 0.3:
                self.trace.effect(actor.name, pipeline, f"{len(actor.replies)} of {len(pipeline.commands)} so far")
                return
        self._answer(actor, pipeline, list(actor.replies))

    def _ledger(self, actor: Actor, effect: InLedger[Any]) -> None:
        others = [other.parked for other in self.actors if other.parked is not None]
        if others and self.dice.random() < 0.7:
            self.trace.effect(actor.name, effect, "queues for whatever is locked")
            reply = self.world.call_queueing(effect.call, others, self._let_go)
            apply = self.world.patient.take_staged()
            if apply is not None:
                apply()
            self._answer(actor, effect, reply)
            return
        ledger, database = self.world.ledger, self.world.ledger.database
        ledger.about = ""
        database.parking = len(others) < MAX_PARKED and self.dice.random() < self.profile.parking
        try:
            reply = effect.call(ledger)
        except BaseException:
            if (opened := database.take_open()) is not None:
                opened.rollback()
            raise
        finally:
            database.parking = False
        parked: Parked | None = database.take_open()
        apply = ledger.take_staged()
        if parked is not None and apply is None:
            parked.commit()
        elif parked is not None and apply is not None:
            parked.reply, parked.apply, actor.parked, actor.request = reply, apply, parked, ledger.about
            self.counts["parked before COMMIT"] += 1
            self.trace.effect(actor.name, effect, "waits before COMMIT", reply)
            return
        elif apply is not None:
            apply()
        self._answer(actor, effect, reply)

    def _let_go(self, parked: Parked) -> None:
        """Another actor queues for its locks."""
        actor = next(actor for actor in self.actors if actor.parked is parked)
        actor.parked = None
        self.counts["queued for a lock"] += 1
        if self.dice.random() < 0.8:
            self.trace.note("%s COMMITs, another actor waits for it", actor.name)
            parked.commit()
            actor.answer = partial(actor.send, parked.reply)
        else:
            self.trace.note("%s is rolled back, another actor waits for it", actor.name)
            parked.rollback()
            actor.answer = partial(actor.throw, Unavailable("rolled back"))

    def _resolve(self, actor: Actor, parked: Parked) -> None:
        effect = actor.waits_for
        assert effect is not None
        if self.dice.random() < self.profile.faults:
            if self.dice.random() < 0.5:
                self._crash(actor)
                return
            actor.parked = None
            parked.rollback()
            self.trace.effect(actor.name, effect, "ROLLBACK")
            actor.throw(Unavailable("rolled back"))
            return
        actor.parked = None
        parked.commit()
        self._answer(actor, effect, parked.reply, note="COMMIT")

    def _answer(self, actor: Actor, effect: Effect, reply: Any, *, note: str = "", may_fail: bool = True) -> None:
        """It was done. Whether its actor hears of it is another matter."""
        roll, faults = self.dice.random(), self.profile.faults
        if roll < faults * 0.3:
            self.trace.effect(actor.name, effect, f"{note} done", reply)
            self._crash(actor)
        elif roll < faults * 0.8 and may_fail:
            self.counts["lost answers"] += 1
            self.trace.effect(actor.name, effect, f"{note} done, the answer is lost", reply)
            actor.throw(Unavailable("no answer"))
        else:
            self.trace.effect(actor.name, effect, note, reply)
            actor.send(reply)

    def _crash(self, actor: Actor) -> None:
        self.counts["crashes"] += 1
        self.trace.note("%s crashes", actor.name)
        actor.crash()
        if actor in self.actors:
            self.actors.remove(actor)
        if actor.message is not None:
            self.broker.put_back(actor.message)  # it was not acknowledged

    def _after(self, actor: Actor) -> None:
        self.counts["steps"] += 1
        if actor.waits_for is not None:
            if actor not in self.actors:
                self.actors.append(actor)
            return
        if actor in self.actors:
            self.actors.remove(actor)
        if actor.error is not None:
            self.trace.note("%s ends: %s: %s", actor.name, type(actor.error).__name__, actor.error)
            self.counts[f"ended with {type(actor.error).__name__}"] += 1
            demand(not isinstance(actor.error, OutboxStuck), Claim.SETTLES, str(actor.error))
            if actor.message is not None and actor.gave_up:
                self.broker.put_back(actor.message)


def _closes(effect: Effect) -> bool:
    return isinstance(effect, Command) and effect.script is not None and effect.script.name in ("consume", "refund")
