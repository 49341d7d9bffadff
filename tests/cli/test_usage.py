"""usage: sums by the time of use, in a table, as CSV and as JSON."""

from __future__ import annotations

import csv
import io
import json
from datetime import UTC, datetime

import pytest

from billing_tasks import ConsumeLog, errors
from billing_tasks.admin import Admin
from billing_tasks.cli import show
from billing_tasks.model.ids import new_request_id
from tests.cli.test_cli import run
from tests.conftest import CHANNEL, Billing, Payer

__all__ = ["run"]

NOVEMBER = datetime(2026, 11, 1, tzinfo=UTC)


def used(billing: Billing, payer: Payer, quota: int, *, model: str = "gpt-4o", at: datetime | None = None) -> str:
    request_id = new_request_id()
    moment = {} if at is None else {"used_at_ms": int(at.timestamp() * 1000)}
    billing.bk.consume(
        ConsumeLog(
            user_id=payer[0],
            token_id=payer[1],
            channel_id=CHANNEL,
            quota=quota,
            model_name=model,
            **{"request_id": request_id, "prompt_tokens": 10, "completion_tokens": 5, **moment},
        )
    )
    return request_id


@pytest.fixture
def books(billing: Billing) -> tuple[Payer, Payer]:
    """Two users; usage of two models and two days, one of it given back in part, and a hold that was released."""
    first, second = billing.payer(), billing.payer()
    used(billing, first, 100, at=NOVEMBER.replace(day=3))
    refunded = used(billing, first, 1000, model="claude", at=NOVEMBER.replace(day=4))
    used(billing, second, 7, at=NOVEMBER.replace(day=4, hour=23, minute=59))
    billing.bk.refund_quota(billing.reserve(first, 50))
    billing.settle()
    billing.bk.refund_charge(user_id=first[0], request_id=refunded, quota=400, refund_id="case-1")
    billing.settle()
    return first, second


def test_sums_are_of_what_was_used_and_of_what_was_given_back(billing: Billing, books: tuple[Payer, Payer]) -> None:
    entries = Admin(billing.runtime).entries
    by_model = [(row.key, row.requests, row.charged, row.refunded, row.net) for row in entries.usage("model")]
    assert by_model == [("claude", 1, 1000, 400, 600), ("gpt-4o", 2, 107, 0, 107)]
    assert [(row.key, row.net) for row in entries.usage("user")] == [(str(books[0][0]), 700), (str(books[1][0]), 7)]
    assert [row.key for row in entries.usage("token")] == [str(token_id) for _, token_id in books]
    (channel,) = entries.usage("channel")
    assert (channel.requests, channel.prompt_tokens, channel.completion_tokens) == (3, 30, 15)
    spent = sum(1_000_000 - billing.accounts.user(user_id).quota for user_id, _ in books)
    assert channel.net == spent == 707


def test_days_are_those_of_use_and_not_of_booking(billing: Billing, books: tuple[Payer, Payer]) -> None:
    entries = Admin(billing.runtime).entries
    by_day = [(row.key, row.charged) for row in entries.usage("day", before=NOVEMBER.replace(day=5))]
    assert by_day == [("2026-11-03", 100), ("2026-11-04", 1007)]
    since = entries.usage("day", since=NOVEMBER.replace(day=4), before=NOVEMBER.replace(day=4, hour=12))
    assert [(row.key, row.charged) for row in since] == [("2026-11-04", 1000)]
    assert [row.key for row in entries.usage("model", user_id=books[1][0])] == ["gpt-4o"]
    assert len(entries.usage("model", limit=1)) == 1


def test_what_is_no_question_is_refused(billing: Billing) -> None:
    entries = Admin(billing.runtime).entries
    with pytest.raises(errors.InvalidRequest, match="model, user, token, channel, day"):
        entries.usage("week")  # type: ignore[arg-type]
    with pytest.raises(errors.InvalidRequest, match="time zone"):
        entries.usage("day", since=datetime(2026, 11, 1))  # noqa: DTZ001


def test_the_command_line_shows_it_in_three_ways(  # type: ignore[no-untyped-def]
    run,
    billing: Billing,
    books: tuple[Payer, Payer],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(show.console, "width", 80)
    used(billing, books[0], 1, model="=cmd|' /C calc'!A0\x1b[2J")
    billing.settle()
    shown = run("usage", "--by", "model").output
    assert "in all" in shown
    assert "\x1b" not in shown
    assert max(map(len, shown.splitlines())) <= 80
    rows = list(csv.reader(io.StringIO(run("usage", "--csv").output)))
    assert rows[0] == [
        "model",
        "requests",
        "prompt_tokens",
        "completion_tokens",
        "charged",
        "refunded",
        "net",
        "corrected",
        "cost",
        "costed",
        "margin",
    ]
    assert rows[1] == ["claude", "1", "10", "5", "1000", "400", "600", "0", "0", "0", ""]
    assert rows[3][0].startswith("'=cmd")
    told = json.loads(run("usage", "--by", "day", "--before", "2026-11-04", "--json").output)
    assert told[0]["day"] == "2026-11-03"
    with pytest.raises(errors.InvalidRequest, match="summed up by"):
        run("usage", "--by", "week")
    with pytest.raises(errors.InvalidRequest, match="--since must be a time"):
        run("usage", "--since", "99999999999d")
