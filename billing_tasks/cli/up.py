"""up: PostgreSQL, Valkey, worker, beat and Flower on this machine, until Ctrl-C."""

from __future__ import annotations

import shlex
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.panel import Panel
from rich.text import Text

from billing_tasks.cli.options import AsJson
from billing_tasks.cli.show import command, console, err, facts, print_json
from billing_tasks.lab.defaults import DEFAULT_STATE_DIR

if TYPE_CHECKING:
    from billing_tasks.lab.stack import Stack

SERVERS = "Servers"

StateDir = Annotated[
    Path,
    typer.Option("--state-dir", file_okay=False, rich_help_panel=SERVERS, help="Where data and logs are kept."),
]
Workers = Annotated[
    int, typer.Option("--workers", min=1, max=256, rich_help_panel=SERVERS, help="Processes of the Celery worker.")
]
FlowerPort = Annotated[
    int | None,
    typer.Option(
        min=1,
        max=65_535,
        rich_help_panel=SERVERS,
        show_default="5555, or a free one",
        help="Flower's port, on 127.0.0.1.",
    ),
]
WithFlower = Annotated[bool, typer.Option("--flower/--no-flower", rich_help_panel=SERVERS, help="Run Flower.")]


def up(
    state_dir: StateDir = DEFAULT_STATE_DIR,
    workers: Annotated[
        int, typer.Option("--workers", "--concurrency", min=1, max=256, help="Processes of the Celery worker.")
    ] = 2,
    flower_port: FlowerPort = None,
    flower: WithFlower = True,
    as_json: AsJson = False,
) -> None:
    """Run PostgreSQL, Valkey, a worker, beat and Flower on this machine until Ctrl-C.

    Opens no port but Flower's, on 127.0.0.1. The data stays in the state folder.
    """
    from billing_tasks.admin.schema import upgrade
    from billing_tasks.lab.parts import celery_parts
    from billing_tasks.lab.stack import Stack

    stack = Stack(
        state_dir,
        migrate=upgrade,
        progress=step,
        parts=lambda folder: celery_parts(folder, concurrency=workers, flower_port=flower_port, with_flower=flower),
    )
    # Once it is up, Ctrl-C is how it ends, however early it comes.
    with interruptible(), stack, suppress(KeyboardInterrupt):
        if as_json:
            print_json(described(stack))
        else:
            show_where(stack, "billing-tasks is up")
            console.print("Ctrl-C stops everything; the data stays.")
        stack.wait()


def step(sentence: str) -> None:
    """A line per step, with the seconds it took."""
    done = "(" in sentence  # what takes time is told when it is done, with its seconds
    err.print(Text.assemble(("✓ ", "green") if done else "  ", sentence), soft_wrap=True)


def described(stack: Stack) -> dict[str, Any]:
    """Where everything is, for machines."""
    return {"environment": stack.environment, **stack.describe().as_dict()}


def flower_notes(stack: Stack) -> dict[str, str] | None:
    """Flower's address, user and password; None if it does not run."""
    for part in stack.describe().parts:
        if part.name == "flower":
            return {**part.notes, "password": Path(part.notes["password_file"]).read_text().strip()}
    return None


def show_where(stack: Stack, title: str) -> None:
    """Where everything is, for people, and the lines that point another shell at it."""
    lines: list[tuple[str, object]] = []
    flower = flower_notes(stack)
    if flower:
        lines += [
            ("Flower", Text(flower["url"], style="bold")),
            ("", f"user {flower['user']}, password {flower['password']}"),
            ("", "without beat's tasks: /tasks?name=billing.settle OR name:billing.refund"),
        ]
    description = stack.describe()
    lines.append(("state", description.state_dir))
    lines.append(("logs", str(Path(description.parts[0].log_file).parent)))
    lines.append(("runs", ", ".join(f"{part.name} ({part.pid})" for part in description.parts)))
    console.print(Panel(facts(lines), title=title, title_align="left", expand=False))
    console.print(f"In another shell, so that your app and `{command()} status` use these servers:\n")
    # Outside the panel and never wrapped, so that they can be copied.
    for line in exports(stack):
        console.print(f"  {line}", soft_wrap=True, markup=False)
    console.print()


def exports(stack: Stack) -> list[str]:
    """The environment, as lines for a shell; the broker's address follows from the Redis address."""
    return [
        f"export {name}={shlex.quote(value)}"
        for name, value in stack.environment.items()
        if name != "BILLING_BROKER_URL"
    ]


@contextmanager
def interruptible() -> Iterator[None]:
    """Ctrl-C before it is up: everything is stopped by then; say so, without a traceback."""
    try:
        yield
    except KeyboardInterrupt:
        err.print("Stopped.")
        raise typer.Exit(130) from None
