"""Incidents in words: what may be missing, of which shards, and whose logs of which seconds know it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from typing import Annotated

import typer

from billing_tasks.admin.incidents import Cause, grouped, worth_a_look
from billing_tasks.admin.types import Incident
from billing_tasks.cli.options import AsJson, Cursor, Limit, Who, me
from billing_tasks.cli.process import admin
from billing_tasks.cli.show import console, print_json, table, tell_of_next

#: More shards than this are counted, not named.
MANY_SHARDS = 6


def incidents(
    shard: Annotated[int | None, typer.Option(help="Only of this shard.")] = None,
    limit: Limit = 100,
    cursor: Cursor = None,
    close: Annotated[
        list[int] | None, typer.Option(help="You have seen to this one, by its id; may be given several times.")
    ] = None,
    comment: Annotated[str, typer.Option(help="With --close: what was done about it.")] = "",
    actor: Who = None,
    as_json: AsJson = False,
) -> None:
    """Signs that events of an outbox were lost or came back, newest first; those of one cause are one line."""
    if close:
        closed = admin().incidents.close(close, actor=me(actor), comment=comment)
        if as_json:
            print_json({"closed": closed})
        else:
            console.print(f"Closed: {', '.join(map(str, closed)) or 'none; they were closed before, or do not exist'}.")
        return
    page = admin().incidents.find(shard=shard, cursor=cursor, limit=limit)
    if as_json:
        print_json([asdict(incident) for incident in page.rows])
    elif page.rows:
        console.print(table(*_COLUMNS, rows=map(_row, grouped(page.rows)), right="events"))
    else:
        console.print("No incidents.")
    tell_of_next(page)


_COLUMNS = ("id", "noticed (UTC)", "kind", "of", "events", "filed", "note")


def _row(cause: Cause) -> tuple[object, ...]:
    filed = "" if cause.unseen is None else f"{cause.unseen[0]:%F %T} to {cause.unseen[1]:%T}"
    note = f"closed; {cause.note}" if all(one.closed_at for one in cause.incidents) else cause.note
    return (_ids(cause), f"{cause.noticed_at:%F %T}", cause.kind, _shards(cause), cause.events, filed, note)


def _ids(cause: Cause) -> str:
    ids = sorted(incident.id for incident in cause.incidents)
    return str(ids[0]) if len(ids) == 1 else f"{ids[0]}-{ids[-1]}"


def counted(incidents: Sequence[Incident]) -> str:
    """One line for all of them."""
    if not incidents:
        return "none"
    lost = sum(map(worth_a_look, incidents))
    return f"{lost} with events that may be missing" if lost else "restarts of Redis, nothing missing"


def told(incidents: Sequence[Incident]) -> list[str]:
    """A sentence for each cause, newest first."""
    return [_in_words(cause) for cause in grouped(incidents)]


def _shards(cause: Cause) -> str:
    shards = cause.shards
    return f"{len(shards)} shards" if len(shards) > MANY_SHARDS else f"shard {', '.join(map(str, shards))}"


def _in_words(cause: Cause) -> str:
    of = f"{cause.events} events of {_shards(cause)}"
    if cause.kind == "rewind" and cause.unseen is None:
        return f"{of} came under numbers booked before, {cause.noticed_at:%F %T}; they are booked"
    if cause.unseen is None:
        return f"{of} are missing, noticed {cause.noticed_at:%F %T}"
    begin, end = cause.unseen
    return f"{of} are missing, and what was filed from {begin:%F %T} to {end:%T} may be ({cause.note})"
