"""status, verify, reconcile, migrate, log: what an operator looks at."""

from __future__ import annotations

import time
from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated, Any

import typer

from billing_tasks.cli import incidents as telling
from billing_tasks.cli.options import AsJson, Limit
from billing_tasks.cli.process import runtime
from billing_tasks.cli.show import command, console, err, facts, print_json, table
from billing_tasks.errors import BillingError
from billing_tasks.ledger.rows import Incident

if TYPE_CHECKING:
    from billing_tasks.flows.audit import verify as verifying


def status(as_json: AsJson = False) -> None:
    """Backlog and its age, open holds, dead letters, workers. Exit 1 if a server is away."""
    from billing_tasks.flows.audit.backlog import watch

    r = runtime()
    seen: dict[str, Any] = {}
    incidents: list[Incident] = []
    problems: list[str] = []
    try:
        seen["redis"] = asdict(r.run(watch(commands=r.commands)))
    except BillingError as exc:
        problems.append(exc.message)
    try:
        seen["dead_letters"] = {state.value: count for state, count in r.ledger.count_dead_letters().items()}
        incidents = r.ledger.incidents(limit=200)
        seen["incidents"] = [asdict(incident) for incident in incidents]
    except BillingError as exc:
        problems.append(exc.message)
    seen["workers"] = r.doorbell.workers()
    if as_json:
        print_json({**seen, "problems": problems})
    else:
        _show_status(seen, incidents, problems)
    if problems:
        raise typer.Exit(1)


def _show_status(seen: dict[str, Any], incidents: list[Incident], problems: list[str]) -> None:
    from billing_tasks.flows.audit.backlog import Watched
    from billing_tasks.settings import redact

    settings = runtime().settings
    lines: list[tuple[str, object]] = [
        ("Redis", redact(settings.cache_url)),
        ("PostgreSQL", redact(settings.database_url)),
        ("broker", redact(settings.celery_broker_url)),
    ]
    if "redis" in seen:
        watched = Watched(**seen["redis"])
        age = f", the oldest for {watched.oldest_ms / 1000:.1f} s" if watched.backlog else ""
        lines += [("events waiting", f"{watched.backlog:,}{age}"), ("open holds", watched.open_holds)]
    if "dead_letters" in seen:
        counts = seen["dead_letters"]
        lines += [
            ("dead letters", f"{counts['failed']} wait for a person, {counts['retrying']} are retried by themselves"),
            ("incidents", telling.counted(incidents)),
        ]
    workers = seen["workers"]
    lines.append(("workers", ", ".join(workers) if workers else "none answered"))
    console.print(facts(lines))
    for sentence in telling.told([one for one in incidents if telling.worth_a_look(one)]):
        console.print(f"  {sentence}", soft_wrap=True)
    for problem in problems:
        err.print(problem, style="red", soft_wrap=True)


def verify(as_json: AsJson = False) -> None:
    """Check the guarantees over Redis and PostgreSQL. Exit 1 and a table of what is off, if anything is."""
    from billing_tasks.flows.audit import verify as verifying

    r = runtime()
    began = time.monotonic()
    report = verifying.check(holds=r.holds, ledger=r.ledger)
    if as_json:
        print_json(report.as_dict())
    else:
        show_report(report, time.monotonic() - began)
    if not report.ok:
        raise typer.Exit(1)


def show_report(report: verifying.Report, seconds: float) -> None:
    """The verdict per guarantee, and what is off."""
    from billing_tasks.flows.audit import verify as verifying

    broken = {finding.guarantee for finding in report.findings}
    console.print(
        table(
            *("", "guarantee", "looked at"),
            rows=[
                ("BROKEN" if number in broken else "ok", f"{number}. {text}", report.checked.get(number, ""))
                for number, text in verifying.GUARANTEES.items()
                if number in report.checked
            ],
        )
    )
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
    from billing_tasks.flows.audit import reconcile as reconciling
    from billing_tasks.flows.audit import verify as verifying

    r = runtime()
    began = time.monotonic()
    report = verifying.check(holds=r.holds, ledger=r.ledger)
    wanted = list(dict.fromkeys(found.repair for found in report.findings if found.repair is not None))
    made = r.run(reconciling.repair(wanted, commands=r.commands, settings=r.settings)) if repair else []
    after = verifying.check(holds=r.holds, ledger=r.ledger) if made else report
    if as_json:
        said = {"repairs": [str(one) for one in wanted], "repaired": [str(one) for one in made]}
        print_json({**after.as_dict(), **said})
    else:
        show_report(after, time.monotonic() - began)
        for one in wanted:
            console.print(f"{'repaired' if one in made else 'to repair'}: {one}")
        if wanted and not repair:
            console.print(f"{command()} reconcile --repair   makes these repairs; all of them are in Redis")
    if not after.ok:
        raise typer.Exit(1)


def migrate(as_json: AsJson = False) -> None:
    """Bring the database to this version's schema. Safe to repeat, safe to run from several machines."""
    from billing_tasks.ledger.migrations import upgrade
    from billing_tasks.settings import redact

    settings = runtime().settings
    upgrade(settings.database_url)
    created = runtime().ledger.maintain_partitions()
    runtime().holds.check_layout(change=True)
    if as_json:
        print_json({"migrated": True, "partitions_created": created})
    else:
        console.print(f"The schema in {redact(settings.database_url)} is up to date.")


def log(
    user_id: Annotated[int | None, typer.Option("--user", help="Only this user's.")] = None,
    request_id: Annotated[str | None, typer.Option("--request", help="All that was booked for one request.")] = None,
    client_key: Annotated[str | None, typer.Option("--client-key", help="An id of the app's own.")] = None,
    limit: Limit = 20,
    as_json: AsJson = False,
) -> None:
    """The ledger's entries, newest first: consumes, releases, refunds, top-ups, adjustments."""
    ledger = runtime().ledger
    if request_id is not None:
        rows = ledger.entries_of(request_id)
    else:
        rows = ledger.entries(user_id=user_id, client_key=client_key, limit=limit)
    if as_json:
        print_json([asdict(row) for row in rows])
        return
    console.print(
        table(
            *("booked", "kind", "request", "user", "token", "model", "prompt", "completion", "quota", "remark"),
            rows=[
                (
                    f"{row.created_at:%m-%d %H:%M:%S}",
                    row.kind,
                    row.request_id,
                    row.user_id,
                    row.token_id,
                    row.model_name,
                    row.prompt_tokens or None,
                    row.completion_tokens or None,
                    row.user_quota or row.token_quota or row.quota,
                    row.content,
                )
                for row in rows
            ],
            right="user token prompt completion quota",
        )
    )
