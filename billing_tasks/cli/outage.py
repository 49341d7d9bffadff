"""outage: rehearse one. A server or process of `billing-tasks up` is stopped, and started again."""

from __future__ import annotations

from typing import Annotated

import typer

from billing_tasks.cli.show import command, console
from billing_tasks.cli.up import StateDir
from billing_tasks.lab.defaults import DEFAULT_STATE_DIR

app = typer.Typer(help="Stop a server or process of `up`, and start it again: to see what an outage looks like.")

Name = Annotated[str, typer.Argument(help="redis, postgresql, worker, beat or flower.", show_default=False)]


@app.command()
def stop(name: Name, state_dir: StateDir = DEFAULT_STATE_DIR) -> None:
    """Stop it; everything else goes on. Safe to repeat."""
    from billing_tasks.lab import outages

    outages.stop(state_dir, name)
    console.print(f"{name} is stopped. `{command()} status` shows it; `{command()} outage start {name}` ends it.")


@app.command()
def start(name: Name, state_dir: StateDir = DEFAULT_STATE_DIR) -> None:
    """Start it again; returns when it answers. Safe to repeat."""
    from billing_tasks.lab import outages

    outages.start(state_dir, name)
    console.print(f"{name} answers. `{command()} verify` says whether anything is missing.")
