"""demo: servers and workers on this machine, traffic through them, and the guarantees checked."""

from __future__ import annotations

import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.text import Text

from billing_tasks.cli import traffic, up
from billing_tasks.cli.operate import show_report
from billing_tasks.cli.options import AsJson
from billing_tasks.cli.show import command, console, err, facts, print_json
from billing_tasks.cli.traffic import Traffic, show_replay
from billing_tasks.lab.defaults import DEMO_STATE_DIR

if TYPE_CHECKING:
    from billing_tasks.lab.demo import DemoReport
    from billing_tasks.lab.flower import FlowerSeen
    from billing_tasks.lab.stack import Stack
    from billing_tasks.lab.trace import TraceRow

DEMO_REQUESTS = 2000

Requests = Annotated[
    int, typer.Option(min=1, max=10_000_000, help="Length of the generated trace, if there is no --trace.")
]
TraceOption = Annotated[
    Path | None, typer.Option(metavar="FILE.csv", help="Replay this trace instead of a generated one.")
]
SaveTrace = Annotated[
    Path | None, typer.Option(metavar="FILE.csv", dir_okay=False, help="Write the generated trace, for `replay`.")
]
KeepRunning = Annotated[
    bool, typer.Option("--keep", help="Leave everything running until Ctrl-C, to look at it in Flower.")
]


def demo(
    trace: TraceOption = None,
    requests: Requests = DEMO_REQUESTS,
    save_trace: SaveTrace = None,
    keep: KeepRunning = False,
    export: traffic.Export = None,
    as_json: AsJson = False,
    users: traffic.Users = 50,
    models: traffic.Models = traffic.DEFAULT_MIX,
    fail_rate: traffic.FailRate = 0.03,
    abandon_rate: traffic.AbandonRate = 0.01,
    hold_ttl: traffic.HoldTtl = 2,
    concurrency: traffic.Concurrency = 0,
    processes: traffic.Processes = 1,
    speed: traffic.Speed = 0.0,
    seed: traffic.Seed = 1,
    settle_timeout: traffic.SettleTimeout = 60.0,
    state_dir: up.StateDir = DEMO_STATE_DIR,
    workers: up.Workers = 2,
    flower_port: up.FlowerPort = None,
    flower: up.WithFlower = True,
) -> None:
    """Run everything on this machine, send traffic through it, check every guarantee.

    Starts PostgreSQL, Valkey, a worker, beat and Flower; nothing has to be installed.

    Exit 0 only if every request of the trace ended exactly once and every guarantee holds.
    """
    from billing_tasks.admin.schema import upgrade
    from billing_tasks.lab.demo import demo_parts, run_demo
    from billing_tasks.lab.replay.options import Options, parse_mix
    from billing_tasks.lab.replay.report import check_export
    from billing_tasks.lab.stack import Stack

    began = time.monotonic()
    options = Options(
        users=users,
        models=parse_mix(models),
        fail_rate=fail_rate,
        abandon_rate=abandon_rate,
        hold_ttl_seconds=hold_ttl,
        concurrency=concurrency,
        processes=processes,
        speed=speed,
        seed=seed,
        settle_timeout_seconds=settle_timeout,
    )
    rows = _trace(trace, requests, seed, save_trace)
    if export is not None:
        check_export(export)
    stack = Stack(
        state_dir,
        migrate=upgrade,
        progress=up.step,
        parts=lambda folder: demo_parts(folder, workers=workers, flower_port=flower_port, with_flower=flower),
    )
    err.print(f"Starting the servers, a worker, beat{' and Flower' if flower else ''} in {state_dir}", soft_wrap=True)
    with up.interruptible(), stack:
        with Traffic() as shown:
            report = run_demo(stack, rows, options, audience=shown, export_to=export)
        if keep:
            with suppress(KeyboardInterrupt):
                _show(report, rows, as_json=as_json, source=trace, keep=keep)
                _stay_up(stack, as_json=as_json)
    if not keep:
        _show(report, rows, as_json=as_json, source=trace, keep=keep)
        if not as_json:
            _next(report, time.monotonic() - began, state_dir)
    if not report.ok:
        raise typer.Exit(1)


def _trace(trace: Path | None, requests: int, seed: int, save_to: Path | None) -> list[TraceRow]:
    from billing_tasks.lab.trace import generate, read_trace, write_trace

    if trace is not None:
        return read_trace(trace)
    rows = generate(requests, seed=seed)
    if save_to is not None:
        write_trace(rows, save_to)
    return rows


def _stay_up(stack: Stack, *, as_json: bool) -> None:
    if not as_json:
        up.show_where(stack, "Still running")
        console.print("Ctrl-C stops everything; the data stays.")
    stack.wait()


def _heading(text: str) -> None:
    console.print(Text(f"\n{text}", style="bold cyan"))


def _show(report: DemoReport, rows: Sequence[TraceRow], *, as_json: bool, source: Path | None, keep: bool) -> None:
    if as_json:
        print_json(report.as_dict())
        return
    options = report.replay.options
    made = f"of {source}" if source else "made up in the shape of a real trace of LLM traffic"
    tokens = sum(row.context_tokens + row.generated_tokens for row in rows)
    _heading("Traffic")
    console.print(
        f"{len(rows):,} requests {made}, {tokens:,} tokens, {options.users} users, {len(options.models)} models.\n",
        soft_wrap=True,
    )
    show_replay(report.replay)
    _heading("Guarantees")
    show_report(report.verified, report.verify_seconds)
    if report.flower is not None:
        _show_flower(report.flower, keep=keep)
    console.print()


def _show_flower(seen: FlowerSeen, *, keep: bool) -> None:
    _heading("Flower")
    lines: list[tuple[str, object]] = [
        ("address", Text.assemble((seen.url, "bold"), "" if keep else "  (while it runs, see below)")),
        ("sign in", f"user {seen.user}, password {seen.password}"),
    ]
    if seen.problem:
        lines.append(("problem", seen.problem))
    else:
        lines.append(
            ("has seen", f"{seen.tasks:,} tasks, {seen.succeeded:,} of them succeeded; one books many requests")
        )
    if seen.request_id:
        lines.append(("for instance", f"{seen.task_name} {seen.task_id}, which names request {seen.request_id}"))
    console.print(facts(lines))


def _next(report: DemoReport, seconds: float, state_dir: Path) -> None:
    verdict = "Every request is accounted for." if report.ok else "Not everything is as it should be, see above."
    console.print(Text(f"{verdict} {seconds:.1f} s in all.", style="green" if report.ok else "red"))
    folder = f" --state-dir {state_dir}"
    again = "" if state_dir == DEMO_STATE_DIR else folder
    console.print("The servers are stopped now and the data is kept. Next:\n")
    console.print(
        facts(
            [
                (f"{command()} up{folder}", "run it again with this data, Flower included, for your own app"),
                (f"{command()} demo --keep{again}", "the same demo, and time to look around in Flower"),
                (f"{command()} demo --trace FILE.csv{again}", "a real trace"),
                (f"{command()} replay --help", "traffic against your own servers"),
            ]
        )
    )
