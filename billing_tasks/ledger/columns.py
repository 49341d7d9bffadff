"""What makes an account row, and how a database row or PostgreSQL's JSON becomes one."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from typing import Any, Final

import msgspec
import sqlalchemy as sa

from billing_tasks.errors import InvalidRequest
from billing_tasks.ledger.models import Token, User
from billing_tasks.model.account import TokenRow, UserRow

_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)

USER: Final = (
    User.id,
    User.quota,
    User.used_quota,
    User.request_count,
    User.group_name,
    User.status,
    User.version,
)
TOKEN: Final = (
    Token.id,
    Token.user_id,
    Token.name,
    Token.remain_quota,
    Token.used_quota,
    Token.unlimited_quota,
    Token.status,
    sa.func.billing.milliseconds(Token.expires_at, type_=sa.BigInteger).label("expires_at_ms"),
    Token.version,
)

#: Which run of the server answers, as model.posting.ServerRun; after what the statement reads or books.
SERVER_RUN: Final = "billing.server_run() as server_run, billing.last_version() as last_version"

_users = msgspec.json.Decoder(list[UserRow])
_tokens = msgspec.json.Decoder(list[TokenRow])


def users_from_json(text: str | None) -> list[UserRow]:
    """From a JSON array of what billing.user_row makes; None is an empty one."""
    return _users.decode(text or "[]")


def tokens_from_json(text: str | None) -> list[TokenRow]:
    """From a JSON array of what billing.token_row makes; None is an empty one."""
    return _tokens.decode(text or "[]")


def user_row(row: Sequence[Any]) -> UserRow:
    """From a row of the columns USER."""
    return UserRow(*row)


def token_row(row: Sequence[Any]) -> TokenRow:
    """From a row of the columns TOKEN."""
    return TokenRow(*row)


def moment(ms: int | None) -> datetime | None:
    """The time that many milliseconds after 1970; None stays None."""
    try:
        return None if ms is None else _EPOCH + timedelta(milliseconds=ms)
    except OverflowError:
        raise InvalidRequest(f"expires_at_ms {ms} is no date; it counts milliseconds since 1970.") from None
