"""Administration: create and change users, tokens and channels. Quota is changed in top_ups.py.

Each method is one transaction and returns the account as it is afterwards.
"""

from __future__ import annotations

from typing import Any, Final, Literal

import sqlalchemy as sa
from sqlalchemy.dialects.postgresql import insert

from billing_tasks.errors import IdempotencyConflict, InvalidRequest, TokenRefused, Unavailable, UserNotFound
from billing_tasks.ledger import columns
from billing_tasks.ledger.database import Record
from billing_tasks.ledger.models import Base, Channel, Entry, Token, User, versions
from billing_tasks.ledger.part import Part
from billing_tasks.ledger.rows import UNSET, ChannelRow, Unset
from billing_tasks.model.account import TokenRow, UserRow
from billing_tasks.pricing.exact import MAX_QUOTA

UserStatus = Literal["enabled", "disabled"]
TokenStatus = Literal["enabled", "disabled", "deleted"]

_PAST_GIVEN_IDS: Final = {
    table: sa.text(
        f"select setval(pg_get_serial_sequence('billing.{table}', 'id'), (select max(id) from billing.{table}))"  # noqa: S608
    )
    for table in (User.__tablename__, Token.__tablename__, Channel.__tablename__)
}


#: Of an account's first values those that every charge changes; what they were is in the entry that opened it.
_OPENED: Final = ("quota", "remain_quota")
#: So many of a user's entries are looked through for it; an account with more is not created once more.
_LOOKED_THROUGH: Final = 20_000


class Administration(Part):
    """Creates and changes accounts, but for their quota."""

    def create_user(self, user_id: int | None = None, *, quota: int = 0, group_name: str = "default") -> UserRow:
        """A new user whose opening balance is booked as an entry.

        Without `user_id` one is chosen, and a call that ended in Unavailable may have
        created a user already. With it the call may be repeated: a user who was created just so is returned as they
        are now. Raises IdempotencyConflict if `user_id` is another one's.
        """
        check_quota(quota, lowest=0)
        values = {"quota": quota, "group_name": group_name}
        return columns.user_row(self._insert(User, user_id, values, columns.USER))

    def create_token(
        self,
        user_id: int,
        token_id: int | None = None,
        *,
        name: str = "",
        remain_quota: int = 0,
        unlimited_quota: bool = False,
        expires_at_ms: int | None = None,
    ) -> TokenRow:
        """A new token of a user, its opening balance booked. Raises UserNotFound, and as `create_user`."""
        check_quota(remain_quota, lowest=0)
        values = {
            "user_id": user_id,
            "name": name,
            "remain_quota": remain_quota,
            "unlimited_quota": unlimited_quota,
            "expires_at": columns.moment(expires_at_ms),
        }
        return columns.token_row(self._insert(Token, token_id, values, columns.TOKEN))

    def create_channel(self, channel_id: int | None = None, *, name: str = "") -> ChannelRow:
        """A new channel. Usage of channels that were never created is counted just the same."""
        row = self._insert(Channel, channel_id, {"name": name}, (Channel.id, Channel.name))
        return ChannelRow(row.id, row.name, used_quota=0)

    def _insert(
        self, model: type[Base], wanted_id: int | None, values: dict[str, Any], returning: tuple[Any, ...]
    ) -> Record:
        given = values if wanted_id is None else values | {"id": wanted_id}
        statement = insert(model).values(given).on_conflict_do_nothing().returning(*returning)

        def work(connection: sa.Connection) -> Record | None:
            if "user_id" in values:
                lock_user(connection, values["user_id"])
            return connection.execute(statement).one_or_none()

        row = self._db.transaction(work, repeatable=wanted_id is not None)
        if row is None and wanted_id is None:
            # Ids that were given explicitly are unknown to the sequence: move it past them.
            self._db.statement(_PAST_GIVEN_IDS[model.__tablename__])
            row = self._db.transaction(work, repeatable=False)
        if row is None and wanted_id is None:
            raise Unavailable(f"The id chosen in {model.__tablename__} was taken meanwhile; call again.")
        if row is None and wanted_id is not None:
            row = self._created_so(model, wanted_id, values, returning)
        if row is None:
            raise IdempotencyConflict(f"There is a row with id {wanted_id} in {model.__tablename__} already.")
        return row

    def _created_so(
        self, model: type[Base], wanted_id: int, values: dict[str, Any], returning: tuple[Any, ...]
    ) -> Record | None:
        """The row if it was created with just these values: the call is repeated, and not another one's."""
        table = model.__table__
        same = [table.c[name].is_not_distinct_from(value) for name, value in values.items() if name not in _OPENED]
        rows = self._db.statement(sa.select(*returning).where(table.c.id == wanted_id, *same))
        opened_with = [value for name, value in values.items() if name in _OPENED]
        if not rows or (opened_with and [self._opening(wanted_id, values.get("user_id"))] != opened_with):
            return None
        return rows[0]

    def _opening(self, account_id: int, owner: int | None) -> int | None:
        """The quota a user was opened with, or a token if it has an owner; None: that can't be told."""
        change = Entry.user_quota if owner is None else Entry.token_quota
        entries = (
            sa.select(Entry.token_id, change.label("change"), Entry.content)
            .where(Entry.user_id == (account_id if owner is None else owner))
            .order_by(Entry.entry_id)
            .limit(_LOOKED_THROUGH)
            .subquery()
        )
        mine = entries.c.token_id.is_not_distinct_from(None if owner is None else account_id)
        opening = sa.and_(mine, entries.c.content == "opening balance")
        total = sa.func.coalesce(sa.func.sum(entries.c.change).filter(opening), 0)
        count, quota = self._db.statement(sa.select(sa.func.count(), total).select_from(entries))[0]
        return int(quota) if count < _LOOKED_THROUGH else None

    def set_user(self, user_id: int, *, status: UserStatus | None = None, group_name: str | None = None) -> UserRow:
        """Change what is given, keep what is None. Raises UserNotFound."""
        changes = {"status": status, "group_name": group_name}
        statement = (
            sa.update(User)
            .where(User.id == user_id)
            .values({k: v for k, v in changes.items() if v is not None} | {"version": versions.next_value()})
            .returning(*columns.USER)
        )
        rows = self._db.transaction(lambda connection: connection.execute(statement).all())
        if not rows:
            raise unknown_user(user_id)
        return columns.user_row(rows[0])

    def set_token(
        self,
        token_id: int,
        *,
        status: TokenStatus | None = None,
        unlimited_quota: bool | None = None,
        name: str | None = None,
        expires_at_ms: int | Unset | None = UNSET,
    ) -> TokenRow:
        """Change what is given, keep what is None; `expires_at_ms=None` means never. Raises TokenRefused."""
        changes: dict[str, Any] = {"status": status, "unlimited_quota": unlimited_quota, "name": name}
        changes = {k: v for k, v in changes.items() if v is not None}
        if expires_at_ms is not UNSET:
            changes["expires_at"] = columns.moment(expires_at_ms)
        statement = (
            sa.update(Token)
            .where(Token.id == token_id)
            .values(changes | {"version": versions.next_value()})
            .returning(*columns.TOKEN)
        )
        rows = self._db.transaction(lambda connection: connection.execute(statement).all())
        if not rows:
            raise unknown_token(token_id)
        return columns.token_row(rows[0])


def lock_user(connection: sa.Connection, user_id: int) -> UserRow:
    """The user, locked for this transaction as posting locks it. Raises UserNotFound."""
    row = connection.execute(
        sa.select(*columns.USER).where(User.id == user_id).with_for_update(key_share=True)
    ).one_or_none()
    if row is None:
        raise unknown_user(user_id)
    return columns.user_row(row)


def lock_token(connection: sa.Connection, token_id: int) -> TokenRow:
    """The token, locked after its user, as posting does it. Raises TokenRefused."""
    user_id = connection.scalar(sa.select(Token.user_id).where(Token.id == token_id))
    if user_id is None:
        raise unknown_token(token_id)
    lock_user(connection, user_id)
    row = connection.execute(
        sa.select(*columns.TOKEN).where(Token.id == token_id).with_for_update(key_share=True)
    ).one()
    return columns.token_row(row)


def check_quota(quota: int, *, lowest: int) -> None:
    """Raises InvalidRequest unless lowest <= quota <= 2^53."""
    if isinstance(quota, bool) or not isinstance(quota, int) or not lowest <= quota <= MAX_QUOTA:
        raise InvalidRequest(f"quota must be an integer from {lowest} to 2^53, got {quota!r}.")


def unknown_user(user_id: int) -> UserNotFound:
    return UserNotFound(f"There is no user {user_id}.")


def unknown_token(token_id: int) -> TokenRefused:
    return TokenRefused(f"There is no token {token_id}.", reason="unknown")
