"""The stack: starts in order, watches, stops in reverse, and never leaves anything running."""

from __future__ import annotations

import http.client
import json
import os
import signal
import socket
import stat
import sys
import textwrap
from base64 import b64encode
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from billing_tasks.lab.parts import FLOWER_PORT, Part, celery_parts, log_has
from billing_tasks.lab.problems import AlreadyRunning, PartDied, PortTaken, StartFailed
from billing_tasks.lab.servers import StateFolder
from billing_tasks.lab.stack import Stack

AllGone = Callable[[list[int]], bool]

SLEEPER = "import signal; print('awake', flush=True); signal.pause()"
STUBBORN = f"import signal; signal.signal(signal.SIGTERM, signal.SIG_IGN); {SLEEPER}"
PARENT_OF_STUBBORN = f"""
import subprocess, sys
child = subprocess.Popen([sys.executable, "-c", {STUBBORN!r}])
print("child", child.pid, flush=True)
child.wait()
"""

# What `billing-tasks up` does, in a process of its own: argv is the state folder and the part's program.
UP = """
import json, signal, sys
from billing_tasks.lab.parts import Part, log_has
from billing_tasks.lab.stack import Stack

def parts(state_dir):
    steps = ((signal.SIGTERM, 60.0),)
    return [Part("part", (sys.executable, "-c", sys.argv[2]), ready=log_has("awake"), stop_steps=steps)]

stack = Stack(sys.argv[1], parts=parts, fast=True, progress=print)
stack.run(lambda description: print(json.dumps(description.as_dict()), flush=True))
"""


@pytest.fixture(scope="module")
def state_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One folder for all of them: each test also shows that what the one before did to the stack is survived."""
    return tmp_path_factory.mktemp("stack") / "state"


def python_part(name: str, code: str, **others: Any) -> Part:
    return Part(name, (sys.executable, "-c", code), **{"ready": log_has("awake"), **others})


def running_pids(stack: Stack) -> list[int]:
    return [part.pid for part in stack.describe().parts if part.pid is not None]


def read_until(process: Any, wanted: str) -> str:
    """The first line with this text; whatever came instead is the failure's message."""
    seen: list[str] = []
    line: str
    for line in process.stdout:
        seen.append(line)
        if wanted in line:
            return line
    raise AssertionError("".join(seen))


def read_description(process: Any) -> dict[str, Any]:
    description: dict[str, Any] = json.loads(read_until(process, '"state_dir"'))
    return description


def test_parts_get_the_servers_addresses_after_the_migration(state_dir: Path) -> None:
    migrated: list[str] = []
    code = f"import os; print(os.environ['BILLING_REDIS_URL'], os.environ['BILLING_DATABASE_URL']); {SLEEPER}"
    with Stack(state_dir, parts=lambda _: [python_part("told", code)], migrate=migrated.append, fast=True) as stack:
        description = stack.describe()
        assert migrated == [description.database_url]
        log = Path(description.parts[-1].log_file).read_text()
        assert log.split("\n")[0] == f"{description.redis_url} {description.database_url}"
        assert [part.name for part in description.parts] == ["postgres", "valkey", "told"]


def test_everything_stops_in_reverse_order(state_dir: Path, all_gone: AllGone) -> None:
    steps: list[str] = []
    parts = [python_part(name, SLEEPER) for name in ("worker", "beat", "flower")]
    with Stack(state_dir, parts=lambda _: parts, fast=True, progress=steps.append) as stack:
        pids = running_pids(stack)
    assert [step.removeprefix("Stopping ") for step in steps if step.startswith("Stopping")] == [
        *("flower", "beat", "worker", "valkey", "postgres"),
    ]
    assert len(pids) == 5
    assert all_gone(pids)


def test_a_part_that_dies_is_reported_and_everything_else_stopped(state_dir: Path, all_gone: AllGone) -> None:
    stack = Stack(state_dir, parts=lambda _: [python_part("victim", f"print('last words'); {SLEEPER}")], fast=True)
    stack.start()
    pids = running_pids(stack)
    os.kill(pids[-1], signal.SIGKILL)
    with pytest.raises(PartDied, match=r"(?s)victim died.*ended by SIGKILL.*victim\.log:.*last words"):
        stack.wait()
    assert all_gone(pids)


def test_a_server_that_dies_is_reported_too(state_dir: Path, all_gone: AllGone) -> None:
    stack = Stack(state_dir, parts=lambda _: [python_part("part", SLEEPER)], fast=True)
    stack.start()
    pids = running_pids(stack)
    stack.servers.valkey.kill()
    with pytest.raises(PartDied, match="valkey died"):
        stack.wait()
    assert all_gone(pids)


def test_a_part_that_ends_while_starting_is_reported_with_its_exit_code(state_dir: Path, all_gone: AllGone) -> None:
    parts = [python_part("sound", SLEEPER), python_part("broken", "raise SystemExit('no luck today')")]
    with pytest.raises(StartFailed, match=r"(?s)broken did not start.*exit code 1.*no luck today"):
        Stack(state_dir, parts=lambda _: parts, fast=True).start()
    with StateFolder(state_dir) as state:  # the lock is free, and no process is left
        assert not list(state.folder("run").glob("*.pid"))


def test_a_part_that_never_answers_is_stopped(state_dir: Path) -> None:
    mute = python_part("mute", SLEEPER, ready=log_has("something else"), ready_seconds=0.5)
    with pytest.raises(StartFailed, match=r"(?s)mute does not answer in time.*awake"):
        Stack(state_dir, parts=lambda _: [mute], fast=True).start()


def test_a_program_that_is_not_there_is_reported(state_dir: Path) -> None:
    with pytest.raises(StartFailed, match=r"(?s)exit code 127.*/nowhere/program could not be started"):
        Stack(state_dir, parts=lambda _: [Part("lost", ("/nowhere/program",), ready=log_has("x"))], fast=True).start()


def test_a_migration_that_fails_stops_the_servers(state_dir: Path) -> None:
    def migrate(_database_url: str) -> None:
        raise ValueError("no such revision")

    with pytest.raises(ValueError, match="no such revision"):
        Stack(state_dir, migrate=migrate, fast=True).start()
    with Stack(state_dir, fast=True) as stack:  # and the next start works
        assert stack.servers.postgres.is_running


def test_signal_handlers_are_restored(state_dir: Path) -> None:
    before = signal.getsignal(signal.SIGTERM)
    with Stack(state_dir, fast=True):
        assert signal.getsignal(signal.SIGTERM) != before
    assert signal.getsignal(signal.SIGTERM) == before


def test_grandchildren_are_stopped_with_their_part(state_dir: Path, all_gone: AllGone) -> None:
    part = python_part("family", PARENT_OF_STUBBORN)
    with Stack(state_dir, parts=lambda _: [part], fast=True) as stack:
        log = Path(stack.describe().parts[-1].log_file).read_text()
        grandchild = int(log.split("child ")[1].split()[0])
    assert all_gone([grandchild])


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_stop_signal_stops_everything_and_is_no_error(
    number: signal.Signals, state_dir: Path, spawn_parent: Any, all_gone: AllGone
) -> None:
    parent = spawn_parent(UP, state_dir, SLEEPER)
    pids = [part["pid"] for part in read_description(parent)["parts"]]
    parent.send_signal(number)
    output, _ = parent.communicate(timeout=20)
    assert parent.returncode == 0, output
    assert all_gone(pids)


def test_a_second_interrupt_does_not_wait_for_a_stubborn_part(
    state_dir: Path, spawn_parent: Any, all_gone: AllGone
) -> None:
    parent = spawn_parent(UP, state_dir, STUBBORN)
    pids = [part["pid"] for part in read_description(parent)["parts"]]
    parent.send_signal(signal.SIGINT)
    read_until(parent, "Stopping part")
    parent.send_signal(signal.SIGINT)
    parent.communicate(timeout=20)
    assert parent.returncode == 0
    assert all_gone(pids)


def test_an_interrupt_while_starting_leaves_nothing_running(
    state_dir: Path, spawn_parent: Any, family: Callable[[int], list[int]], all_gone: AllGone
) -> None:
    parent = spawn_parent(UP, state_dir, "import signal; signal.pause()")  # never writes that it is awake
    read_until(parent, "migrated")
    pids = family(parent.pid)
    parent.send_signal(signal.SIGINT)
    output, _ = parent.communicate(timeout=20)
    assert "KeyboardInterrupt" in output
    assert all_gone(pids)


def test_a_second_up_in_one_folder_names_the_firsts_pid(state_dir: Path, spawn_parent: Any) -> None:
    parent = spawn_parent(UP, state_dir, SLEEPER)
    read_description(parent)
    with pytest.raises(AlreadyRunning, match=rf"already \(pid {parent.pid}\)"):
        Stack(state_dir).start()
    assert parent.poll() is None


def test_a_port_that_was_asked_for_and_is_taken_is_told_before_anything_starts(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        taken = listener.getsockname()[1]

        def parts(folder: Path) -> Sequence[Part]:
            return celery_parts(folder, flower_port=taken)

        with pytest.raises(PortTaken, match=rf"Port {taken} .* Address already in use"):
            Stack(tmp_path / "state", parts=parts, fast=True).start()
    assert not (tmp_path / "state" / "logs" / "postgres.log").exists()


def test_flowers_usual_port_is_replaced_if_it_is_taken(tmp_path: Path) -> None:
    try:
        listener = socket.create_server(("127.0.0.1", FLOWER_PORT))
    except OSError:  # another program has it already, which is what we want
        listener = socket.socket()
    with listener:
        flower = celery_parts(tmp_path)[-1]
    assert not flower.notes["url"].endswith(f":{FLOWER_PORT}")


def test_flowers_password_is_kept_and_only_ours_to_read(tmp_path: Path) -> None:
    first, second = celery_parts(tmp_path)[-1], celery_parts(tmp_path)[-1]
    file = Path(first.notes["password_file"])
    assert first.environ == second.environ == {"FLOWER_BASIC_AUTH": f"billing:{file.read_text().strip()}"}
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    assert file.read_text().strip() not in " ".join(first.argv)


def test_a_real_worker_beat_and_flower_start_and_stop(
    state_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, all_gone: AllGone
) -> None:
    (tmp_path / "tiny_app.py").write_text(
        textwrap.dedent("""
        import os
        from celery import Celery
        app = Celery("tiny", broker=os.environ["BILLING_BROKER_URL"])
        """)
    )
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))

    def parts(folder: Path) -> Sequence[Part]:
        return celery_parts(folder, app="tiny_app", concurrency=1)

    with Stack(state_dir, parts=parts, fast=True) as stack:
        pids = running_pids(stack)
        flower = stack.describe().parts[-1]
        login = f"{flower.notes['user']}:{Path(flower.notes['password_file']).read_text().strip()}"
        answers = {
            name: get_status(flower.notes["url"], headers)
            for name, headers in {
                "with": {"Authorization": f"Basic {b64encode(login.encode()).decode()}"},
                "without": {},
            }.items()
        }
    assert answers == {"with": 200, "without": 401}
    assert len(pids) == 5
    assert all_gone(pids)


def get_status(url: str, headers: dict[str, str]) -> int:
    connection = http.client.HTTPConnection(url.removeprefix("http://"), timeout=10)
    try:
        connection.request("GET", "/workers", headers=headers)
        return connection.getresponse().status
    finally:
        connection.close()
