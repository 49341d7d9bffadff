"""The command line, `python -m chaos`: its options, what it shows meanwhile, and the report at the end."""

from __future__ import annotations

import shlex
import sys
import time
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Group
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.text import Text

from billing_tasks.cli.options import AsJson
from billing_tasks.cli.show import console, err, print_json, table
from billing_tasks.cli.up import interruptible
from chaos.options import FULL_MINUTES, RATE, Options
from chaos.report import ChaosReport
from chaos.run import Scene
from chaos.run import chaos as run_chaos
from chaos.settling import Pending

#: Without a terminal the run is told this often.
TELL_EVERY_SECONDS = 10.0


def chaos(
    minutes: Annotated[float, typer.Option(min=0.1, max=1440, help="How long the traffic lasts.")] = FULL_MINUTES,
    seed: Annotated[int, typer.Option(help="Decides the faults and the traffic.")] = 1,
    rate: Annotated[float, typer.Option(min=1, help="Requests per second that are tried for.")] = RATE,
    density: Annotated[float, typer.Option(min=0.1, max=10, help="2: twice as many faults in the same time.")] = 1.0,
    state_dir: Annotated[
        Path | None,
        typer.Option(
            file_okay=False, show_default="a temporary folder", help="Where data, logs and journals are kept."
        ),
    ] = None,
    report: Annotated[
        Path | None, typer.Option(metavar="FILE.md", dir_okay=False, help="Write the report as Markdown.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Inject faults into the whole stack under traffic: kill -9, freezes, cut connections, lost and repeated messages.

    Starts servers and processes of its own. At the end everything is settled and compared with what the gateways
    were told.

    Exit 0 only if nothing was lost, charged twice, leaked or overspent; otherwise the data is kept.
    """
    options = Options(minutes=minutes, seed=seed, rate=rate, density=density)
    words = ["python", "-m", "chaos", *sys.argv[1:]]
    with interruptible(), Shown() as shown:
        done = run_chaos(options, state_dir, audience=shown, command=shlex.join(words))
    if report is not None:
        report.write_text(done.as_markdown(), encoding="utf-8")
    if as_json:
        print_json(done.as_dict())
    else:
        show(done)
    if not done.ok:
        err.print(f"Data, logs and journals: {done.state_dir} (journals/, logs/)", soft_wrap=True)
        raise typer.Exit(1)


def show(done: ChaosReport) -> None:
    """The report on a terminal."""
    for title, heads, rows in done.tables():
        console.print(Text(f"\n{title}", style="bold cyan"))
        console.print(table(*heads, rows=rows, right="requests quota times restarts unasked"))
    for death in done.deaths():
        console.print(Text(f"\nEnded by itself: {death}", style="yellow"), soft_wrap=True)
    for finding in done.findings():
        console.print(Text(finding, style="red"), soft_wrap=True)
    console.print(Text(f"\n{done.conclusion()}", style="bold green" if done.ok else "bold red"), soft_wrap=True)


class Shown:
    """A run on stderr: live on a terminal, a line now and then elsewhere."""

    def __init__(self) -> None:
        self._live = Live(console=err, refresh_per_second=4)
        self._told = time.monotonic()

    def __enter__(self) -> Shown:
        if err.is_terminal:
            self._live.start()
        return self

    def __exit__(self, *_: object) -> None:
        if err.is_terminal:
            self._live.stop()

    def step(self, sentence: str) -> None:
        """The next thing begins."""
        self._told = time.monotonic()
        if err.is_terminal:
            self._live.update(Text(f"{sentence} …"))
        else:
            err.print(f"{sentence} …", soft_wrap=True)

    def scene(self, scene: Scene) -> None:
        """Time, requests, and the last faults."""
        figures = (
            f"{scene.seconds:5.0f} of {scene.of_seconds:.0f} s, {scene.requests:,} requests, {scene.faults:,} faults"
        )
        if err.is_terminal:
            bar = ProgressBar(total=scene.of_seconds, completed=scene.seconds, width=40)
            self._live.update(Group(Text(figures), bar, *(Text(line, style="dim") for line in scene.last)))
        elif self._time_to_tell():
            err.print(f"  {figures}; {scene.last[-1].strip() if scene.last else ''}", soft_wrap=True)

    def waiting(self, pending: Pending) -> None:
        """What is still on its way."""
        if err.is_terminal:
            self._live.update(Text(f"Waiting until all is settled: {pending}"))
        elif self._time_to_tell():
            err.print(f"  {pending}", soft_wrap=True)

    def _time_to_tell(self) -> bool:
        if time.monotonic() - self._told < TELL_EVERY_SECONDS:
            return False
        self._told = time.monotonic()
        return True
