"""Another application on the same broker: neither side loses a task, and one fleet may serve both."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import textwrap
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import redis
from celery import Celery

import billing_tasks
from billing_tasks.admin import Admin
from billing_tasks.broker import foreign
from billing_tasks.errors import BadSettings, InvalidRequest
from billing_tasks.model.ids import new_request_id
from billing_tasks.settings import Settings
from tests.conftest import CHANNEL, Billing, Payer
from tests.worker.conftest import Processes, eventually

SHOP = """
    import os
    from celery import Celery
    app = Celery("shop", broker=os.environ["BILLING_BROKER_URL"])
    app.conf.update({settings})

    @app.task(name="shop.mail")
    def mail(number):
        import redis
        redis.Redis.from_url(os.environ["BILLING_REDIS_URL"] + "?db=0").sadd("shop.mailed", number)

    {more}
"""


@pytest.fixture
def broker(billing: Billing) -> Iterator[redis.Redis]:
    client = redis.Redis.from_url(f"{billing.settings.redis_url}?db=0")
    client.flushdb()
    yield client
    client.close()


@pytest.fixture
def shop(billing: Billing, processes: Processes, tmp_path: Path) -> Callable[..., subprocess.Popen[bytes]]:
    """Starts a worker of the shop's own app, its module in a folder of its own."""

    def start(*arguments: str, settings: str = "", more: str = "") -> subprocess.Popen[bytes]:
        text = textwrap.dedent(SHOP).replace("{settings}", settings).replace("{more}", textwrap.dedent(more))
        (tmp_path / "shop.py").write_text(text)
        log = processes.folder / "shop.log"
        command = [sys.executable, "-m", "celery", "-A", "shop", "worker", "--hostname", "shop@here"]
        own = {"BILLING_BROKER_URL": billing.settings.celery_broker_url, "PYTHONPATH": str(tmp_path)}
        with log.open("wb") as output:
            process = subprocess.Popen(
                [*command, "--loglevel", "INFO", *arguments],
                env={**os.environ, **billing.environment, **own, "C_FORCE_ROOT": "1"},  # it may accept pickle
                stdout=output,
                stderr=subprocess.STDOUT,
                stdin=subprocess.DEVNULL,
            )
        processes.running.append(process)
        processes.logs.append(log)
        eventually(lambda: "ready" in log.read_text(errors="replace"), what="the shop's worker is ready")
        return process

    return start


def producer(billing: Billing, **settings: Any) -> Celery:
    made = Celery(broker=billing.settings.celery_broker_url, set_as_current=False)
    made.conf.update(settings)
    return made


def usage(payer: Payer, quota: int = 5) -> dict[str, Any]:
    log = {"user_id": payer[0], "token_id": payer[1], "channel_id": CHANNEL, "quota": quota}
    return {**log, "request_id": new_request_id()}


def test_two_applications_on_celerys_default_queue_lose_nothing(
    billing: Billing, broker: redis.Redis, processes: Processes, shop: Callable[..., Any]
) -> None:
    payer = billing.payer()
    shop("--concurrency", "1")
    processes.worker(billing)
    mixed = producer(billing)
    for number in range(40):
        mixed.send_task("shop.mail", args=[number])
    routed = producer(billing, task_routes={"billing.*": {"queue": "billing"}})
    for _ in range(40):
        routed.send_task("billing.consume", kwargs=usage(payer))
    eventually(lambda: broker.scard("shop.mailed") == 40, what="the shop's tasks are done")
    eventually(lambda: billing.accounts.user(payer[0]).used_quota == 200, what="the usage is booked")
    assert broker.llen("billing.foreign") == 0


def test_tasks_of_ours_in_the_old_queue_are_fetched_and_those_of_others_stay(
    billing: Billing, broker: redis.Redis, processes: Processes
) -> None:
    """As gateways of release 0.2.0 send them, and programs that are not routed."""
    payer = billing.payer()
    old = producer(billing)
    for number in range(5):
        old.send_task("shop.mail", args=[number])
        old.send_task("billing.consume", kwargs=usage(payer))
    processes.worker(billing)
    eventually(lambda: billing.accounts.user(payer[0]).used_quota == 25, what="the usage is booked")
    waiting: Any = broker.lrange("celery", 0, -1)
    assert [json.loads(message)["headers"]["task"] for message in waiting] == ["shop.mail"] * 5


def test_what_is_not_ours_is_set_aside_shown_and_handed_back(
    billing: Billing, broker: redis.Redis, processes: Processes, shop: Callable[..., Any]
) -> None:
    payer = billing.payer()
    astray = producer(billing, task_default_queue="billing", accept_content=["pickle", "json"])
    processes.worker(billing)
    for number in range(3):
        astray.send_task("shop.mail", args=[number])
    astray.send_task("shop.mail", args=[3], serializer="pickle")
    astray.send_task("billing.consume", kwargs=usage(payer), serializer="pickle")
    astray.send_task("billing.consume", kwargs=usage(payer))
    eventually(lambda: billing.accounts.user(payer[0]).used_quota == 5, what="the usage behind them is booked")
    with Admin(billing.runtime) as admin:
        eventually(lambda: admin.status().set_aside == {"foreign": 4, "unreadable": 1}, what="five are set aside")
        assert [one.task for one in admin.neighbours.find()] == ["shop.mail"] * 4
        assert admin.neighbours.find(unreadable=True)[0].task == "billing.consume"
        with pytest.raises(InvalidRequest, match="not billing's"):
            admin.neighbours.hand_back("billing")
        assert admin.neighbours.hand_back("celery") == 4
        shop("--concurrency", "1", settings='{"accept_content": ["json", "pickle"]}')
        eventually(lambda: broker.scard("shop.mailed") == 4, what="the shop has its tasks")
        assert admin.status().set_aside["foreign"] == 0


def test_a_worker_of_another_application_in_our_queue_is_told(
    billing: Billing, broker: redis.Redis, processes: Processes, shop: Callable[..., Any]
) -> None:
    broker.ping()
    shop("--concurrency", "1", "-Q", "billing")
    processes.worker(billing)
    log = processes.folder / "w1.log"
    eventually(lambda: "shop@here of another application consumes queue billing" in log.read_text(), what="a warning")
    with Admin(billing.runtime) as admin:
        (problem,) = admin.status().problems
    assert "shop@here of another application" in problem


# -- one fleet for both --------------------------------------------------------------------------------------

EVERY_SETTING = """{
    "accept_content": ["json", "pickle"], "task_serializer": "pickle", "task_always_eager": True,
    "task_acks_late": False, "task_reject_on_worker_lost": False, "task_default_rate_limit": "1/h",
    "worker_prefetch_multiplier": 100, "task_ignore_result": False, "task_time_limit": 5, "task_default_queue": "shop",
    "result_backend": os.environ["BILLING_REDIS_URL"].replace("unix://", "redis+socket://") + "?virtual_host=3",
    "task_routes": {"shop.*": {"queue": "shop"}},
    "beat_schedule": {"mail": {"task": "shop.mail", "schedule": 1, "args": [99]}},
}"""


def test_one_fleet_serves_both_whatever_the_app_is_set_to(
    billing: Billing, broker: redis.Redis, processes: Processes, shop: Callable[..., Any]
) -> None:
    payer = billing.payer()
    beat = ("--beat", "--schedule", str(processes.folder / "beat"))
    shop("--concurrency", "1", *beat, settings=EVERY_SETTING, more="import billing_tasks\nbilling_tasks.register(app)")
    for _ in range(3):
        billing.use(billing.reserve(payer, 100), 60)  # its doorbell goes to the app's workers
    eventually(lambda: billing.accounts.user(payer[0]).used_quota == 180, what="the usage is booked")
    eventually(lambda: broker.sismember("shop.mailed", 99), what="the shop's own schedule runs")
    hold = billing.reserve(payer, 100)
    keys = billing.runtime.commands.keys
    billing.redis("ZADD", keys.due(keys.shard_of(payer[0])), 1, hold.request_id)
    eventually(lambda: not billing.redis("ZCARD", keys.due(keys.shard_of(payer[0]))), what="billing's schedule runs")
    with Admin(billing.runtime) as admin:
        assert admin.status().problems == []
    eventually(lambda: billing.verify().backlog == 0)


@pytest.fixture
def settings() -> Settings:
    return Settings(redis_url="redis://here:6379", broker_url=None)


def app(**conf: Any) -> Celery:
    made = Celery("shop", broker="redis://here:6379/0", set_as_current=False)
    made.conf.update(conf)
    return made


@pytest.mark.parametrize(
    ("conf", "said"),
    [
        ({"broker_url": "redis://elsewhere:6379/0"}, "BILLING_BROKER_URL"),
        ({"broker_url": "redis://:secret@elsewhere:6379/0"}, "BILLING_BROKER_URL"),
        ({"accept_content": ["pickle"]}, "accept_content"),
        ({"broker_transport_options": {"visibility_timeout": 10}}, "visibility_timeout"),
        ({"task_soft_time_limit": 10}, "task_soft_time_limit"),
        ({"task_annotations": {"*": {"acks_late": False}}}, "acks_late"),
        ({"task_annotations": [{"billing.settle": {"rate_limit": "1/m"}}]}, "rate_limit"),
    ],
)
def test_settings_that_would_lose_or_double_money_are_refused(
    settings: Settings, conf: dict[str, Any], said: str
) -> None:
    with pytest.raises(BadSettings, match=said) as refused:
        billing_tasks.register(app(**conf), settings)
    assert "secret" not in str(refused.value)


@pytest.mark.parametrize("routes", [None, {"shop.*": {"queue": "s"}}, [{"shop.*": "s"}], lambda *_, **__: None])
def test_the_apps_own_routes_and_schedule_stay(settings: Settings, routes: Any) -> None:
    made = app(task_routes=routes, beat_schedule={"own": {"task": "shop.mail", "schedule": 1}})
    billing_tasks.register(made, settings)
    made.finalize()
    assert made.conf.beat_schedule["own"]["task"] == "shop.mail"
    assert made.amqp.router.route({}, "billing.settle")["queue"].name == "billing"
    own = "s" if routes and not callable(routes) else "celery"
    assert made.amqp.router.route({}, "shop.mail")["queue"].name == own
    task = made.tasks["billing.settle"]
    assert (task.acks_late, task.reject_on_worker_lost, task.serializer, task.ignore_result) == (
        True,
        True,
        "json",
        True,
    )
    assert set(made.amqp.queues.consume_from) == {"celery", "billing"}


def test_set_aside_works_on_other_transports() -> None:
    """kombu's own, in this process: what AMQP does is the same interface."""
    made = Celery("shop", broker="memory://", set_as_current=False)
    made.send_task("shop.mail", args=[1], queue="billing.foreign")
    assert foreign.count(made, "billing.foreign") == 1
    assert [one.task for one in foreign.look(made, "billing.foreign")] == ["shop.mail"]
    assert foreign.hand_back(made, "billing.foreign", "celery") == 1
    assert (foreign.count(made, "billing.foreign"), foreign.count(made, "celery")) == (0, 1)
    assert foreign.count(made, "never") == 0
