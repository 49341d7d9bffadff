"""Accounts: users and tokens as PostgreSQL has them. Redis caches what a reservation needs of them."""

from __future__ import annotations

import msgspec


class UserRow(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """A user as PostgreSQL has it, and as Redis caches it. In the order of billing.user_row."""

    id: int
    quota: int  # remaining
    used_quota: int
    request_count: int
    group_name: str
    status: str  # enabled | disabled
    version: int


class TokenRow(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """A token as PostgreSQL has it, and as Redis caches it. In the order of billing.token_row."""

    id: int
    user_id: int
    name: str
    remain_quota: int
    used_quota: int
    unlimited_quota: bool
    status: str  # enabled | disabled | deleted
    expires_at_ms: int | None  # None: never
    version: int
