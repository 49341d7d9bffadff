"""What is loaded when: a door loads what it works with, and `--help` waits for no server's library."""

from __future__ import annotations

import subprocess
import sys

import pytest
import typer
from typer.main import get_command

from billing_tasks.cli import app
from billing_tasks.cli.commands import COMMANDS

STACK = {"alembic", "celery", "flower", "kombu", "prometheus_client", "psycopg", "redis", "sqlalchemy"}
#: What `demo`, `up` and `replay` do unless told otherwise is in their help.
LAB_IN_HELP = {"billing_tasks.lab", "billing_tasks.lab.defaults"}
#: Commands that have commands of their own, and one of each.
GROUPS = {"dead-letters": "list", "users": "create", "tokens": "create", "channels": "create"}


def loaded_by(program: str, *words: str) -> set[str]:
    """The modules of a process that ran this program, which must end well."""
    tell = "import atexit, sys; atexit.register(lambda: print(*sys.modules, file=sys.stderr))"
    command = [sys.executable, "-c", f"{tell}\n{program}", *words]
    return set(subprocess.run(command, capture_output=True, text=True, check=True).stderr.split())


def called(*words: str) -> set[str]:
    """The modules that the command line loads for these words."""
    return loaded_by("from billing_tasks.cli import main; main()", *words)


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


@pytest.mark.parametrize("room", ["types", "incidents", "paging"])
def test_what_admin_answers_with_loads_no_server(room: str) -> None:
    modules = loaded_by(f"import billing_tasks.admin.{room}")
    assert packages(modules) & STACK == set()
    assert rooms(modules) <= {"admin", "errors", "flows", "ledger", "model", "pricing"}


def helps() -> list[tuple[str, ...]]:
    """Every way to be told something without a server: of the whole, of each command, of one command of each group."""
    asked = [(), *((name,) for name in COMMANDS), *GROUPS.items()]
    return [("--version",), *((*words, "--help") for words in asked)]


@pytest.mark.parametrize("words", helps(), ids=" ".join)
def test_help_loads_no_stack(words: tuple[str, ...]) -> None:
    modules = called(*words)
    assert packages(modules) & STACK == set()
    assert rooms(modules) & {"client", "holds", "runtime", "settings", "worker"} == set()
    assert {module for module in modules if module.startswith("billing_tasks.lab")} <= LAB_IN_HELP


@pytest.mark.parametrize("words", ["--version", "--help"])
def test_the_list_of_commands_loads_no_command(words: str) -> None:
    ours = {module for module in called(words) if module.startswith("billing_tasks.cli")}
    assert ours == {"billing_tasks.cli", "billing_tasks.cli.commands"}


def test_a_command_loads_what_it_works_with_and_nothing_else() -> None:
    modules = called("price", "gpt-4o")
    assert packages(modules) & STACK == set()
    assert rooms(modules) & {"admin", "flows", "holds", "ledger", "runtime", "lab"} == set()


@pytest.mark.parametrize("name", COMMANDS)
def test_a_command_is_listed_as_its_own_help_begins(name: str) -> None:
    group = get_command(app)
    command = group.get_command(typer.Context(group), name)  # type: ignore[attr-defined]
    own = command.short_help or command.help
    assert (command.name, command.rich_help_panel) == (name, COMMANDS[name].panel)
    assert COMMANDS[name].line == " ".join(own.split("\n\n")[0].split())


def test_every_command_that_is_written_is_listed() -> None:
    group = get_command(app)
    assert group.list_commands(typer.Context(group)) == list(COMMANDS)  # type: ignore[attr-defined]
