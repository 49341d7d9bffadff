"""What `replay` and `demo` have in common: their options, how they show traffic, how they show its result."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Group, RenderableType
from rich.progress import BarColumn, Progress, SpinnerColumn, Task, TaskID, TextColumn
from rich.text import Text

from billing_tasks.cli.show import console, err, facts, shown, table, usd
from billing_tasks.lab.defaults import AT_A_SPEED, DEFAULT_MIX, FLAT_OUT

if TYPE_CHECKING:
    from billing_tasks.lab.replay.report import ReplayReport
    from billing_tasks.lab.replay.settled import Pending

TRAFFIC = "Traffic"

Users = Annotated[int, typer.Option(min=1, max=100_000, rich_help_panel=TRAFFIC, help="Users to make.")]
Models = Annotated[
    str,
    typer.Option(
        metavar="NAME=WEIGHT,...",
        rich_help_panel=TRAFFIC,
        show_default="some of today's",
        help="Models and how often each is asked.",
    ),
]
Mix = Annotated[
    bool,
    typer.Option("--mix", rich_help_panel=TRAFFIC, help="Answers with caches, reasoning, searches, images and audio."),
]
FailRate = Annotated[
    float,
    typer.Option(min=0, max=1, rich_help_panel=TRAFFIC, help="Share of requests whose upstream fails: refunded."),
]
AbandonRate = Annotated[
    float,
    typer.Option(min=0, max=1, rich_help_panel=TRAFFIC, help="Share of requests whose gateway dies: they expire."),
]
HoldTtl = Annotated[
    int, typer.Option(min=1, max=86_400, rich_help_panel=TRAFFIC, help="Seconds until an abandoned hold expires.")
]
Concurrency = Annotated[
    int,
    typer.Option(
        min=0,
        max=4096,
        rich_help_panel=TRAFFIC,
        show_default=f"{FLAT_OUT}; at a speed {AT_A_SPEED}",
        help="Requests in flight per process.",
    ),
]
Processes = Annotated[int, typer.Option(min=1, max=256, rich_help_panel=TRAFFIC, help="Gateway processes.")]
Speed = Annotated[
    float,
    typer.Option(min=0, rich_help_panel=TRAFFIC, help="1: the trace's clock; 60: an hour in a minute; 0: no waiting."),
]
Seed = Annotated[int, typer.Option(rich_help_panel=TRAFFIC, help="The same seed decides the same.")]
SettleTimeout = Annotated[
    float, typer.Option(min=0, rich_help_panel=TRAFFIC, help="Seconds to wait at the end until all is booked.")
]
Export = Annotated[
    Path | None,
    typer.Option(metavar="FILE.csv", dir_okay=False, help="Write how each request ended, a line per row of the trace."),
]

__all__ = ["DEFAULT_MIX", "Traffic", "quietly_interrupted", "show_replay"]

#: Without a terminal a long wait is still told, this often.
TELL_EVERY_SECONDS = 10.0


class _Bar(BarColumn):
    """A bar, for steps that count something."""

    def render(self, task: Task) -> RenderableType:  # type: ignore[override]
        return super().render(task) if task.fields["counts"] else ""


class Traffic:
    """Shows a replay on stderr: a bar on a terminal, a line per step elsewhere."""

    def __init__(self) -> None:
        self._progress = Progress(
            SpinnerColumn(finished_text="[green]✓"),
            TextColumn("{task.description}"),
            TextColumn("({task.elapsed:.1f} s)"),
            _Bar(bar_width=30),
            TextColumn("{task.fields[note]}", style="dim"),
            console=err,
        )
        self._task: TaskID | None = None
        self._told = time.monotonic()
        self._began = time.monotonic()

    def __enter__(self) -> Traffic:
        if err.is_terminal:
            self._progress.start()
        return self

    def __exit__(self, kind: object, *_: object) -> None:
        if kind is None:  # a step that was broken off is not done
            self._close_step()
        if err.is_terminal:
            self._progress.stop()

    def step(self, sentence: str) -> None:
        """The next thing begins; the one before is done."""
        self._close_step()
        self._began = self._told = time.monotonic()
        if err.is_terminal:
            self._task = self._progress.add_task(sentence, total=None, note="", counts=False)
        else:
            err.print(f"{sentence} …", soft_wrap=True)

    def _close_step(self) -> None:
        if self._task is not None:
            task = self._progress.tasks[self._task]
            total = task.total or 1
            note = task.fields["note"] if task.fields["counts"] else ""
            self._progress.update(self._task, total=total, completed=total, note=note)
            self._progress.stop_task(self._task)
            self._task = None

    def sent(self, done: int, of: int) -> None:
        """The bar moves."""
        rate = done / max(1e-3, time.monotonic() - self._began)
        if self._task is not None:
            note = f"{done:,} of {of:,}, {rate:,.0f}/s"
            self._progress.update(self._task, total=of, completed=done, note=note, counts=True)
        elif self._time_to_tell():
            err.print(f"  {done:,} of {of:,} sent, {rate:,.0f}/s", soft_wrap=True)

    def waiting(self, pending: Pending) -> None:
        """What is still on its way."""
        if self._task is not None:
            self._progress.update(self._task, note=str(pending))
        elif self._time_to_tell():
            err.print(f"  {pending}", soft_wrap=True)

    def _time_to_tell(self) -> bool:
        if time.monotonic() - self._told < TELL_EVERY_SECONDS:
            return False
        self._told = time.monotonic()
        return True


@contextmanager
def quietly_interrupted() -> Iterator[None]:
    """Ctrl-C during a replay is no error: say what becomes of what was sent."""
    try:
        yield
    except KeyboardInterrupt:
        err.print("Stopped. What was held expires by itself, what was consumed is booked.", soft_wrap=True)
        raise typer.Exit(130) from None


def show_replay(report: ReplayReport) -> None:
    """How the requests ended, and how fast."""
    console.print(Group(_outcomes(report), Text(), _figures(report)))
    if report.findings or report.not_ended:
        _show_findings(report)


def _outcomes(report: ReplayReport) -> RenderableType:
    rows: list[tuple[object, ...]] = [
        ("consumed", report.consumed, f"{report.quota_charged:,} quota = {usd(report.quota_charged)} charged"),
        (
            "refused",
            report.refused_in_all,
            ", ".join(f"{count:,} {reason}" for reason, count in report.refused.items()),
        ),
        ("refunded", report.refunded, "the upstream failed, the hold was released"),
        ("expired", report.expired, "the gateway died, the hold ran out"),
    ]
    if report.late:
        rows.append(("", "", f"{report.late:,} were consumed after their hold had expired, and charged all the same"))
    if report.not_ended:
        rows.append((Text("not ended", style="red"), report.not_ended, "see below"))
    made = table("ended", "requests", "", rows=rows, right="requests")
    made.add_section()
    made.add_row("in all", shown(report.requests), "each exactly once" if report.ok else "")
    return made


def _figures(report: ReplayReport) -> RenderableType:
    options = report.options
    pace = "as fast as possible" if not options.speed else f"at {options.speed:g} times the trace's clock"
    flight = f"{options.concurrency} in flight"
    if options.processes > 1:
        flight = f"{options.processes} processes with {flight} each"
    settled = (
        f"{report.outboxes_empty_seconds:.1f} s after the last request; "
        f"the last abandoned hold {report.settled_seconds:.1f} s after it"
    )
    clock = f"requests began p50 {report.behind_ms.p50:.1f} ms, p99 {report.behind_ms.p99:.1f} ms after their time"
    return facts(
        [
            ("throughput", f"{report.requests_per_second:,.0f} requests/s ({report.seconds:.1f} s, {flight}, {pace})"),
            *([("clock", clock)] if options.speed else []),
            ("reserve", f"p50 {report.reserve_ms.p50:.1f} ms, p99 {report.reserve_ms.p99:.1f} ms"),
            ("consume", f"p50 {report.consume_ms.p50:.1f} ms, p99 {report.consume_ms.p99:.1f} ms"),
            ("settled", settled),
            ("users", f"ids {report.first_user_id} to {report.last_user_id}, seed {options.seed}"),
        ]
    )


def _show_findings(report: ReplayReport) -> None:
    err.print(f"{len(report.findings):,} requests are not as they should be:", style="red")
    for finding in report.findings[:20]:
        err.print(Text(f"  {finding}"), soft_wrap=True)
    if len(report.findings) > 20:
        err.print(f"  and {len(report.findings) - 20:,} more (all of them with --json)")
