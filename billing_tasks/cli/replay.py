"""replay: a trace of LLM traffic against the configured servers."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from billing_tasks.cli import traffic
from billing_tasks.cli.options import AsJson
from billing_tasks.cli.show import print_json
from billing_tasks.cli.traffic import Traffic, quietly_interrupted, show_replay

TraceFile = Annotated[
    Path,
    typer.Argument(metavar="TRACE.csv", show_default=False, help="Lines of TIMESTAMP,ContextTokens,GeneratedTokens."),
]


def replay(
    trace: TraceFile,
    users: traffic.Users = 50,
    models: traffic.Models = "",
    fail_rate: traffic.FailRate = 0.03,
    abandon_rate: traffic.AbandonRate = 0.01,
    hold_ttl: traffic.HoldTtl = 5,
    concurrency: traffic.Concurrency = 0,
    processes: traffic.Processes = 1,
    speed: traffic.Speed = 0.0,
    seed: traffic.Seed = 1,
    settle_timeout: traffic.SettleTimeout = 120.0,
    mix: traffic.Mix = False,
    export: traffic.Export = None,
    as_json: AsJson = False,
) -> None:
    """Replay a trace of LLM requests as gateway traffic and check how each request ended.

    Uses the servers that BILLING_* names; a worker and beat must be running.

    Makes users and tokens of its own, some poor, so that some requests are refused.

    Exit 1 unless every request ended exactly once, and as the gateway was told.
    """
    from billing_tasks.lab.replay.options import Options, parse_mix
    from billing_tasks.lab.replay.run import replay as run_replay
    from billing_tasks.lab.trace import read_trace
    from billing_tasks.settings import load_settings

    options = Options(
        users=users,
        models=parse_mix(models) if models else (),
        mix=mix,
        fail_rate=fail_rate,
        abandon_rate=abandon_rate,
        hold_ttl_seconds=hold_ttl,
        concurrency=concurrency,
        processes=processes,
        speed=speed,
        seed=seed,
        settle_timeout_seconds=settle_timeout,
    )
    rows = read_trace(trace)
    settings = load_settings()
    with quietly_interrupted(), Traffic() as shown:
        report = run_replay(rows, options, settings=settings, audience=shown, export_to=export)
    if as_json:
        print_json(report.as_dict())
    else:
        show_replay(report)
    if not report.ok:
        raise typer.Exit(1)
