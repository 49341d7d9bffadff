"""log: what the ledger booked."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from datetime import UTC, datetime
from typing import Annotated

import typer

from billing_tasks.admin.types import EntryRow, Page
from billing_tasks.cli.options import AsJson, Cursor, Limit
from billing_tasks.cli.process import admin
from billing_tasks.cli.show import console, print_json, table, tell_of_next
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

    With --request alone: all that was booked for it, oldest first.
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


def _show(rows: Sequence[EntryRow]) -> None:
    console.print(
        table(
            *("time (UTC)", "kind", "request", "user", "token", "model", "prompt", "completion", "quota", "remark"),
            rows=[
                (
                    f"{row.used_at:%m-%d %H:%M:%S}",
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
