"""Real worker and Flower processes over a test's own servers."""

from __future__ import annotations

import base64
import json
import os
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import Billing

PASSWORD = "billing:secret"


def eventually(condition: Callable[[], Any], *, seconds: float = 30, what: str = "") -> Any:
    """The condition's value as soon as it is true; a failure naming `what` if it never is."""
    deadline = time.monotonic() + seconds
    while True:
        value = condition()
        if value:
            return value
        assert time.monotonic() < deadline, f"did not happen in {seconds} s: {what or condition}"
        time.sleep(0.05)


class Processes:
    """Celery processes of one test, stopped at its end."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.running: list[subprocess.Popen[bytes]] = []
        self.logs: list[Path] = []

    def celery(self, billing: Billing, name: str, *arguments: str, **environ: str) -> subprocess.Popen[bytes]:
        log = self.folder / f"{name}.log"
        self.logs.append(log)
        with log.open("wb") as output:
            process = subprocess.Popen(
                [sys.executable, "-m", "celery", "-A", "billing_tasks", *arguments],
                env={**os.environ, **billing.environment, **environ},
                stdout=output,
                stderr=subprocess.STDOUT,
                stdin=subprocess.DEVNULL,
            )
        self.running.append(process)
        return process

    def worker(self, billing: Billing, name: str = "w1", *arguments: str) -> subprocess.Popen[bytes]:
        """A worker with two children, ready to work."""
        options = ("-c", "2", "-n", f"{name}@%h", "--without-gossip", "--without-mingle", "--loglevel", "INFO")
        process = self.celery(billing, name, "worker", *options, *arguments)
        eventually(lambda: b" ready." in self.logs[-1].read_bytes(), what=f"worker {name} is ready")
        return process

    def stop(self) -> None:
        for process in self.running:
            process.terminate()
        for process in self.running:
            try:
                process.wait(20)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


@pytest.fixture
def processes(tmp_path: Path) -> Iterator[Processes]:
    """Starts workers. After a failure their logs are in the report."""
    made = Processes(tmp_path)
    yield made
    made.stop()
    for log in made.logs:
        print(f"--- {log.name}\n{log.read_text(errors='replace')[-60000:]}")


class Flower:
    """A real Flower with authentication, and its API."""

    def __init__(self, port: int) -> None:
        self.url = f"http://127.0.0.1:{port}"

    def call(self, path: str, body: object | None = None, *, password: str | None = PASSWORD) -> Any:
        request = urllib.request.Request(self.url + path, data=None if body is None else json.dumps(body).encode())
        if password:
            request.add_header("Authorization", "Basic " + base64.b64encode(password.encode()).decode())
        with urllib.request.urlopen(request, timeout=10) as response:
            return json.loads(response.read() or b"null")

    def tasks(self, **filters: str) -> dict[str, Any]:
        query = urllib.parse.urlencode(filters)
        return self.call(f"/api/tasks?{query}")  # type: ignore[no-any-return]

    def answers(self) -> bool:
        try:
            self.call("/api/task/types")
        except (urllib.error.URLError, OSError):
            return False
        return True


@pytest.fixture
def start_flower(processes: Processes) -> Callable[[Billing], Flower]:
    """Starts Flower for a Billing and waits until it answers."""

    def start(billing: Billing) -> Flower:
        with socket.socket() as listener:
            listener.bind(("127.0.0.1", 0))
            port = listener.getsockname()[1]
        arguments = ("flower", "--address=127.0.0.1", f"--port={port}")
        processes.celery(billing, "flower", *arguments, FLOWER_BASIC_AUTH=PASSWORD)
        flower = Flower(port)
        eventually(flower.answers, what="Flower answers")
        return flower

    return start
