"""spool: what this machine keeps because neither Redis nor PostgreSQL took it."""

from __future__ import annotations

from typing import Annotated

import typer

from billing_tasks.cli.options import AsJson
from billing_tasks.cli.process import runtime
from billing_tasks.cli.show import console, print_json, table
from billing_tasks.errors import BadSettings


def spool(
    send: Annotated[bool, typer.Option("--relay", help="Relay them now; gateways do it by themselves.")] = False,
    as_json: AsJson = False,
) -> None:
    """Events in BILLING_SPOOL_FOLDER of this machine, and --relay to hand them over now. Exit 1 if some are left."""
    from billing_tasks.client.relayer import relay

    r = runtime()
    if r.spool is None:
        raise BadSettings("BILLING_SPOOL_FOLDER is not set, so nothing is ever spooled on this machine.")
    done = relay(r) if send else None
    left = [(path, r.spool.read(path)) for path in [*r.spool.waiting(), *r.spool.set_aside()]]
    rows = [
        (event.kind, event.request_id, event.user_id, event.quota, path.suffix == ".refused")
        if event
        else ("", path.name, None, None, True)
        for path, event in left
    ]
    if as_json:
        names = ("kind", "request_id", "user_id", "quota", "refused")
        print_json(
            {
                "relayed": done.relayed if done else 0,
                "refused": done.refused if done else 0,
                "left": [dict(zip(names, row, strict=True)) for row in rows],
            }
        )
    else:
        if done:
            console.print(f"Relayed {done.relayed}, refused {done.refused} (kept as dead letters or set aside here).")
        if rows:
            shown = [(*row[:4], "refused, look at it" if row[4] else "waits") for row in rows]
            console.print(table("kind", "request", "user", "quota", "", rows=shown, right="user quota"))
        else:
            console.print(f"Nothing waits in {r.spool.folder}.")
    if rows:
        raise typer.Exit(1)
