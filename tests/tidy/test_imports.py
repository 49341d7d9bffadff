"""What is loaded when: a door loads what it works with, and who only asks for help waits for no server's library."""

from __future__ import annotations

import subprocess
import sys

import pytest

STACK = {"alembic", "celery", "flower", "kombu", "prometheus_client", "psycopg", "redis", "sqlalchemy"}


def loaded_by(program: str, *words: str) -> set[str]:
    """The modules of a process that ran this program, which must end well."""
    tell = "import atexit, sys; atexit.register(lambda: print(*sys.modules, file=sys.stderr))"
    command = [sys.executable, "-c", f"{tell}\n{program}", *words]
    return set(subprocess.run(command, capture_output=True, text=True, check=True).stderr.split())


def packages(modules: set[str]) -> set[str]:
    return {module.partition(".")[0] for module in modules}


def rooms(modules: set[str]) -> set[str]:
    """Which rooms of ours are among them."""
    return {module.split(".")[1] for module in modules if module.startswith("billing_tasks.")}


def test_the_bare_package_loads_nothing() -> None:
    modules = loaded_by("import billing_tasks; billing_tasks.__version__")
    assert rooms(modules) == set()
    assert packages(modules) - sys.stdlib_module_names <= {"billing_tasks", "__main__", *packages(loaded_by("pass"))}
    assert len(modules - loaded_by("import importlib, typing")) <= 2, "the package and nothing else"


@pytest.mark.parametrize("door", ["Bookkeeper", "AsyncBookkeeper", "Accounts"])
def test_a_door_loads_no_command_line_no_migrations_and_no_celery(door: str) -> None:
    modules = loaded_by(f"from billing_tasks import {door}")
    assert packages(modules) & {"alembic", "celery", "flower", "kombu", "prometheus_client", "rich", "typer"} == set()
    assert rooms(modules) & {"cli", "lab", "metrics", "worker"} == set()


@pytest.mark.parametrize("name", ["ConsumeLog", "Price", "Receipt", "Reservation"])
def test_data_loads_no_server(name: str) -> None:
    modules = loaded_by(f"from billing_tasks import {name}")
    assert packages(modules) & STACK == set()
    assert rooms(modules) <= {"errors", "model", "pricing"}


@pytest.mark.parametrize("door", ["Bookkeeper", "AsyncBookkeeper"])
def test_a_bookkeeper_loads_celery_when_it_is_made_and_not_in_its_first_request(door: str) -> None:
    assert "celery" in packages(loaded_by(f"from billing_tasks import {door}; {door}.from_settings()"))


def test_accounts_never_load_celery() -> None:
    modules = loaded_by("from billing_tasks import Accounts; Accounts.from_settings().close()")
    assert packages(modules) & {"celery", "kombu"} == set()
