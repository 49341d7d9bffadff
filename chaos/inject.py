"""Injector: does faults to what is running. A fault whose victim is away is put off, never left out in silence."""

from __future__ import annotations

import signal
import time
import uuid
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from datetime import UTC, datetime

import psycopg
import redis

from billing_tasks.broker.names import SETTLE
from billing_tasks.errors import Unavailable
from billing_tasks.holds.keys import Keys
from billing_tasks.lab.servers.valkey import EmbeddedValkey
from billing_tasks.runtime import Runtime
from chaos.environment import Environment
from chaos.failover import Failover
from chaos.faults import FAILOVERS, RESTORES, SLOW, Fault, Planned
from chaos.processes import ManagedProcess, children_of, kill
from chaos.restore import Restore, Restored

#: How many messages settle one shard at once.
MESSAGES = 4
SHARDS_AT_ONCE = 4
PUT_OFF_SECONDS = 0.7
#: Frozen or slow: which server.
HELD_UP = {
    Fault.REDIS_FROZEN: "redis",
    Fault.POSTGRES_FROZEN: "postgres",
    Fault.BROKER_FROZEN: "broker",
    Fault.REDIS_SLOW: "redis",
    Fault.POSTGRES_SLOW: "postgres",
    Fault.BROKER_SLOW: "broker",
}
#: A backend of a client of ours, and never the one that asks.
_CUT = """
select count(pg_terminate_backend(pid)) from pg_stat_activity
where backend_type = 'client backend' and pid <> pg_backend_pid()
"""
_SOME_BACKEND = """
select pid from pg_stat_activity where backend_type = 'client backend' and pid <> pg_backend_pid()
order by random() limit 1
"""


def strange_words(keys: Keys, shard: int, number: int) -> tuple[str, ...]:
    """What a program does that takes a shard's keys for its own."""
    outbox, of_now = keys.outbox(shard), time.time_ns() // 1000
    return (
        ("XADD", outbox, f"{of_now + 1_000_000}-7", "job", str(number)),
        ("XADD", outbox, f"{2**63}-{number}", "event", f"job {number}", "payload", "{}"),
        ("ZADD", keys.due(shard), "1", f"job-{number}"),
    )[number % 3]


class Injector:
    """Does what the schedule says."""

    def __init__(self, environment: Environment, runtime: Runtime, planned: list[Planned]) -> None:
        self.done: Counter[Fault] = Counter()
        self.told: list[tuple[float, str]] = []  # seconds since the beginning, what was done
        self._environment = environment
        self._failover = Failover(environment)
        self._restore = Restore(environment)
        self._runtime = runtime
        self._waiting = list(planned)
        self._log = environment.state.log_file("faults").open("a", buffering=1)
        self._senders = ThreadPoolExecutor(1)  # the broker may be away, and the run does not wait for it

    @property
    def gaps(self) -> list[tuple[int, int]]:
        """When Redis was written to and forgot it, in milliseconds since 1970."""
        return self._failover.gaps

    @property
    def restores(self) -> list[Restored]:
        """When PostgreSQL came back as it had been."""
        return self._restore.done

    @property
    def left(self) -> int:
        """Faults that are still to come."""
        return len(self._waiting)

    def inject(self, at_seconds: float) -> None:
        """Do what is due."""
        self._failover.tend()
        self._restore.tend()
        due = [planned for planned in self._waiting if planned.at_seconds <= at_seconds]
        for planned in due:
            self._waiting.remove(planned)
            done = self._do(planned)
            if done:
                self.done[planned.fault] += 1
                self.told.append((at_seconds, done))
                self._log.write(f"{datetime.now(UTC):%H:%M:%S.%f} {at_seconds:8.2f} s  {done}\n")
            else:
                later = at_seconds + PUT_OFF_SECONDS
                self._waiting.append(Planned(later, planned.fault, planned.seconds, planned.pick))

    def close(self) -> None:
        """Send nothing any more."""
        self._senders.shutdown(cancel_futures=True)
        self._log.close()

    def _do(self, planned: Planned) -> str:
        """What was done, empty if it could not be."""
        match planned.fault:
            case Fault.CHILD:
                return self._kill_child(planned)
            case Fault.WORKER | Fault.ORPHANS | Fault.BEAT | Fault.GATEWAY:
                kind = "worker" if planned.fault is Fault.ORPHANS else planned.fault.split()[0]
                return self._kill(planned, kind, children_too=planned.fault is not Fault.ORPHANS)
            case Fault.REDIS | Fault.BROKER:
                return self._kill(planned, "redis" if planned.fault is Fault.REDIS else "broker")
            case Fault.POSTGRES | Fault.POSTGRES_QUIT:
                number = signal.SIGKILL if planned.fault is Fault.POSTGRES else signal.SIGQUIT
                return self._kill(planned, "postgres", children_too=False, number=number)  # its backends notice later
            case fault if fault in HELD_UP:
                return self._hold_up(planned)
            case fault if fault in (*FAILOVERS, *RESTORES):
                return self._come_back_older(planned)
            case Fault.CLOCK:
                return self._set_clock(planned)
            case Fault.SETTLE_TWICE:
                return self._multiply(planned)
            case _:
                return self._by_command(planned)

    def _by_command(self, planned: Planned) -> str:
        match planned.fault:
            case Fault.STRANGER:
                shard = int(planned.pick * self._runtime.settings.shards)
                words = strange_words(self._runtime.commands.keys, shard, round(planned.pick * 1000))
                return self._redis("redis", planned.fault, *words)
            case Fault.REDIS_CUT:
                return self._redis("redis", planned.fault, "CLIENT", "KILL", "TYPE", "normal")
            case Fault.BROKER_FLUSHED:
                return self._redis("broker", planned.fault, "FLUSHALL")
            case Fault.POSTGRES_CUT:
                return self._in_postgres(planned.fault, _CUT, lambda _count: None)
            case _:
                return self._in_postgres(planned.fault, _SOME_BACKEND, lambda pid: kill(pid, signal.SIGKILL))

    def _come_back_older(self, planned: Planned) -> str:
        """One server at a time: of two losses nobody could tell which took an event."""
        if planned.fault is Fault.FAILOVER:
            return self._failover.clean()
        if planned.fault is Fault.FAILOVER_LATE:
            return "" if self._restore.is_busy else self._failover.leave_behind(planned.seconds)
        return "" if self._failover.is_behind else self._restore.begin(planned.seconds)

    def _one(self, kind: str, pick: float) -> ManagedProcess | None:
        up = [managed for managed in self._environment.some(kind) if managed.is_up]
        return up[int(pick * len(up))] if up else None

    def _kill(
        self,
        planned: Planned,
        kind: str,
        *,
        children_too: bool = True,
        number: signal.Signals = signal.SIGKILL,
    ) -> str:
        victim = self._one(kind, planned.pick)
        if victim is None:
            return ""
        pid = victim.process.pid
        victim.kill(number, planned.seconds, children_too=children_too)
        return f"{planned.fault}: {victim.name}, pid {pid}, for {planned.seconds:.1f} s"

    def _kill_child(self, planned: Planned) -> str:
        worker = self._one("worker", planned.pick)
        children = children_of(worker.process.pid or 0) if worker else []
        if worker is None or not children:
            return ""
        child = children[int(planned.pick * 1000) % len(children)]
        kill(child, signal.SIGKILL)
        return f"{planned.fault}: {worker.name}, pid {child}"

    def _hold_up(self, planned: Planned) -> str:
        victim = self._one(HELD_UP[planned.fault], planned.pick)
        if victim is None:
            return ""
        if planned.fault in SLOW:
            victim.slow(planned.seconds)
        else:
            victim.freeze(planned.seconds)
        return f"{planned.fault} for {planned.seconds:.1f} s"

    def _set_clock(self, planned: Planned) -> str:
        victims = [*self._environment.some("worker"), *self._environment.some("gateway")]
        victim = victims[int(planned.pick * len(victims))]
        file = self._environment.clock_of(victim.name)
        draft = file.with_suffix(".new")
        draft.write_text(str(planned.seconds))
        draft.replace(file)
        return f"{planned.fault}: {victim.name}'s is {planned.seconds:+,.0f} s off"

    def _redis(self, name: str, fault: Fault, *words: str) -> str:
        managed = self._one(name, 0)
        if managed is None or not isinstance(managed.process, EmbeddedValkey):
            return ""
        client = redis.Redis.from_url(managed.process.url, socket_timeout=2, socket_connect_timeout=2)
        try:
            answer = client.execute_command(*words)  # type: ignore[no-untyped-call]
        except redis.RedisError:
            return ""
        finally:
            client.close()
        return f"{fault}: {answer}"

    def _in_postgres(self, fault: Fault, statement: str, then: Callable[[int], None]) -> str:
        if self._one("postgres", 0) is None:
            return ""
        with suppress(psycopg.Error), psycopg.connect(self._environment.postgres.url, connect_timeout=2) as connection:
            row = connection.execute(statement).fetchone()
            if row is not None and row[0]:
                then(row[0])
                return f"{fault}: {row[0]}"
        return ""

    def _multiply(self, planned: Planned) -> str:
        if self._one("broker", 0) is None:
            return ""
        first = int(planned.pick * self._runtime.settings.shards)
        shards = [(first + 5 * index) % self._runtime.settings.shards for index in range(SHARDS_AT_ONCE)]

        def send() -> None:
            with suppress(Unavailable):
                for shard in shards * MESSAGES:
                    self._runtime.doorbell.enqueue(SETTLE, str(uuid.uuid4()), {"shard": shard, "request_id": "again"})

        self._senders.submit(send)
        return f"{planned.fault}: {MESSAGES} each for shards {', '.join(map(str, shards))}"
