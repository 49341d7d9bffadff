"""Accounts: the door for operators and sign-up pages. Users, tokens, channels, top-ups, balances.

A class of its own, so that a gateway, which only has a Bookkeeper, holds no power
to top up. Every change is committed in PostgreSQL first and shown to Redis at
once after; if Redis is away it learns of it when the account is next loaded.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from types import TracebackType
from typing import Any, Final, Literal, Self, TypeVar

from billing_tasks.admin.paging import Listing, Page, RowNumber
from billing_tasks.errors import InvalidRequest
from billing_tasks.flows.account_cache import clock_of, push_accounts
from billing_tasks.flows.effects import InLedger
from billing_tasks.ledger.rows import UNSET, ChannelRow, EntryRow, Erased, Unset
from billing_tasks.ledger.store import Ledger
from billing_tasks.model.account import TokenRow, UserRow
from billing_tasks.model.consume_log import MAX_MOMENT_MS
from billing_tasks.model.validation import check_int, check_text
from billing_tasks.pricing.exact import MAX_QUOTA
from billing_tasks.runtime import Runtime
from billing_tasks.settings import Settings, load_settings

T = TypeVar("T")

_USERS: Final = Listing[UserRow, tuple[int]]("users", tuple[RowNumber], lambda row: (row.id,))
_TOKENS: Final = Listing[TokenRow, tuple[int]]("tokens", tuple[RowNumber], lambda row: (row.id,))
_CHANNELS: Final = Listing[ChannelRow, tuple[int]]("channels", tuple[RowNumber], lambda row: (row.id,))


@dataclass(frozen=True, slots=True)
class Balance:
    """A user as both servers see it, in quota. The last three are None while Redis is away."""

    user: UserRow
    available: int | None
    held: int | None
    unposted: int | None


class Accounts:
    """Users, tokens, channels, top-ups, balances. Quota is int, in units of quota; times are aware datetimes.

    All methods raise Unavailable if PostgreSQL is away; a change may have been made then, and those that name its id
    may be repeated. They raise InvalidRequest for an id, an amount or a text that can't be one. If Redis is away
    nothing is raised: it learns of a change when the account is next loaded.
    """

    def __init__(self, runtime: Runtime) -> None:
        self._runtime = runtime

    @classmethod
    def from_settings(cls, settings: Settings | None = None) -> Self:
        """Accounts as BILLING_* says, or as `settings` says. Raises BadSettings."""
        return cls(Runtime(settings or load_settings()))

    # -- users --------------------------------------------------------------------------------------------

    def create_user(self, user_id: int | None = None, *, quota: int = 0, group: str = "default") -> UserRow:
        """A new user; the opening balance `quota` is booked as an entry. Without `user_id` the next free id is taken.

        With it the call may be repeated. Raises IdempotencyConflict if the id is another one's.
        """
        if user_id is not None:
            check_int("user_id", user_id, 1)
        check_int("quota", quota, 0)
        group = check_text("group", group, 64)
        return self._runtime.ledger.create_user(user_id, quota=quota, group_name=group)

    def set_user(
        self, user_id: int, *, status: Literal["enabled", "disabled"] | None = None, group: str | None = None
    ) -> UserRow:
        """Change what is given: a disabled user is refused, a group decides the price. Raises UserNotFound."""
        check_int("user_id", user_id, 1)
        _check_status(status, ("enabled", "disabled"))
        if group is not None:
            check_text("group", group, 64)
        return self._user_change(user_id, InLedger(Ledger.set_user, user_id, status=status, group_name=group))

    def erase_user(self, user_id: int, *, actor: str, comment: str = "") -> Erased:
        """Empty what may name this person: remarks, the app's own keys, token names, details, notes of top-ups, and
        dead letters that are settled.

        Amounts, ids, models, times and fingerprints stay: balances, `verify` and repeated requests are as before. Who
        had it done is kept in `billing.erasures`. What waits in an outbox is not reached: settle first. Safe to repeat.
        Raises UserNotFound.
        """
        check_int("user_id", user_id, 1)
        if not check_text("actor", actor, 200):
            raise InvalidRequest("actor must not be empty: it is kept who had a person's data erased.")
        check_text("comment", comment, 2000)
        return self._runtime.ledger.erase_person(user_id, actor=actor, comment=comment)

    def top_up(self, user_id: int, quota: int, top_up_id: str, *, note: str = "") -> tuple[UserRow, bool]:
        """Add quota (1 or more) to a user, once per `top_up_id`. The flag says whether it was new.

        Raises UserNotFound, and IdempotencyConflict if the id came before with another user or amount.
        """
        check_int("user_id", user_id, 1)
        check_int("quota", quota, 1)
        _check_own_id("top_up_id", top_up_id)
        check_text("note", note, 2000)
        return self._user_change(
            user_id, InLedger(Ledger.top_up, user_id, quota, top_up_id, note=note), lambda done: done[0]
        )

    def adjust_user(self, user_id: int, quota: int, adjust_id: str, *, note: str = "") -> tuple[UserRow, bool]:
        """Correct a user's quota up or down, also below zero, once per `adjust_id`. Raises as top_up does."""
        check_int("user_id", user_id, 1)
        check_int("quota", quota, -MAX_QUOTA)
        _check_own_id("adjust_id", adjust_id)
        check_text("note", note, 2000)
        return self._user_change(
            user_id, InLedger(Ledger.adjust_user, user_id, quota, adjust_id, note=note), lambda done: done[0]
        )

    def user(self, user_id: int) -> UserRow:
        """The user as PostgreSQL has it. Raises UserNotFound."""
        return self._runtime.ledger.get_user(check_int("user_id", user_id, 1))

    def users(self, *, after_id: int = 0, limit: int = 100) -> list[UserRow]:
        """Users by id, at most `limit`, those after `after_id`."""
        return self._runtime.ledger.list_users(after_id=after_id, limit=limit)

    def page_of_users(self, *, cursor: str | None = None, limit: int = 100) -> Page[UserRow]:
        """Users by id, page by page. Raises InvalidRequest for a cursor of something else."""
        return _USERS.page(cursor, limit, lambda after, most: self.users(after_id=_id(after), limit=most))

    def balance(self, user_id: int) -> Balance:
        """What the user has, holds and owes, in quota; None what Redis did not tell. Raises UserNotFound."""
        user = self.user(user_id)
        clock = self._runtime.run(clock_of(user_id, self._runtime.commands))
        if clock is None:
            return Balance(user, None, None, None)
        # From one look at Redis: beside a balance read earlier, counters may have moved on.
        available = clock.available if clock.loaded else user.quota - clock.held - clock.unposted
        return Balance(user, available, clock.held, clock.unposted)

    # -- tokens -------------------------------------------------------------------------------------------

    def create_token(
        self,
        user_id: int,
        token_id: int | None = None,
        *,
        name: str = "",
        quota: int = 0,
        unlimited: bool = False,
        expires_at: datetime | None = None,
    ) -> TokenRow:
        """A new token, an API key of this user, with `quota` of its own. Without `expires_at` it never expires.

        An unlimited one is counted too, but never refused for its quota. Raises UserNotFound, and IdempotencyConflict
        if the id is another one's.
        """
        check_int("user_id", user_id, 1)
        if token_id is not None:
            check_int("token_id", token_id, 1)
        check_int("quota", quota, 0)
        return self._runtime.ledger.create_token(
            user_id,
            token_id,
            name=check_text("name", name, 200),
            remain_quota=quota,
            unlimited_quota=unlimited,
            expires_at_ms=_milliseconds(expires_at),
        )

    def set_token(
        self,
        token_id: int,
        *,
        status: Literal["enabled", "disabled", "deleted"] | None = None,
        unlimited: bool | None = None,
        name: str | None = None,
        expires_at: datetime | Unset | None = UNSET,
    ) -> TokenRow:
        """Change what is given; `expires_at=None` means never. Raises TokenRefused (unknown)."""
        check_int("token_id", token_id, 1)
        _check_status(status, ("enabled", "disabled", "deleted"))
        if name is not None:
            check_text("name", name, 200)
        moment = UNSET if expires_at is UNSET else _milliseconds(expires_at)
        return self._token_change(
            token_id,
            InLedger(
                Ledger.set_token, token_id, status=status, unlimited_quota=unlimited, name=name, expires_at_ms=moment
            ),
        )

    def set_token_quota(self, token_id: int, quota: int, *, note: str = "set") -> TokenRow:
        """Set what the token has left; the difference is booked as an entry. Raises TokenRefused (unknown)."""
        check_int("token_id", token_id, 1)
        check_int("quota", quota, 0)
        return self._token_change(token_id, InLedger(Ledger.set_token_quota, token_id, quota, note=note))

    def adjust_token(self, token_id: int, quota: int, adjust_id: str, *, note: str = "") -> tuple[TokenRow, bool]:
        """Correct a token's quota up or down, also below zero, once per `adjust_id`; its user's quota stays.

        Raises TokenRefused (unknown), otherwise as top_up.
        """
        check_int("token_id", token_id, 1)
        check_int("quota", quota, -MAX_QUOTA)
        _check_own_id("adjust_id", adjust_id)
        return self._token_change(
            token_id, InLedger(Ledger.adjust_token, token_id, quota, adjust_id, note=note), lambda done: done[0]
        )

    def token(self, token_id: int) -> TokenRow:
        """The token as PostgreSQL has it. Raises TokenRefused (unknown)."""
        return self._runtime.ledger.get_token(check_int("token_id", token_id, 1))

    def tokens(self, user_id: int | None = None, *, after_id: int = 0, limit: int = 100) -> list[TokenRow]:
        """Tokens by id, of one user or of all, at most `limit`, those after `after_id`."""
        return self._runtime.ledger.list_tokens(user_id, after_id=after_id, limit=limit)

    def page_of_tokens(
        self, user_id: int | None = None, *, cursor: str | None = None, limit: int = 100
    ) -> Page[TokenRow]:
        """Tokens by id, of one user or of all, page by page. Raises InvalidRequest for a cursor of something else."""
        return _TOKENS.page(cursor, limit, lambda after, most: self.tokens(user_id, after_id=_id(after), limit=most))

    # -- channels and the log -----------------------------------------------------------------------------

    def create_channel(self, channel_id: int | None = None, *, name: str = "") -> ChannelRow:
        """A new channel. Usage of channels that were never created is counted just the same.

        Raises IdempotencyConflict if the id is another one's.
        """
        if channel_id is not None:
            check_int("channel_id", channel_id, 1)
        return self._runtime.ledger.create_channel(channel_id, name=check_text("name", name, 200))

    def channels(self, *, after_id: int = 0, limit: int = 100) -> list[ChannelRow]:
        """Channels by id, with what was used through them, in quota; at most `limit`, those after `after_id`."""
        return self._runtime.ledger.list_channels(after_id=after_id, limit=limit)

    def page_of_channels(self, *, cursor: str | None = None, limit: int = 100) -> Page[ChannelRow]:
        """Channels by id, page by page. Raises InvalidRequest for a cursor of something else."""
        return _CHANNELS.page(cursor, limit, lambda after, most: self.channels(after_id=_id(after), limit=most))

    def entries(self, **filters: Any) -> list[EntryRow]:
        """Entries of the ledger, newest first, at most `limit` (100); for pages and more filters see Entries.find.

        Filters: `user_id`, `client_key` (a top-up's id is its own), `before`, a row that all are older than.
        """
        return self._runtime.ledger.entries(**filters)

    # -- how a change reaches Redis -----------------------------------------------------------------------

    def _user_change(self, user_id: int, change: InLedger[T], row: Callable[[T], UserRow] | None = None) -> T:
        return self._runtime.run(self._pushed(user_id, change, row or (lambda done: done)))  # type: ignore[arg-type, return-value]

    def _token_change(self, token_id: int, change: InLedger[T], row: Callable[[T], TokenRow] | None = None) -> T:
        user_id = self._runtime.ledger.get_token(token_id).user_id
        return self._runtime.run(self._pushed(user_id, change, row or (lambda done: done)))  # type: ignore[arg-type, return-value]

    async def _pushed(self, user_id: int, change: InLedger[T], row: Callable[[T], UserRow | TokenRow]) -> T:
        commands = self._runtime.commands
        clock = await clock_of(user_id, commands)  # before the change: a cached row is as old as its reading
        done = await change
        changed = row(done)
        users = [changed] if isinstance(changed, UserRow) else []
        tokens = [changed] if isinstance(changed, TokenRow) else []
        await push_accounts(clock, users=users, tokens=tokens, commands=commands)
        return done

    def close(self) -> None:
        """Close its connections."""
        self._runtime.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()


def _id(after: tuple[int] | None) -> int:
    return after[0] if after else 0


def _check_own_id(name: str, value: str) -> None:
    if not check_text(name, value, 200):
        raise InvalidRequest(f"{name} must not be empty: it tells a repeated change from a second one.")


def _check_status(value: str | None, known: tuple[str, ...]) -> None:
    if value is not None and value not in known:
        raise InvalidRequest(f"status must be one of {', '.join(known)}, got {value!r}.")


def _milliseconds(moment: datetime | None) -> int | None:
    if moment is None:
        return None
    if not isinstance(moment, datetime) or moment.tzinfo is None:
        raise InvalidRequest("expires_at must carry a time zone, for instance datetime.now(UTC).")
    milliseconds = (moment - datetime(1970, 1, 1, tzinfo=UTC)) // timedelta(milliseconds=1)
    if milliseconds > MAX_MOMENT_MS:
        raise InvalidRequest(f"expires_at is {moment}; leave it out for a token that never expires.")
    return milliseconds
