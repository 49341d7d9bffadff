"""Reading the ledger: accounts, channels, the consume log, the entries of one request."""

from __future__ import annotations

from typing import Final, Unpack
from uuid import UUID

import sqlalchemy as sa

from billing_tasks.errors import InvalidRequest
from billing_tasks.ledger import columns
from billing_tasks.ledger.accounts import unknown_token, unknown_user
from billing_tasks.ledger.database import Record
from billing_tasks.ledger.models import SCHEMA, Channel, CorrectionRecord, Entry, Refund, Token, User
from billing_tasks.ledger.part import Part
from billing_tasks.ledger.rows import ChannelRow, EntryFilter, EntryRow, ServerSetup
from billing_tasks.model.account import TokenRow, UserRow
from billing_tasks.model.fingerprint import formula_of
from billing_tasks.model.ids import shorten
from billing_tasks.model.posting import ServerRun

_ACCOUNTS: Final = sa.text(
    f"select {columns.SERVER_RUN},"  # noqa: S608 - no word of it comes from outside
    " (select json_agg(billing.user_row(u))::text from billing.users as u"
    " where u.id = cast(:user_id as bigint)) as users,"
    " (select json_agg(billing.token_row(t))::text from billing.tokens as t"
    " where t.id = cast(:token_id as bigint)) as tokens"
)
_INSTALLATION: Final = sa.text("select billing.installation_name()")
_SETUP: Final = sa.text(
    "select current_setting('fsync'), current_setting('full_page_writes'), current_setting('synchronous_commit'),"
    " (select setting::bigint from pg_settings where name = 'statement_timeout'), pg_is_in_recovery(),"
    " (extract(epoch from clock_timestamp()) * 1000)::bigint"
)
_ENTRY: Final = tuple(Entry.__table__.columns)
#: What the times of an EntryFilter are compared with.
_TIME: Final = sa.func.coalesce(Entry.used_at, Entry.created_at)
_used_quota = sa.table("channel_used_quota", sa.column("channel_id"), sa.column("used_quota"), schema=SCHEMA)
_CHANNELS: Final = sa.select(
    Channel.id, Channel.name, sa.func.coalesce(_used_quota.c.used_quota, 0).label("used_quota")
).join(_used_quota, _used_quota.c.channel_id == Channel.id, isouter=True)


class Reads(Part):
    """Answers questions; changes nothing."""

    def accounts(self, user_id: int, token_id: int | None) -> tuple[UserRow | None, TokenRow | None, ServerRun]:
        """A user and a token as they are now, and who says so, in one round trip; None for what does not exist."""
        row = self._db.statement(_ACCOUNTS, {"user_id": user_id, "token_id": token_id}, seconds=self._db.read_seconds)[
            0
        ]
        users, tokens = columns.users_from_json(row.users), columns.tokens_from_json(row.tokens)
        server = ServerRun(row.server_run, row.last_version)
        return (users[0] if users else None), (tokens[0] if tokens else None), server

    def installation(self) -> str:
        """The name of these books, which travels with them into backups and to standbys."""
        return str(self._db.statement(_INSTALLATION, seconds=self._db.read_seconds)[0][0])

    def server_setup(self) -> ServerSetup:
        """Settings of the server that the guarantees rest on, as a session of ours has them."""
        return ServerSetup(*self._db.statement(_SETUP, seconds=self._db.read_seconds)[0])

    def get_user(self, user_id: int) -> UserRow:
        """Raises UserNotFound."""
        rows = self._db.statement(sa.select(*columns.USER).where(User.id == user_id))
        if not rows:
            raise unknown_user(user_id)
        return columns.user_row(rows[0])

    def get_token(self, token_id: int) -> TokenRow:
        """Raises TokenRefused with reason "unknown"."""
        rows = self._db.statement(sa.select(*columns.TOKEN).where(Token.id == token_id))
        if not rows:
            raise unknown_token(token_id)
        return columns.token_row(rows[0])

    def get_channel(self, channel_id: int) -> ChannelRow | None:
        """None if it was never created."""
        rows = self._db.statement(_CHANNELS.where(Channel.id == channel_id))
        return ChannelRow(*rows[0]) if rows else None

    def list_users(self, *, after_id: int = 0, limit: int = 100) -> list[UserRow]:
        """Users by id, `limit` of them, those above `after_id`."""
        statement = sa.select(*columns.USER).where(User.id > after_id).order_by(User.id).limit(limit)
        return [columns.user_row(row) for row in self._db.statement(statement)]

    def list_tokens(self, user_id: int | None = None, *, after_id: int = 0, limit: int = 100) -> list[TokenRow]:
        """Tokens by id, of one user or of all."""
        statement = sa.select(*columns.TOKEN).where(Token.id > after_id).order_by(Token.id).limit(limit)
        if user_id is not None:
            statement = statement.where(Token.user_id == user_id)
        return [columns.token_row(row) for row in self._db.statement(statement)]

    def list_channels(self, *, after_id: int = 0, limit: int = 100) -> list[ChannelRow]:
        """Channels by id, with what was used through them."""
        statement = _CHANNELS.where(Channel.id > after_id).order_by(Channel.id).limit(limit)
        return [ChannelRow(*row) for row in self._db.statement(statement)]

    def consume_log(
        self,
        *,
        user_id: int | None = None,
        request_id: str | None = None,
        client_key: str | None = None,
        before: EntryRow | None = None,
        limit: int = 100,
    ) -> list[EntryRow]:
        """What was used, newest first. `before`: the last row of the page before."""
        wanted = _matching(user_id=user_id, client_key=client_key, after=_place(before))
        if request_id is not None:
            wanted.append(Entry.entry_id == _uuid(request_id))
        return self._newest_entries([Entry.kind == "consume", *wanted], limit)

    def entries(
        self,
        *,
        user_id: int | None = None,
        client_key: str | None = None,
        before: EntryRow | None = None,
        limit: int = 100,
    ) -> list[EntryRow]:
        """Entries of every kind, newest first; a top-up's own id is its client_key."""
        return self._newest_entries(_matching(user_id=user_id, client_key=client_key, after=_place(before)), limit)

    def find_entries(
        self, *, after: tuple[UUID, str] | None = None, limit: int = 100, **wanted: Unpack[EntryFilter]
    ) -> list[EntryRow]:
        """Entries that match, newest first. `after`: entry_id and kind of the last row of the page before.

        Raises InvalidRequest if `request_id` is no UUID.
        """
        conditions = _matching(user_id=wanted.get("user_id"), client_key=wanted.get("client_key"), after=after)
        if (token_id := wanted.get("token_id")) is not None:
            # A token never changes its user, and there is an index by user.
            owner = sa.select(Token.user_id).where(Token.id == token_id).scalar_subquery()
            conditions += [Entry.token_id == token_id, Entry.user_id == owner]
        if (request_id := wanted.get("request_id")) is not None:
            conditions.append(_of_request(request_id))
        if kinds := wanted.get("kinds"):
            conditions.append(Entry.kind.in_(list(kinds)))
        if (since := wanted.get("since")) is not None:
            conditions.append(since <= _TIME)
        if (before := wanted.get("before")) is not None:
            conditions.append(before > _TIME)
        return self._newest_entries(conditions, limit)

    def _newest_entries(self, wanted: list[sa.ColumnElement[bool]], limit: int) -> list[EntryRow]:
        statement = sa.select(*_ENTRY).where(*wanted).order_by(Entry.entry_id.desc(), Entry.kind.desc()).limit(limit)
        return [entry_row(row) for row in self._db.statement(statement)]

    def entries_of(self, request_id: str) -> list[EntryRow]:
        """All that was booked for one request, in order: its consume, its release, its refunds, its corrections."""
        statement = sa.select(*_ENTRY).where(_of_request(request_id))
        return sorted(map(entry_row, self._db.statement(statement)), key=lambda e: (e.created_at, e.entry_id))


def _of_request(request_id: str) -> sa.ColumnElement[bool]:
    """Its consume and its release have its id, its refunds and corrections have ids of their own."""
    wanted = _uuid(request_id)
    ids = sa.select(sa.literal(wanted)).union_all(
        sa.select(Refund.entry_id).where(Refund.request_id == wanted),
        sa.select(CorrectionRecord.entry_id).where(CorrectionRecord.request_id == wanted),
    )
    # As an array: "this id, or one of that query" reads every entry there is.
    return Entry.entry_id == sa.any_(sa.func.array(ids.scalar_subquery()))


def _matching(
    *, user_id: int | None, client_key: str | None, after: tuple[UUID, str] | None
) -> list[sa.ColumnElement[bool]]:
    wanted: list[sa.ColumnElement[bool]] = []
    if user_id is not None:
        wanted.append(Entry.user_id == user_id)
    if client_key:
        # Said twice for the planner: the index holds only rows that have a key.
        wanted += [Entry.client_key == client_key, Entry.client_key != sa.literal_column("''")]
    if after is not None:
        # Both: a late consume and the release of its hold share their entry_id.
        wanted.append(sa.tuple_(Entry.entry_id, Entry.kind) < sa.tuple_(*after))
    return wanted


def _place(row: EntryRow | None) -> tuple[UUID, str] | None:
    return None if row is None else (_uuid(row.entry_id), row.kind)


def entry_row(row: Record) -> EntryRow:
    """From a row of all the columns of Entry."""
    values = row._asdict()
    values["entry_id"] = str(values["entry_id"])
    values["request_id"] = None if values["request_id"] is None else str(values["request_id"])
    values["fingerprint"] = values["fingerprint"].hex()
    values["used_at"] = values["used_at"] or values["created_at"]
    details, meters = values["details"] or {}, values["usage"] or {}
    if formula_of(values["fingerprint"]) == 1 and meters:  # release 0.1.0 kept the upstream's object there
        details, meters = {"usage": meters, **details}, {}
    values["usage"], values["meters"], values["price"] = details.pop("usage", None), meters, values["price"] or {}
    return EntryRow(**{**values, "details": details})


def _uuid(text: str) -> UUID:
    try:
        return UUID(text)
    except ValueError:
        raise InvalidRequest(f"{shorten(text)} is no request_id; those are UUIDs.") from None
