"""Run: a replay from its trace to its report, in the order in which things happen.

Killed on the way it leaves accounts that no other replay uses, holds that expire and
events that are booked; the next replay takes accounts of its own.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import closing
from pathlib import Path
from typing import Protocol

from billing_tasks.admin.accounts import Accounts
from billing_tasks.lab.replay.accounts import create_accounts, plan_accounts
from billing_tasks.lab.replay.endings import differences, endings_of
from billing_tasks.lab.replay.gateway_process import Pace
from billing_tasks.lab.replay.options import Options
from billing_tasks.lab.replay.plan import make_plan
from billing_tasks.lab.replay.processes import run_traffic
from billing_tasks.lab.replay.report import ReplayReport, check_export, export, make_report
from billing_tasks.lab.replay.requests import make_requests
from billing_tasks.lab.replay.settled import Pending, await_settled
from billing_tasks.lab.trace import TraceRow
from billing_tasks.pricing import PriceBook
from billing_tasks.runtime import Runtime
from billing_tasks.settings import Settings


class Audience(Protocol):
    """What follows a replay: a progress bar, plain lines, or nothing."""

    def step(self, sentence: str) -> None:
        """Something begins."""

    def sent(self, done: int, of: int) -> None:
        """So many requests are through."""

    def waiting(self, pending: Pending) -> None:
        """The traffic is through; this is still on its way."""


class NoAudience:
    """Nothing is shown."""

    def step(self, sentence: str) -> None:
        """Not heard."""

    def sent(self, done: int, of: int) -> None:
        """Not seen."""

    def waiting(self, pending: Pending) -> None:
        """Not seen."""


def replay(
    trace: Sequence[TraceRow],
    options: Options,
    *,
    settings: Settings,
    audience: Audience | None = None,
    export_to: Path | None = None,
) -> ReplayReport:
    """Replay the trace against the servers of `settings`. Raises NotSettled, ProcessDied or Unavailable."""
    audience = audience or NoAudience()
    if export_to is not None:
        check_export(export_to)
    plan = make_plan(trace, options)
    ratios = PriceBook(**settings.price_book)
    planned = plan_accounts(plan, options, lambda group, model: ratios.price(group=group, model=model))
    with closing(Runtime(settings)) as runtime:
        accounts = Accounts(runtime)
        audience.step(
            f"Creating {len(planned.users)} users, {len(planned.tokens)} tokens and {len(planned.channels)} channels"
        )
        ids = create_accounts(planned, accounts=accounts, connections=settings.database_connections)
        requests = make_requests(plan, ids, mix=options.seed if options.mix else None)
        audience.step(f"Sending {len(requests):,} requests")
        tally = run_traffic(
            requests,
            processes=min(options.processes, len(requests)),
            settings=settings,
            pace=Pace(options.concurrency, options.speed, options.hold_ttl_seconds),
            tick=lambda done: audience.sent(done, len(requests)),
        )
        audience.step("Waiting until all is booked")
        settlement = await_settled(
            requests,
            tally,
            runtime=runtime,
            accounts=accounts,
            timeout_seconds=options.settle_timeout_seconds,
            look=audience.waiting,
        )
    endings = endings_of(requests, tally, settlement.booked)
    if export_to is not None:
        export(export_to, requests, tally, endings)
    return make_report(
        requests,
        tally,
        endings,
        list(differences(requests, tally, settlement.booked)),
        options=options,
        outboxes_empty_seconds=settlement.outboxes_empty_seconds,
        settled_seconds=settlement.settled_seconds,
        first_user_id=ids.user,
    )
