"""One request: reserve, consume, release, expire, renew, refund, and a look at its hold."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar
from urllib.parse import quote

from billing_tasks.holds import outcomes
from billing_tasks.holds.commands.command import Command, Subject, call
from billing_tasks.holds.replies import (
    Closed,
    HoldState,
    Reserved,
    parse_hold,
    read_consumed,
    read_expired,
    read_extended,
    read_released,
    read_reserved,
    text,
)

R = TypeVar("R")


class Requests(Subject):
    """Scripts that a request runs."""

    def reserve(
        self,
        *,
        request_id: str,
        user_id: int,
        token_id: int,
        amount: int,
        ttl_ms: int,
        backlog_limit: int,
        fresh_ms: int,
        client_key: str = "",
        price: str = "",
    ) -> Command[Reserved]:
        """reserve.lua; gateways of 0.1.0, which may be at work beside us, read no hold that has more words."""
        k, shard = self.keys, self.keys.shard_of(user_id)
        words = [f"price:{price}"] if price else []
        if client_key:
            words.append(f"key:{quote(client_key, safe='')}")
        more = "" if k.shared_with_0_1_0 else " ".join(words)
        return call(
            "reserve",
            (
                k.meta(shard),
                k.user(shard, user_id),
                k.token(shard, token_id),
                k.hold(shard, request_id),
                k.due(shard),
                k.outbox(shard),
            ),
            (request_id, user_id, token_id, amount, ttl_ms, backlog_limit, fresh_ms, more),
            read_reserved,
        )

    def _closing_keys(self, request_id: str, user_id: int, token_id: int) -> tuple[str, ...]:
        k, shard = self.keys, self.keys.shard_of(user_id)
        return (
            k.meta(shard),
            k.user(shard, user_id),
            k.token(shard, token_id),
            k.hold(shard, request_id),
            k.due(shard),
            k.outbox(shard),
            k.doorbell(shard),
        )

    def consume(
        self, *, request_id: str, user_id: int, token_id: int, quota: int, fingerprint: str, payload: bytes
    ) -> Command[Closed[outcomes.Consume]]:
        """consume.lua"""
        return call(
            "consume",
            self._closing_keys(request_id, user_id, token_id),
            (
                request_id,
                user_id,
                token_id,
                quota,
                fingerprint,
                payload,
                self._doorbell_ms,
                self._tombstone_ms,
            ),
            read_consumed,
        )

    def release(
        self, *, request_id: str, user_id: int, token_id: int, payload: bytes
    ) -> Command[Closed[outcomes.Release]]:
        """release.lua"""
        return self._unused("release", request_id, user_id, token_id, payload, read_released)

    def expire(
        self, *, request_id: str, user_id: int, token_id: int, payload: bytes
    ) -> Command[Closed[outcomes.Expire]]:
        """expire.lua"""
        return self._unused("expire", request_id, user_id, token_id, payload, read_expired)

    def _unused(
        self,
        name: str,
        request_id: str,
        user_id: int,
        token_id: int,
        payload: bytes,
        read: Callable[[list[Any]], Closed[R]],
    ) -> Command[Closed[R]]:
        """A script that closes a hold of which nothing was used."""
        times = (self._doorbell_ms, self._tombstone_ms, self._idle_seconds)
        keys = self._closing_keys(request_id, user_id, token_id)
        return call(name, keys, (request_id, user_id, token_id, payload, *times), read)

    def extend(
        self, *, request_id: str, user_id: int, token_id: int, total: int, ttl_ms: int, fresh_ms: int
    ) -> Command[Reserved]:
        """extend.lua"""
        return call(
            "extend",
            self._closing_keys(request_id, user_id, token_id)[:5],
            (request_id, user_id, token_id, total, ttl_ms, fresh_ms),
            read_extended,
        )

    def renew(self, *, user_id: int, request_id: str, ttl_ms: int) -> Command[tuple[outcomes.Renew, int]]:
        """renew.lua"""
        k, shard = self.keys, self.keys.shard_of(user_id)
        return call(
            "renew",
            (k.hold(shard, request_id), k.due(shard)),
            (request_id, ttl_ms),
            lambda reply: (outcomes.Renew(text(reply[0])), int(reply[1])),
        )

    def refund(self, *, request_id: str, user_id: int, payload: bytes) -> Command[bool]:
        """refund.lua; True: ring"""
        k, shard = self.keys, self.keys.shard_of(user_id)
        return call(
            "refund",
            (k.meta(shard), k.outbox(shard), k.doorbell(shard)),
            (request_id, user_id, payload, self._doorbell_ms),
            lambda reply: bool(reply[1]),
        )

    def hold(self, *, user_id: int, request_id: str) -> Command[HoldState | None]:
        """The hold or tombstone of a request, None if there is no trace of one."""
        return Command(("GET", self.keys.hold(self.keys.shard_of(user_id), request_id)), parse_hold)

    def hold_expires_at(self, *, user_id: int, request_id: str) -> Command[int]:
        """When an open hold is due, in milliseconds since 1970 by Redis's clock; 0: there is none."""
        words = ("ZSCORE", self.keys.due(self.keys.shard_of(user_id)), request_id)
        return Command(words, lambda reply: 0 if reply is None else int(float(reply)))
