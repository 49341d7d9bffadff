"""Quota from outside: top-ups and corrections, each an entry, each booked once under its own id."""

from __future__ import annotations

from uuid import UUID

import sqlalchemy as sa
from sqlalchemy.dialects.postgresql import insert

from billing_tasks.errors import IdempotencyConflict, InvalidRequest
from billing_tasks.ledger import columns
from billing_tasks.ledger.accounts import check_quota, lock_token, lock_user
from billing_tasks.ledger.models import Entry, Token, TopUp, User, versions
from billing_tasks.ledger.part import Part
from billing_tasks.model.account import TokenRow, UserRow
from billing_tasks.pricing.exact import MAX_QUOTA


class TopUps(Part):
    """Adds quota to users and tokens, or takes it away."""

    def top_up(self, user_id: int, quota: int, top_up_id: str, *, note: str = "") -> tuple[UserRow, bool]:
        """Add quota (above zero) to a user. True: booked now; False: this top_up_id was booked before.

        Raises UserNotFound, InvalidRequest, and IdempotencyConflict if top_up_id came
        before with another user or amount.
        """
        check_quota(quota, lowest=1)
        return self._change_user("topup", user_id, quota, top_up_id, note)

    def adjust_user(self, user_id: int, quota: int, adjust_id: str, *, note: str = "") -> tuple[UserRow, bool]:
        """Correct a user's quota by a signed amount; below zero is allowed. Otherwise as `top_up`."""
        _check_change(quota)
        return self._change_user("adjust", user_id, quota, adjust_id, note)

    def adjust_token(self, token_id: int, quota: int, adjust_id: str, *, note: str = "") -> tuple[TokenRow, bool]:
        """Correct a token's remaining quota by a signed amount; its user's quota stays.

        Raises TokenRefused for an unknown token, otherwise as `top_up`.
        """
        _check_change(quota)
        _check_id(adjust_id)

        def work(connection: sa.Connection) -> tuple[TokenRow, bool]:
            token = lock_token(connection, token_id)
            entry_id = _claim(
                connection, adjust_id, note=note, kind="adjust", user_id=token.user_id, token_id=token_id, quota=quota
            )
            if entry_id is None:
                return token, False
            return _book_on_token(connection, token, quota, entry_id, note, own_id=adjust_id), True

        return self._db.transaction(work)

    def set_token_quota(self, token_id: int, remain_quota: int, *, note: str = "set") -> TokenRow:
        """Make a token's remaining quota this amount; the difference is booked. Raises TokenRefused."""
        check_quota(remain_quota, lowest=0)

        def work(connection: sa.Connection) -> TokenRow:
            token = lock_token(connection, token_id)
            change = remain_quota - token.remain_quota
            if change == 0:
                return token
            return _book_on_token(connection, token, change, _new_entry_id(connection), note)

        return self._db.transaction(work)

    def _change_user(self, kind: str, user_id: int, quota: int, own_id: str, note: str) -> tuple[UserRow, bool]:
        _check_id(own_id)

        def work(connection: sa.Connection) -> tuple[UserRow, bool]:
            user = lock_user(connection, user_id)
            entry_id = _claim(connection, own_id, note=note, kind=kind, user_id=user_id, token_id=None, quota=quota)
            if entry_id is None:
                return user, False
            connection.execute(
                sa.insert(Entry).values(
                    entry_id=entry_id,
                    kind=kind,
                    user_id=user_id,
                    quota=abs(quota),
                    user_quota=quota,
                    group_name=user.group_name,
                    content=note,
                    client_key=own_id,
                )
            )
            changed = connection.execute(
                sa.update(User)
                .where(User.id == user_id)
                .values(quota=User.quota + quota, version=versions.next_value())
                .returning(*columns.USER)
            ).one()
            return columns.user_row(changed), True

        return self._db.transaction(work)


def _claim(connection: sa.Connection, own_id: str, *, note: str, **body: str | int | None) -> UUID | None:
    """The id of the entry to book, or None if it was booked before. The note may differ, the body may not."""
    entry_id = _new_entry_id(connection)
    claimed = connection.execute(
        insert(TopUp)
        .values(id=own_id, note=note, entry_id=entry_id, **body)
        .on_conflict_do_nothing()
        .returning(TopUp.id)
    ).one_or_none()
    if claimed is not None:
        return entry_id
    before = connection.execute(
        sa.select(TopUp.kind, TopUp.user_id, TopUp.token_id, TopUp.quota).where(TopUp.id == own_id)
    ).one()
    if before._asdict() != body:
        raise IdempotencyConflict(
            f"{own_id!r} was booked before with another body: {before.kind} of {before.quota} for user"
            f" {before.user_id}" + (f", token {before.token_id}." if before.token_id is not None else ".")
        )
    return None


def _book_on_token(
    connection: sa.Connection, token: TokenRow, change: int, entry_id: UUID, note: str, *, own_id: str = ""
) -> TokenRow:
    connection.execute(
        sa.insert(Entry).values(
            entry_id=entry_id,
            kind="adjust",
            user_id=token.user_id,
            token_id=token.id,
            quota=abs(change),
            token_quota=change,
            token_name=token.name,
            content=note,
            client_key=own_id,
        )
    )
    changed = connection.execute(
        sa.update(Token)
        .where(Token.id == token.id)
        .values(remain_quota=Token.remain_quota + change, version=versions.next_value())
        .returning(*columns.TOKEN)
    ).one()
    return columns.token_row(changed)


def _new_entry_id(connection: sa.Connection) -> UUID:
    entry_id: UUID = connection.execute(sa.select(sa.func.billing.new_entry_id(type_=sa.Uuid()))).scalar_one()
    return entry_id


def _check_change(quota: int) -> None:
    check_quota(quota, lowest=-MAX_QUOTA)
    if quota == 0:
        raise InvalidRequest("A correction by 0 changes nothing; give a signed quota.")


def _check_id(own_id: str) -> None:
    if not own_id or len(own_id) > 200:
        raise InvalidRequest("The id of a top-up or correction is a text of 1 to 200 characters.")
