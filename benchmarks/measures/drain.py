"""Drain: how fast a backlog is booked, by one process and by real workers, beside everything it competes with.

    here        one process runs the flow, shard after shard
    worker1, 2  Celery workers with one and two processes, called by the doorbell
    raw         the batched SQL alone, its limit
    reference   the reference's settlement, seven statements, by pgbench
    plain1, 2   the plain Celery port with one and two processes

A worker's time runs from the ring until every outbox is empty. Also: processor
seconds per million settlements, of the workers and of both servers.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import ExitStack

from benchmarks.backlog import file_backlog, make_events, some_users
from benchmarks.environment import Environment
from benchmarks.figures import CPU, PER_SECOND, counted
from benchmarks.opponents import plain_port, posting, reference
from benchmarks.session import Session
from benchmarks.workers import cpu_seconds, running_worker
from billing_tasks.broker.publisher import Publisher
from billing_tasks.lab.parts import PartProcess

PROCESSES = (1, 2)


def measure(session: Session) -> None:
    """Everything above, in turns, round by round."""
    with session.environment() as environment, ExitStack() as cleanup:
        reference.prepare(environment, session.size.users)
        plain_port.prepare(environment, session.size.users)
        cleanup.callback(plain_port.drop, environment)
        cleanup.callback(reference.drop, environment)
        sides = _Sides(session, environment, cleanup)
        for _ in session.rounds():
            sides.round()


class _Sides:
    """Every side of the comparison, one method each."""

    def __init__(self, session: Session, environment: Environment, cleanup: ExitStack) -> None:
        self.session, self.environment = session, environment
        self.ours: dict[int, tuple[PartProcess, Publisher]] = {}
        self.plain: dict[int, PartProcess] = {}
        self.booked = 0
        self.seed = 0
        for processes in PROCESSES:
            self._start_ours(processes, cleanup)
            self._start_plain(processes, cleanup)

    def _start_ours(self, processes: int, cleanup: ExitStack) -> None:
        """On a queue of its own, so that only the worker that is called works; and used once, untimed."""
        queue, state = f"ours{processes}", self.session.servers.state
        environ = self.environment.variables(BILLING_QUEUE=queue)
        worker = cleanup.enter_context(running_worker(state, queue, processes=processes, environ=environ))
        doorbell = Publisher(self.environment.settings.model_copy(update={"queue": queue}))
        cleanup.callback(doorbell.close)
        self.ours[processes] = (worker, doorbell)
        self._fill(100 * processes)
        self._call(processes)

    def _start_plain(self, processes: int, cleanup: ExitStack) -> None:
        queue, state = f"plain{processes}", self.session.servers.state
        environ = self.environment.variables(BILLING_QUEUE=queue)
        worker = running_worker(state, queue, processes=processes, environ=environ, app=plain_port.APP)
        self.plain[processes] = cleanup.enter_context(worker)
        self._book_plainly(processes, 50 * processes)

    def round(self) -> None:
        """All sides once."""
        note, size = self.session.book.add, self.session.size
        note("drain.here", "one process, in process", PER_SECOND, self._rate_of(self.environment.drain))
        with self.environment.appendfsync("everysec"):
            note("drain.here.everysec", "one process, everysec", PER_SECOND, self._rate_of(self.environment.drain))
        for processes in PROCESSES:
            self._measure_ours(processes)
        waiting = make_events(self.environment, self._users())
        self.environment.settle_down()
        rate = size.events / posting.seconds_to_post(self.environment, waiting)
        note("drain.raw", "batched SQL alone", PER_SECOND, rate)
        for clients in size.clients:
            self.environment.settle_down()
            bench = reference.run(
                self.environment, reference.SETTLE, users=size.users, clients=clients, seconds=size.seconds
            )
            note(
                f"drain.reference{clients}",
                f"reference SQL, {counted(clients, 'client')}",
                PER_SECOND,
                bench.per_second,
            )
        with self.environment.appendfsync("everysec"):
            for processes in PROCESSES:
                self._measure_plain(processes)

    def _users(self) -> list[int]:
        self.seed += 1
        return some_users(self.session.size.events, self.session.size.users, seed=self.seed)

    def _fill(self, events: int | None = None) -> None:
        file_backlog(self.environment, make_events(self.environment, self._users()[:events]))
        self.environment.settle_down()

    def _rate_of(self, drain: Callable[[], object]) -> float:
        self._fill()
        began = time.perf_counter()
        drain()
        return self.session.size.events / (time.perf_counter() - began)

    def _call(self, processes: int) -> None:
        for shard in range(self.environment.settings.shards):
            self.ours[processes][1].ring(shard, "benchmark")
        self.environment.await_empty_outboxes()

    def _measure_ours(self, processes: int) -> None:
        servers, note, events = self.session.servers, self.session.book.add, self.session.size.events
        side = f"worker, {counted(processes, 'process')}"
        pids = {
            f"worker{processes}": (self.ours[processes][0].pid, side),
            f"postgres{processes}": (servers.postgres.pid, f"PostgreSQL, {side}"),
            f"valkey{processes}": (servers.valkey.pid, f"Valkey, {side}"),
        }
        self._fill()
        before = {key: cpu_seconds(pid) for key, (pid, _) in pids.items()}
        began = time.perf_counter()
        self._call(processes)
        note(f"drain.worker{processes}", side, PER_SECOND, events / (time.perf_counter() - began))
        for key, (pid, whose) in pids.items():
            self._note_cpu(key, whose, before[key], cpu_seconds(pid), events)

    def _note_cpu(self, key: str, side: str, before: float | None, after: float | None, events: int) -> None:
        if before is not None and after is not None:
            self.session.book.add(f"cpu.{key}", side, CPU, (after - before) / events * 1e6)

    def _book_plainly(self, processes: int, tasks: int) -> float:
        """Seconds it takes to book so many."""
        queue = f"plain{processes}"
        self.seed += 1
        plain_port.fill_queue(self.environment, queue, tasks, self.session.size.users, seed=self.seed)
        self.booked += tasks
        self.environment.settle_down()
        began = time.perf_counter()
        plain_port.release(self.environment, queue)
        plain_port.await_booked(self.environment, queue, self.booked, self.plain[processes])
        return time.perf_counter() - began

    def _measure_plain(self, processes: int) -> None:
        pid, tasks = self.plain[processes].pid, self.session.size.tasks
        side = f"plain Celery, {counted(processes, 'process')}"
        before = cpu_seconds(pid)
        seconds = self._book_plainly(processes, tasks)
        self.session.book.add(f"drain.plain{processes}", side, PER_SECOND, tasks / seconds)
        self._note_cpu(f"plain{processes}", side, before, cpu_seconds(pid), tasks)
