"""metrics: what an alert is made of, for Prometheus. Read at the moment of each scrape; nothing is kept."""

from __future__ import annotations

import threading
from typing import Annotated

import typer

from billing_tasks.cli.process import runtime
from billing_tasks.cli.show import console


def metrics(
    port: Annotated[int | None, typer.Option(help="Serve /metrics on this port; without it, print them once.")] = None,
    address: Annotated[str, typer.Option(help="Where to listen.")] = "127.0.0.1",
) -> None:
    """Backlog, holds, dead letters, incidents as Prometheus metrics: printed once, or served with --port."""
    from prometheus_client import CollectorRegistry, generate_latest, start_http_server

    from billing_tasks.metrics import Watcher

    registry = CollectorRegistry()
    registry.register(Watcher(runtime()))
    if port is None:
        typer.echo(generate_latest(registry).decode(), nl=False)
        return
    start_http_server(port, addr=address, registry=registry)
    console.print(f"Metrics at http://{address}:{port}/metrics; Ctrl-C ends it.")
    threading.Event().wait()
