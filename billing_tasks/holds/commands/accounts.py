"""Accounts in the cache: load a row that PostgreSQL returned, read what is available."""

from __future__ import annotations

from billing_tasks.holds import outcomes
from billing_tasks.holds.commands.command import Command, Subject, call
from billing_tasks.holds.replies import Available, text
from billing_tasks.model.account import TokenRow, UserRow
from billing_tasks.model.posting import ServerRun


class Accounts(Subject):
    """Scripts about users and tokens."""

    def balance(self, *, user_id: int, token_id: int | None = None) -> Command[Available]:
        """balance.lua, of the user or of the token"""
        k, shard = self.keys, self.keys.shard_of(user_id)
        account = k.user(shard, user_id) if token_id is None else k.token(shard, token_id)
        return call(
            "balance",
            (k.meta(shard), account),
            (),
            lambda r: Available(text(r[0]) == outcomes.Balance.LOADED, r[1], r[2], r[3], r[4], r[5], text(r[6]), r[7]),
        )

    def load_user(
        self, row: UserRow, *, began_ms: int, epoch: str, server: ServerRun | None = None
    ) -> Command[outcomes.Load]:
        """load.lua for a user; `server`: who says so, None if that is not known"""
        shard = self.keys.shard_of(row.id)
        key = self.keys.user(shard, row.id)
        return self._load(shard, key, (row.version, row.quota, user_attributes(row)), began_ms, epoch, server)

    def load_token(
        self, row: TokenRow, *, began_ms: int, epoch: str, server: ServerRun | None = None
    ) -> Command[outcomes.Load]:
        """load.lua for a token, in its owner's shard"""
        shard = self.keys.shard_of(row.user_id)
        key = self.keys.token(shard, row.id)
        return self._load(shard, key, (row.version, row.remain_quota, token_attributes(row)), began_ms, epoch, server)

    def _load(
        self, shard: int, key: str, row: tuple[int, int, str], began_ms: int, epoch: str, server: ServerRun | None
    ) -> Command[outcomes.Load]:
        return call(
            "load",
            (self.keys.meta(shard), key),
            (began_ms, epoch, self._idle_seconds, *row, "" if server is None else server.name),
            lambda reply: outcomes.Load(text(reply[0])),
        )


def user_attributes(row: UserRow) -> str:
    """What a reservation must know of a user beside the balance: "<status>"."""
    return row.status


def token_attributes(row: TokenRow) -> str:
    """The same of a token: "<status> <user_id> <unlimited: 0 or 1> <expires_at in ms, or ->"."""
    expires_at = "-" if row.expires_at_ms is None else row.expires_at_ms
    return f"{row.status} {row.user_id} {int(row.unlimited_quota)} {expires_at}"
