"""Cycle: whole requests, from reserve to settled, with live workers on the same processors.

Time runs from the first reservation until everything is booked. Ours: one or two
asyncio gateway processes with 32 requests in flight each, and a worker with one
process. The reference: all eleven statements of a request by pgbench. The plain port:
a gateway that reserves with one script and sends one task per consume, and its worker.
"""

from __future__ import annotations

import time
from contextlib import ExitStack

from benchmarks.environment import Environment
from benchmarks.figures import MS, PER_SECOND, counted, percentile
from benchmarks.gateway_process import WARM_UP, our_traffic, plain_traffic, run_gateways
from benchmarks.opponents import plain_port, reference
from benchmarks.session import Session
from benchmarks.workers import running_worker
from billing_tasks.lab.parts import PartProcess

GATEWAYS = (1, 2)
PLAIN_PROCESSES = (1, 2)


def measure(session: Session) -> None:
    """All sides in turns, round by round."""
    with session.environment() as environment, ExitStack() as cleanup:
        reference.prepare(environment, session.size.users)
        plain_port.prepare(environment, session.size.users)
        plain_port.open_counters(environment, session.size.users)
        cleanup.callback(plain_port.drop, environment)
        cleanup.callback(reference.drop, environment)
        state = session.servers.state
        cleanup.enter_context(running_worker(state, "ours", processes=1, environ=environment.variables()))
        plain = {
            processes: cleanup.enter_context(
                running_worker(
                    state,
                    f"plain{processes}",
                    processes=processes,
                    environ=environment.variables(BILLING_QUEUE=f"plain{processes}"),
                    app=plain_port.APP,
                )
            )
            for processes in PLAIN_PROCESSES
        }
        booked = 0
        for _ in session.rounds():
            for gateways in GATEWAYS:
                _ours(session, environment, gateways, "always")
            _ours(session, environment, 1, "everysec")
            for clients in session.size.clients:
                environment.settle_down()
                script = reference.RESERVE + "\n" + reference.SETTLE
                seconds = session.size.seconds
                bench = reference.run(environment, script, users=session.size.users, clients=clients, seconds=seconds)
                side = f"reference SQL, {counted(clients, 'client')}"
                session.book.add(f"cycle.reference{clients}", side, PER_SECOND, bench.per_second)
            with environment.appendfsync("everysec"):
                for processes, worker in plain.items():
                    booked = _plain(session, environment, processes, worker, booked)


def _ours(session: Session, environment: Environment, gateways: int, fsync: str) -> None:
    size, began = session.size, 0.0
    environment.warm(range(1, size.users + 1))
    environment.settle_down()

    def started() -> None:
        nonlocal began
        environment.await_empty_outboxes()  # of what the gateways warmed up with
        began = time.perf_counter()

    with environment.appendfsync(fsync):
        latencies = run_gateways(
            our_traffic,
            environment.settings,
            processes=gateways,
            requests=size.cycles,
            users=size.users,
            started=started,
        )
        environment.await_empty_outboxes()
        rate = size.cycles // gateways * gateways / (time.perf_counter() - began)
    key, side = f"cycle.ours{gateways}.{fsync}", f"{counted(gateways, 'gateway')}, worker of 1 process, {fsync}"
    session.book.add(key, side, PER_SECOND, rate)
    for operation, taken in latencies.items():
        for percent in (50, 99):
            label = f"{operation} in {side}, p{percent}"
            session.book.add(f"{key}.{operation}.p{percent}", label, MS, percentile(taken, percent) / 1e6)


def _plain(session: Session, environment: Environment, processes: int, worker: PartProcess, booked: int) -> int:
    """How many are booked by now."""
    size, began = session.size, 0.0
    queue = f"plain{processes}"
    environment.settle_down()

    def started() -> None:
        nonlocal began
        plain_port.await_booked(environment, queue, booked + WARM_UP, worker)
        began = time.perf_counter()

    settings = environment.settings.model_copy(update={"queue": queue})
    run_gateways(plain_traffic, settings, processes=1, requests=size.tasks, users=size.users, started=started)
    booked += size.tasks + WARM_UP
    plain_port.await_booked(environment, queue, booked, worker)
    rate = size.tasks / (time.perf_counter() - began)
    session.book.add(
        f"cycle.plain{processes}", f"plain Celery, worker of {counted(processes, 'process')}", PER_SECOND, rate
    )
    return booked
