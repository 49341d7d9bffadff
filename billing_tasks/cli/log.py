"""log: what the ledger booked."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from dataclasses import asdict
from datetime import UTC, datetime
from typing import Annotated

import typer
from rich.text import Text

from billing_tasks.admin.types import OPEN, DeadLetterFilter, EntryRow, Page
from billing_tasks.cli.options import AsJson, Cursor, Limit
from billing_tasks.cli.process import admin
from billing_tasks.cli.show import command, console, err, print_json, table, tell_of_next
from billing_tasks.model.validation import check_moment


def log(
    user_id: Annotated[int | None, typer.Option("--user", help="Only this user's.")] = None,
    token_id: Annotated[int | None, typer.Option("--token", help="Only this token's.")] = None,
    request_id: Annotated[str | None, typer.Option("--request", help="All that was booked for one request.")] = None,
    client_key: Annotated[str | None, typer.Option("--client-key", help="An id of the app's own.")] = None,
    kinds: Annotated[
        list[str] | None, typer.Option("--kind", help="consume, release, refund, topup, adjust; repeatable.")
    ] = None,
    since: Annotated[
        str | None, typer.Option(help="Since then: 2h ago (s, m, h, d), or 2026-11-23T10:00 (UTC).")
    ] = None,
    before: Annotated[str | None, typer.Option(help="Before then; as --since.")] = None,
    limit: Limit = 20,
    cursor: Cursor = None,
    as_json: AsJson = False,
) -> None:
    """The ledger's entries, newest first: consumes, releases, refunds, top-ups, adjustments.

    With --request alone: all that was booked for it, oldest first. What could not be booked under a --request or
    --client-key is told as well; it is among the dead letters.
    """
    entries = admin().entries
    if request_id is not None and not any((user_id, token_id, client_key, kinds, since, before, cursor)):
        page = Page(entries.of_request(request_id), None)
    else:
        now = datetime.now(UTC)
        page = entries.find(
            cursor=cursor,
            limit=limit,
            user_id=user_id,
            token_id=token_id,
            request_id=request_id,
            client_key=client_key,
            kinds=kinds or (),
            since=None if since is None else check_moment("--since", since, now=now),
            before=None if before is None else check_moment("--before", before, now=now),
        )
    if as_json:
        print_json([asdict(row) for row in page.rows])
    else:
        _show(page.rows)
    tell_of_next(page)
    if cursor is None and (request_id is not None or client_key is not None):
        _tell_of_dead_letters(request_id, client_key)


#: Of so many dead letters each has a line of its own.
_DEAD_LETTERS = 5


def _tell_of_dead_letters(request_id: str | None, client_key: str | None) -> None:
    """What was refused, and is not in the ledger therefore; on stderr, so that --json stays one document."""
    wanted = DeadLetterFilter(states=OPEN)
    options = ""
    if request_id is not None:
        wanted["request_ids"], options = [request_id], f" --request {shlex.quote(request_id)}"
    if client_key is not None:
        wanted["client_keys"], options = [client_key], f"{options} --client-key {shlex.quote(client_key)}"
    found = admin().dead_letters.find(limit=_DEAD_LETTERS, **wanted)
    for one in found.rows:
        reason = f"Not booked: {one.kind} of request {one.request_id}, {one.reason}."
        err.print(Text(f"{reason} {command()} dead-letters show {one.id}"), soft_wrap=True)
    if found.next is not None:
        err.print(Text(f"And more: {command()} dead-letters list{options}"), soft_wrap=True)


#: Narrower than this, a request's id in one line leaves room for no more than what its balance did.
_WIDE = 130


def _show(rows: Sequence[EntryRow]) -> None:
    wide = console.width >= _WIDE
    names = ["time (UTC)", "kind", "request", "user", "quota"]
    if wide:
        names = [*names[:4], "token", "model", "prompt", "completion", "quota", "remark"]
    cells = [_cells(row, "%m-%d %H:%M:%S" if wide else "%m-%d %H:%M") for row in rows]
    console.print(
        table(
            *names,
            rows=[[row[name] for name in names] for row in cells],
            right="user token prompt completion quota",
        )
    )
    if rows and not wide:
        err.print(f"Token, model, counts and remark: --json, or a terminal of {_WIDE} columns.")


def _cells(row: EntryRow, time: str) -> dict[str, object]:
    change = row.user_quota or row.token_quota
    return {
        "time (UTC)": row.used_at.strftime(time),
        "kind": row.kind,
        "request": row.request_id,
        "user": row.user_id,
        "token": row.token_id,
        "model": row.model_name,
        "prompt": row.prompt_tokens or None,
        "completion": row.completion_tokens or None,
        "quota": f"{change:+,}" if change else "0",  # as the balance changed: a release changes nothing
        "remark": row.content,
    }
