"""Status: how much waits and for how long, what failed, what may be missing, and which workers answer."""

from __future__ import annotations

import threading
from dataclasses import asdict, dataclass, field
from typing import Final

from billing_tasks.broker import names
from billing_tasks.errors import BillingError, Unavailable
from billing_tasks.flows.audit import setup
from billing_tasks.flows.audit.answers import Behind, SetupWarning, Watched
from billing_tasks.flows.audit.backlog import behind, watch
from billing_tasks.ledger.rows import DeadLetterState, Incident, Missing, OpenReason
from billing_tasks.model import set_aside
from billing_tasks.runtime import Runtime
from billing_tasks.settings import redact

#: Where messages are kept that were in our queue and are not ours, or that nobody could read.
KEPT: Final = (set_aside.FOREIGN, set_aside.UNREADABLE)
#: How long the broker and the workers are waited for; workers alone are given two seconds.
BROKER_SECONDS: Final = 6.0
#: So many of the last incidents are part of a status.
LAST_INCIDENTS: Final = 200
#: Of so many users it is said how much of a backlog is theirs.
MOST_BEHIND: Final = 5


@dataclass(frozen=True, slots=True)
class Kept:
    """What PostgreSQL keeps for a person."""

    dead_letters: dict[DeadLetterState, int]  # every state, zeros included
    missing: Missing  # over all incidents, ever
    incidents: list[Incident]  # the last ones, newest first
    reasons: list[OpenReason]  # of the open dead letters


@dataclass(frozen=True, slots=True)
class Status:
    """The system at one moment."""

    redis: Watched | None  # backlog, age of its oldest event in ms, open holds; None: Redis is away
    postgresql: Kept | None  # None: PostgreSQL is away
    workers: list[str] | None  # that answered within a second; None: they were not asked
    set_aside: dict[str, int] = field(default_factory=dict)  # messages that were in our queue, by where they are kept
    broker_waiting: int | None = None  # messages in the queue; None: the broker is away, or was not asked
    problems: list[str] = field(default_factory=list)  # what the servers that are away said
    warnings: list[SetupWarning] = field(default_factory=list)  # settings under which the guarantees don't hold
    behind: list[Behind] = field(default_factory=list)  # whose the backlog is, by its oldest events; most first

    @property
    def incidents(self) -> list[Incident]:
        """The last incidents, newest first; none if PostgreSQL is away."""
        return [] if self.postgresql is None else self.postgresql.incidents

    def as_dict(self) -> dict[str, object]:
        """For machines. What a server that is away would have said is left out."""
        said: dict[str, object] = {}
        if self.redis is not None:
            said["redis"] = asdict(self.redis)
            said["behind"] = [asdict(user) for user in self.behind]
        if self.postgresql is not None:
            said["dead_letters"] = {state.value: count for state, count in self.postgresql.dead_letters.items()}
            said["open_dead_letters"] = [asdict(reason) for reason in self.postgresql.reasons]
            said["incidents"] = [asdict(incident) for incident in self.postgresql.incidents]
        if self.workers is not None:
            said["workers"] = self.workers
            said["broker"] = None if self.broker_waiting is None else {"waiting": self.broker_waiting}
            said["set_aside"] = self.set_aside
        return {**said, "problems": self.problems, "warnings": [asdict(warning) for warning in self.warnings]}


def status_of(runtime: Runtime, *, workers: bool = True) -> Status:
    """Ask both servers and the workers; one that is away is a problem in the answer and keeps the others from nothing.

    `workers=False` does not ask the workers, which saves a second, nor whose the backlog is.
    """
    redis, postgresql, problems, users = None, None, [], []
    try:
        redis = runtime.run(watch(commands=runtime.commands))
        if workers and redis.backlog:
            users = runtime.run(behind(commands=runtime.commands, most=MOST_BEHIND))
    except BillingError as exc:
        problems.append(exc.message)
    try:
        ledger = runtime.ledger
        postgresql = Kept(
            ledger.count_dead_letters(),
            ledger.count_missing(),
            ledger.incidents(limit=LAST_INCIDENTS),
            ledger.open_reasons(),
        )
    except BillingError as exc:
        problems.append(exc.message)
    warnings = setup.look(holds=runtime.holds, ledger=runtime.ledger, settings=runtime.settings)
    if not workers:
        return Status(redis, postgresql, None, problems=problems, warnings=warnings)
    broker = _Broker(runtime).ask()
    return Status(
        *(redis, postgresql, broker.workers, broker.set_aside, broker.waiting),
        problems + broker.problems,
        warnings,
        users,
    )


@dataclass
class _Broker:
    """What the broker and the workers say within BROKER_SECONDS; what they owe by then is a problem.

    In a thread that is left behind: a broker that trickles in its answers keeps kombu for as long as it likes.
    """

    runtime: Runtime
    workers: list[str] = field(default_factory=list)
    set_aside: dict[str, int] = field(default_factory=dict)
    waiting: int | None = None
    problems: list[str] = field(default_factory=list)

    def ask(self) -> _Broker:
        asking = threading.Thread(target=self._ask, name="billing-status", daemon=True)
        asking.start()
        asking.join(BROKER_SECONDS)
        if not asking.is_alive():
            return self
        late = f"The broker at {redact(self.runtime.settings.celery_broker_url)} did not answer within"
        problems = [*self.problems, f"{late} {BROKER_SECONDS:.0f} s."]
        return _Broker(self.runtime, list(self.workers), dict(self.set_aside), self.waiting, problems)

    def _ask(self) -> None:
        self.set_aside = _set_aside(self.runtime, self.problems)
        if self.problems:
            return  # it is away; asking workers over it would only take longer
        self.waiting = _broker_waiting(self.runtime)
        self.workers = self.runtime.doorbell.workers()
        self.problems += _other_workers(self.runtime, self.workers)


def _set_aside(runtime: Runtime, problems: list[str]) -> dict[str, int]:
    from billing_tasks.broker import foreign  # noqa: PLC0415 - Celery, which a status without workers needs not

    queue = runtime.settings.queue
    try:
        return {where: foreign.count(runtime.doorbell.app, set_aside.name(queue, where)) for where in KEPT}
    except Unavailable as exc:
        problems.append(exc.message)
        return {}


def _broker_waiting(runtime: Runtime) -> int | None:
    from billing_tasks.broker import foreign  # noqa: PLC0415 - likewise

    try:
        return foreign.count(runtime.doorbell.app, runtime.settings.queue)
    except Unavailable:
        return None  # `_set_aside` has said it


def _other_workers(runtime: Runtime, answered: list[str]) -> list[str]:
    from billing_tasks.broker import foreign  # noqa: PLC0415 - likewise

    queue = runtime.settings.queue
    others = foreign.other_workers(runtime.doorbell.app, queue, names.SETTLE) if answered else []
    return [
        f"Worker {other.name} of another application consumes queue {queue}, too, and discards what it takes of"
        " billing's tasks. Give it a queue of its own."
        for other in others
    ]
