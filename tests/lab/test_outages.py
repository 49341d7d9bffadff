"""A person rehearses an outage: one server of `up` is stopped and started again by a command, the rest goes on."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from billing_tasks import Bookkeeper, Settings, errors
from billing_tasks.lab import outages
from billing_tasks.lab.problems import LabError, StartFailed
from billing_tasks.lab.processes import Program, Supervised
from billing_tasks.lab.servers.folders import StateFolder
from tests.worker.conftest import eventually

PROGRAM = [sys.executable, "-c", "from billing_tasks.cli import main; main()"]


class Broken(Supervised):
    """A process whose program is not there."""

    def prepare(self) -> Program:
        raise StartFailed("its program is not there")

    def answers(self) -> bool:
        return False


class Up:
    """`billing-tasks up` in one terminal, commands in another."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        kept = {name: value for name, value in os.environ.items() if name != "COLUMNS"}
        self.environment = {**kept, "COLUMNS": "200"}
        self.process = subprocess.Popen(
            [*PROGRAM, "up", "--no-flower", "--json"],
            cwd=folder,
            env=self.environment,
            stdout=subprocess.PIPE,
            text=True,
        )
        assert self.process.stdout is not None
        said = ""
        for line in self.process.stdout:
            said += line
            if line == "}\n":
                break
        self.environment |= json.loads(said)["environment"]

    def type(self, *words: str, status: int = 0) -> str:
        done = subprocess.run(
            [*PROGRAM, *words], cwd=self.folder, env=self.environment, capture_output=True, text=True, check=False
        )
        assert done.returncode == status, (words, done.stdout, done.stderr)
        return done.stdout + done.stderr

    def status(self, *, status: int = 0) -> dict[str, Any]:
        done = subprocess.run(
            [*PROGRAM, "status", "--json"], cwd=self.folder, env=self.environment, capture_output=True, check=False
        )
        assert done.returncode == status
        found: dict[str, Any] = json.loads(done.stdout)
        return found


@pytest.fixture(scope="module")
def up(tmp_path_factory: pytest.TempPathFactory, public_folder: Path | None) -> Iterator[Up]:
    running = Up(tmp_path_factory.mktemp("up"))
    try:
        running.type("users", "create", "--id", "42", "--quota", "100000")
        running.type("tokens", "create", "42", "--id", "7", "--unlimited")
        yield running
    finally:
        running.process.send_signal(signal.SIGINT)
        running.process.communicate(timeout=60)
    assert running.process.returncode == 0


def charge(up: Up, quota: int) -> None:
    urls = {name: up.environment[f"BILLING_{name.upper()}"] for name in ("redis_url", "database_url")}
    with Bookkeeper.from_settings(Settings(**urls)) as bk:  # type: ignore[arg-type]
        reservation = bk.pre_consume_quota(quota, user_id=42, token_id=7)
        bk.consume(reservation.log(channel_id=3, quota=quota))


def booked(up: Up) -> int:
    (user,) = json.loads(up.type("users", "list", "--json"))
    return int(user["used_quota"])


def test_redis_is_stopped_and_comes_back(up: Up) -> None:
    before = booked(up)
    charge(up, 10)
    said = up.type("outage", "stop", "redis")
    assert "redis is stopped" in said
    assert up.status(status=1)["problems"]
    with pytest.raises(errors.Unavailable):
        charge(up, 10)
    assert "redis is stopped" in up.type("outage", "stop", "redis"), "stopped once more, nothing happens"
    assert "redis answers" in up.type("outage", "start", "redis")
    charge(up, 10)
    eventually(lambda: booked(up) == before + 20, what="both are booked", seconds=60)
    assert "All guarantees hold" in up.type("verify")


def test_usage_waits_while_postgresql_or_the_worker_is_stopped(up: Up) -> None:
    before = booked(up)
    charge(up, 10)
    eventually(lambda: booked(up) == before + 10, seconds=60)
    up.type("outage", "stop", "worker")
    charge(up, 10)
    up.type("outage", "stop", "postgresql")
    charge(up, 10)
    seen = up.status(status=1)
    assert seen["redis"]["backlog"] == 2
    assert seen["behind"][0]["user_id"] == 42
    up.type("outage", "start", "postgresql")
    up.type("outage", "start", "worker")
    eventually(lambda: booked(up) == before + 30, what="all is booked", seconds=60)
    assert "All guarantees hold" in up.type("verify")
    assert up.process.poll() is None, "an outage that was asked for ends no `up`"


def test_what_can_not_be_stopped_is_told(up: Up, tmp_path: Path) -> None:
    assert "there are redis, postgresql, worker, beat, flower" in up.type("outage", "stop", "kafka", status=1)
    assert "runs no flower" in up.type("outage", "stop", "flower", status=1)
    assert "No `billing-tasks up` works in" in up.type(
        "outage", "stop", "redis", "--state-dir", str(tmp_path / "none"), status=1
    )
    assert "redis answers" in up.type("outage", "start", "redis"), "it runs: nothing to do"


def test_a_process_that_does_not_start_stays_stopped_and_the_rest_goes_on(tmp_path: Path) -> None:
    with StateFolder(tmp_path / "state") as state:
        worker = Broken("worker", log_file=state.log_file("worker"), pid_file=state.pid_file("worker"))
        worker.pid_file.touch()
        stack = outages.Outages(state)
        with ThreadPoolExecutor(1) as terminal:
            done = terminal.submit(outages.stop, state.path, "worker")
            eventually(lambda: stack.look([worker]), what="it is asked for")
            done.result(timeout=10)
            asked = terminal.submit(outages.start, state.path, "worker")
            eventually(lambda: stack.look([worker]), what="it is asked for")
            with pytest.raises(LabError, match=r"stays stopped. Its log: .*worker\.log"):
                asked.result(timeout=10)
        assert stack.is_meant(worker), "`up` does not end because of it"


def test_a_start_is_not_told_as_done_when_up_ends_meanwhile(tmp_path: Path) -> None:
    with ThreadPoolExecutor(1) as terminal:
        with StateFolder(tmp_path / "state") as state:
            state.pid_file("valkey").touch()
            file = state.pid_file("valkey").with_suffix(".outage")
            file.write_text("stopped")
            asked = terminal.submit(outages.start, state.path, "redis")
            eventually(lambda: file.read_text() == "start", what="it is asked for")
            outages.Outages(state).forget()
        with pytest.raises(outages.NotRunning, match="has ended"):
            asked.result(timeout=10)


def test_every_name_is_a_process_of_up() -> None:
    assert set(outages.NAMES.values()) == {"valkey", "postgres", "worker", "beat", "flower"}
