"""Growth: the same with a hundred times the users and with millions of entries, on one server, in turns.

    few         the size's users, no history
    users       many users, no history
    history     the size's users, some history over five months
    large       many users, much history

Also a new month: events dated in a month whose partition is empty, booked over a
connection that was opened while it was, beside the current month of `large`.
"""

from __future__ import annotations

import time
from contextlib import ExitStack
from datetime import UTC, datetime

from benchmarks.backlog import consume_all, date, file_backlog, make_events, make_logs, some_users
from benchmarks.clock import time_calls
from benchmarks.environment import Environment
from benchmarks.figures import MS, PER_SECOND, percentile
from benchmarks.opponents import posting
from benchmarks.population import first_of_month
from benchmarks.session import Session
from billing_tasks.model import events
from billing_tasks.model.events import Event

#: Months that the product has ready ahead of the current one; each is new only once.
MONTHS_AHEAD = 3


def measure(session: Session) -> None:
    """Drains, bare posting and the inline path on every environment; a new month on the large one."""
    size = session.size
    shapes = {
        "few": (size.users, 0),
        "users": (size.many_users, 0),
        "history": (size.users, size.some_entries),
        "large": (size.many_users, size.many_entries),
    }
    with ExitStack() as cleanup:
        environments = {}
        for name, (users, entries) in shapes.items():
            session.tell(f"  filling {name}: {users:,} users, {entries:,} entries")
            environments[name] = cleanup.enter_context(
                session.environment(f"bench_{name}", users=users, entries=entries)
            )
        for number in session.rounds():
            for name, environment in environments.items():
                users, entries = shapes[name]
                _measure(session, environment, name, f"{users:,} users, {entries:,} entries", users, number)
            if number < MONTHS_AHEAD:
                _new_month(session, environments["large"], size.many_users, number)


def _measure(session: Session, environment: Environment, name: str, label: str, users: int, number: int) -> None:
    note, count = session.book.add, max(100, session.size.events // 4)
    some = some_users(count, users, seed=number)
    note(f"growth.{name}.drain", f"drain: {label}", PER_SECOND, _rate(environment, make_events(environment, some)))
    waiting = make_events(environment, some)
    environment.settle_down()
    rate = count / posting.seconds_to_post(environment, waiting)
    note(f"growth.{name}.raw", f"batched SQL alone: {label}", PER_SECOND, rate)

    callers = some[: session.size.calls]
    environment.warm(callers)
    logs = make_logs(environment, callers)
    taken = time_calls(
        lambda log: environment.bk.pre_consume_quota(
            600, user_id=log.user_id, token_id=log.token_id, price=environment.price, request_id=log.request_id
        ),
        logs,
        1,
    )
    note(f"growth.{name}.reserve", f"reserve, p50: {label}", MS, percentile(taken, 50) / 1e6)
    consume_all(environment, [events.of_log(log) for log in logs])
    environment.drain()


def _new_month(session: Session, environment: Environment, users: int, number: int) -> None:
    count = max(100, session.size.events // 4)
    some = some_users(count, users, seed=100 + number)
    dated = make_events(environment, some)
    date(dated, first_of_month(datetime.now(UTC), number + 1))
    note = session.book.add
    note("growth.month.new", "drain into a new month", PER_SECOND, _rate(environment, dated))
    note(
        "growth.month.current",
        "drain into the current month",
        PER_SECOND,
        _rate(environment, make_events(environment, some)),
    )


def _rate(environment: Environment, waiting: list[Event]) -> float:
    file_backlog(environment, waiting)
    environment.settle_down()
    began = time.perf_counter()
    environment.drain()
    return len(waiting) / (time.perf_counter() - began)
