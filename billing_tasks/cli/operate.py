"""status, verify, reconcile, migrate: what an operator looks at."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Annotated

import typer
from rich.markup import escape

from billing_tasks.admin.incidents import worth_a_look
from billing_tasks.admin.types import GUARANTEES, Report
from billing_tasks.cli import incidents as telling
from billing_tasks.cli.options import AsJson
from billing_tasks.cli.process import admin, runtime
from billing_tasks.cli.show import command, console, err, facts, print_json, table

if TYPE_CHECKING:
    from billing_tasks.admin.status import Status
    from billing_tasks.admin.types import Behind, Watched


def status(as_json: AsJson = False) -> None:
    """Backlog and its age, open holds, dead letters, workers. Exit 1 if a server is away."""
    seen = admin().status()
    if as_json:
        print_json(seen.as_dict())
    else:
        _show_status(seen)
    if seen.problems:
        raise typer.Exit(1)


def _show_status(seen: Status) -> None:
    from billing_tasks.settings import redact

    settings = runtime().settings
    lines: list[tuple[str, object]] = [
        ("Redis", redact(settings.cache_url)),
        ("PostgreSQL", redact(settings.database_url)),
        ("broker", redact(settings.celery_broker_url)),
    ]
    if seen.redis is not None:
        lines.append(("events waiting", _waiting(seen.redis)))
        if seen.behind:
            lines.append(("mostly of", _behind(seen.behind)))
        lines.append(("open holds", seen.redis.open_holds))
    if seen.postgresql is not None:
        counts = {state.value: count for state, count in seen.postgresql.dead_letters.items()}
        lines += [
            ("dead letters", f"{counts['failed']} wait for a person, {counts['retrying']} are retried by themselves"),
            ("incidents", telling.counted(seen.incidents)),
        ]
    lines.append(("workers", ", ".join(seen.workers) if seen.workers else "none answered"))
    if seen.broker_waiting is not None:
        lines.append(("tasks waiting", f"{seen.broker_waiting:,} in queue {settings.queue}"))
    if any(seen.set_aside.values()):
        kept = ", ".join(f"{count:,} {where}" for where, count in seen.set_aside.items() if count)
        lines.append(("set aside", f"{kept} messages; see `{command()} foreign`"))
    console.print(facts(lines))
    for sentence in telling.told([one for one in seen.incidents if worth_a_look(one)]):
        console.print(f"  {sentence}", soft_wrap=True)
    for warning in seen.warnings:
        err.print(f"[yellow]warning[/] {escape(str(warning))}", soft_wrap=True)
    for problem in seen.problems:
        err.print(problem, style="red", soft_wrap=True)


def _waiting(seen: Watched) -> str:
    age = f", the oldest for {seen.oldest_ms / 1000:.1f} s" if seen.backlog else ""
    comes_back = f"; next try in {seen.next_try_ms / 1000:.0f} s" if seen.next_try_ms is not None else ""
    return f"{seen.backlog:,}{age}{comes_back}"


def _behind(users: list[Behind]) -> str:
    """Who is behind a backlog, by the oldest events of each shard."""
    return ", ".join(f"user {one.user_id} ({one.events:,} events, {one.quota:,} quota)" for one in users)


def verify(as_json: AsJson = False) -> None:
    """Check the guarantees over Redis and PostgreSQL. Exit 1 and a table of what is off, if anything is."""
    began = time.monotonic()
    report = admin().audit.verify()
    if as_json:
        print_json(report.as_dict())
    else:
        show_report(report, time.monotonic() - began)
    if not report.ok:
        raise typer.Exit(1)


def show_report(report: Report, seconds: float) -> None:
    """The verdict per guarantee, and what is off."""
    broken = {finding.guarantee for finding in report.findings}
    console.print(
        table(
            *("", "guarantee", "looked at"),
            rows=[
                ("BROKEN" if number in broken else "ok", f"{number}. {text}", report.checked.get(number, ""))
                for number, text in GUARANTEES.items()
                if number in report.checked
            ],
        )
    )
    for warning in report.warnings:
        err.print(f"[yellow]warning[/] {escape(str(warning))}", soft_wrap=True)
    if report.findings:
        console.print(
            table(
                *("guarantee", "what", "of", "expected", "actual"),
                rows=[(f.guarantee, f.what, f.id, f.expected, f.actual) for f in report.findings[:50]],
                right="expected actual",
            )
        )
        console.print(f"{len(report.findings)} findings. The runbook says what each means.")
    waiting = f"; {report.backlog:,} events and {report.open_holds:,} open holds on their way" if report.backlog else ""
    console.print(f"{'All guarantees hold' if report.ok else 'Guarantees are broken'} ({seconds:.1f} s){waiting}.")


def reconcile(
    repair: Annotated[
        bool, typer.Option("--repair", help="Make the repairs; without it they are only listed.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Compare Redis with PostgreSQL and the ledger with its sums; repair what is safe, which is Redis.

    The ledger is never touched. Exit 1 if something is off that a person has to look at, or was not repaired.
    """
    began = time.monotonic()
    done = admin().audit.reconcile(repair=repair)
    if as_json:
        print_json(done.as_dict())
    else:
        show_report(done.after, time.monotonic() - began)
        for one in done.repairs:
            console.print(f"{'repaired' if one in done.repaired else 'to repair'}: {one}")
        if done.repairs and not repair:
            console.print(f"{command()} reconcile --repair   makes these repairs; all of them are in Redis")
    if not done.after.ok:
        raise typer.Exit(1)


def migrate(
    change_layout: Annotated[
        bool,
        typer.Option(
            "--change-layout",
            help="Fill Redis by the BILLING_SHARDS and BILLING_SHARD_TAGS that are set now, and delete the keys of the "
            "layout before. Every other process must be stopped.",
        ),
    ] = False,
    change_ledger: Annotated[
        bool,
        typer.Option(
            "--change-ledger",
            help="Have Redis belong to this database, although it was another one's: a backup of before release 0.3.0, "
            "say. Every other process must be stopped.",
        ),
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Bring the database to this version's schema. Safe to repeat, safe to run from several machines."""
    from billing_tasks.settings import redact

    created = admin().migrate(change_layout=change_layout, change_ledger=change_ledger)
    if as_json:
        print_json({"migrated": True, "partitions_created": created})
        return
    console.print(f"The schema in {redact(runtime().settings.database_url)} is up to date.")
    settings = runtime().settings
    console.print(f"Redis is filled for {settings.shards} shards with {settings.shard_tags} tags.")
