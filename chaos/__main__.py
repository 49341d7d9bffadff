"""python -m chaos, which `make chaos` calls."""

from __future__ import annotations

import logging

import typer

from billing_tasks.cli.show import fail
from billing_tasks.errors import BillingError
from chaos.command import chaos


def main() -> None:
    """Run it; an error of ours is a sentence, not a traceback."""
    logging.basicConfig(level=logging.WARNING, format="%(levelname)s %(message)s")
    try:
        typer.run(chaos)
    except BillingError as exc:
        try:
            fail(exc)
        except typer.Exit as leave:
            raise SystemExit(leave.exit_code) from None


main()
