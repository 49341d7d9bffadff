"""Why settlements are batched: tasks per second of a worker beside events per second of a drain.

    .venv/bin/python examples/measure_batching.py

Starts its own servers, with the disk settings of production. Takes about a minute.
"""

import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from billing_tasks import Accounts, ConsumeLog, Settings
from billing_tasks.flows.settlement import settle
from billing_tasks.holds.commands import Pipeline
from billing_tasks.lab.servers import embedded_servers
from billing_tasks.ledger.migrations import upgrade
from billing_tasks.model import events
from billing_tasks.model.ids import new_request_id
from billing_tasks.runtime import Runtime
from billing_tasks.settings import load_settings
from billing_tasks.worker.app import make_app

TASKS, EVENTS, USERS = 5_000, 100_000, 160

app = make_app(load_settings())


@app.task(name="measure.noop")
def noop() -> None:
    """What a task costs that does nothing."""


def tasks_per_second(settings: Settings, environment: dict[str, str]) -> float:
    """A worker with one process eats TASKS no-ops, acknowledged late like ours."""
    app.conf.broker_url = settings.celery_broker_url
    with app.producer_pool.acquire(block=True) as producer:
        for _ in range(TASKS):
            noop.apply_async(producer=producer)
    command = [sys.executable, "-m", "celery", "-A", "measure_batching", "worker", "-c", "1"]
    with Runtime(settings).holds.client as redis, tempfile.TemporaryFile() as log:
        redis.execute_command("SELECT", 0)
        worker = subprocess.Popen(
            [*command, "--without-gossip", "--without-mingle"],
            cwd=Path(__file__).parent,
            env={**os.environ, **environment},
            stdout=log,
            stderr=log,
        )
        try:
            while done(redis) < 500:  # it starts and warms up
                time.sleep(0.01)
            first, began = done(redis), time.monotonic()
            while done(redis) < TASKS:
                time.sleep(0.01)
            return (TASKS - first) / (time.monotonic() - began)
        finally:
            worker.terminate()
            worker.wait()


def done(redis: object) -> int:
    """How many of the no-ops are neither waiting nor delivered and unacknowledged."""
    with redis.pipeline() as pipe:
        pipe.execute_command("LLEN", "celery")
        pipe.execute_command("HLEN", "unacked")
        return TASKS - sum(map(int, pipe.execute()))


def events_per_second(settings: Settings) -> float:
    """One process books a backlog of EVENTS consumes, shard after shard, until Redis has forgotten them all."""
    runtime = Runtime(settings)
    accounts = Accounts(runtime)
    payers = []
    for _ in range(USERS):
        user = accounts.create_user(quota=10**9)
        payers.append((user.id, accounts.create_token(user.id, quota=10**9).id))
    waiting = []
    for number in range(EVENTS):
        user_id, token_id = payers[number % USERS]
        request_id = new_request_id()
        log = ConsumeLog(
            user_id=user_id, token_id=token_id, channel_id=3, quota=10, request_id=request_id, model_name="gpt-4o"
        )
        event = events.of_log(log)
        waiting.append(
            runtime.commands.consume(
                request_id=request_id,
                user_id=user_id,
                token_id=token_id,
                quota=10,
                fingerprint=event.fingerprint,
                payload=events.encode(event),
            )
        )
        if len(waiting) == 500:
            runtime.holds.send_all(Pipeline(tuple(waiting)))
            waiting = []
    began = time.monotonic()
    posted = 0
    for shard in range(settings.shards):
        flow = settle.drain(shard, owner="measure", commands=runtime.commands, settings=settings, now=time.monotonic)
        posted += runtime.run(flow).posted
    seconds = time.monotonic() - began
    assert posted == EVENTS, posted
    runtime.close()
    return EVENTS / seconds


def main() -> None:
    with embedded_servers() as servers:
        settings = Settings(redis_url=servers.redis_url, database_url=servers.database_url)
        upgrade(servers.database_url)
        print(f"{os.cpu_count()} cores")
        print(
            f"no-op Celery tasks, a worker with one process: {tasks_per_second(settings, servers.environment):,.0f}/s"
        )
        print(f"events booked by one draining process: {events_per_second(settings):,.0f}/s")


if __name__ == "__main__":
    main()
