"""Real servers and real processes for the lab's tests: nothing here is mocked, and nothing outlives a test."""

from __future__ import annotations

import os
import pwd
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import psycopg
import pytest

from billing_tasks.flows.audit import verify
from billing_tasks.lab.demo import demo_parts, settings_of
from billing_tasks.lab.stack import Stack
from billing_tasks.ledger.migrations import upgrade
from billing_tasks.runtime import Runtime
from billing_tasks.settings import Settings

CHECKOUT = Path(__file__).resolve().parents[2]
GONE_SECONDS = 15.0

SpawnParent = Callable[..., subprocess.Popen[str]]


@pytest.fixture
def state_dir(tmp_path: Path) -> Path:
    return tmp_path / "state"


@pytest.fixture
def ordinary_folder() -> Iterator[Path]:
    """A folder of the user that `as_ordinary_user` runs as."""
    folder = Path(tempfile.mkdtemp(prefix="billing-test-"))
    if os.geteuid() == 0:
        nobody = pwd.getpwnam("nobody")
        os.chown(folder, nobody.pw_uid, nobody.pw_gid)
    yield folder
    shutil.rmtree(folder)


@pytest.fixture
def as_ordinary_user() -> tuple[str, ...]:
    """A command prefix: what follows runs as an ordinary user.

    As root that is `nobody`, with one extra right: to read what root can read,
    because Python and the checkout may be in root's closed home.
    """
    if os.geteuid() != 0:
        return ()
    nobody = pwd.getpwnam("nobody")
    identity = (f"--reuid={nobody.pw_uid}", f"--regid={nobody.pw_gid}", "--clear-groups")
    rights = (
        "--inh-caps=-all,+dac_read_search",
        "--ambient-caps=+dac_read_search",
        "--bounding-set=-all,+dac_read_search",
    )
    return ("setpriv", *identity, *rights)


@pytest.fixture
def spawn_parent() -> Iterator[SpawnParent]:
    """Run a script in a Python process of its own, as `billing-tasks up` would be; its output is a pipe."""
    started: list[subprocess.Popen[str]] = []

    def spawn(script: str, *arguments: object, prefix: tuple[str, ...] = (), **environ: str) -> subprocess.Popen[str]:
        process = subprocess.Popen(
            [*prefix, sys.executable, "-W", "error", "-c", script, *map(str, arguments)],
            env={**os.environ, "PYTHONPATH": str(CHECKOUT), "PYTHONUNBUFFERED": "1", **environ},
            cwd="/",
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        started.append(process)
        return process

    yield spawn
    for process in started:
        process.kill()
        process.communicate()


def fetch(url: str, statement: str) -> Any:
    """The first value that a statement answers with; None if it answers nothing."""
    with psycopg.connect(url, autocommit=True) as connection:
        cursor = connection.execute(statement)
        row = cursor.fetchone() if cursor.description else None
        return row[0] if row else None


@pytest.fixture
def sql() -> Callable[[str, str], Any]:
    return fetch


def family_of(pid: int) -> list[int]:
    """A process and everything below it."""
    children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    return [pid, *(member for child in children for member in family_of(int(child)))]


@pytest.fixture
def family() -> Callable[[int], list[int]]:
    if sys.platform != "linux":
        pytest.skip("the process tree is read from /proc")
    return family_of


def is_alive(pid: int) -> bool:
    """Whether it runs; a zombie that its parent has not waited for does not."""
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0]
    except (FileNotFoundError, ProcessLookupError):
        return False
    return state != "Z"


@pytest.fixture
def all_gone() -> Callable[[list[int]], bool]:
    """Wait until none of these processes runs; False if one still does after a while."""

    def wait(pids: list[int]) -> bool:
        deadline = time.monotonic() + GONE_SECONDS
        while any(map(is_alive, pids)) and time.monotonic() < deadline:
            time.sleep(0.01)
        return not any(map(is_alive, pids))

    return wait


@pytest.fixture(scope="module")
def stack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    """Real servers, a real worker, beat and Flower."""
    with Stack(
        tmp_path_factory.mktemp("stack") / "state",
        migrate=upgrade,
        parts=lambda folder: demo_parts(folder, workers=2, flower_port=None, with_flower=True),
        fast=True,
    ) as running:
        yield running


@pytest.fixture
def settings(stack: Stack) -> Iterator[Settings]:
    """The stack's settings; after each test every guarantee holds."""
    found = settings_of(stack)
    yield found
    with closing(Runtime(found)) as runtime:
        assert verify.check(holds=runtime.holds, ledger=runtime.ledger).findings == []
