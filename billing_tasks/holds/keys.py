"""Where things live in Redis. Every key of a user and its tokens carries the shard's hash tag,
so that each script's keys lie in one slot of a Redis Cluster."""

from __future__ import annotations


class Keys:
    """Names of all keys, for one prefix and number of shards."""

    def __init__(self, prefix: str, shards: int) -> None:
        self.prefix = prefix
        self.shards = shards
        width = len(str(shards - 1))
        self._shard_prefixes = [f"{prefix}:{{s{shard:0{width}d}}}:" for shard in range(shards)]

    @property
    def layout(self) -> str:
        """The number of shards this Redis was filled with; another number is refused."""
        return f"{self.prefix}:layout"

    def shard_of(self, user_id: int) -> int:
        """The shard of a user and of everything the user owns."""
        return user_id % self.shards

    def shard(self, shard: int) -> str:
        """What every key of the shard begins with."""
        return self._shard_prefixes[shard]

    def meta(self, shard: int) -> str:
        """Hash: run_id, epoch, seq."""
        return self._shard_prefixes[shard] + "meta"

    def user(self, user_id: int) -> str:
        """Hash: the copy of the user's row; counters held, unposted."""
        return f"{self._shard_prefixes[user_id % self.shards]}user:{user_id}"

    def token(self, user_id: int, token_id: int) -> str:
        """Hash: the copy of the token's row; counters held, unposted."""
        return f"{self._shard_prefixes[user_id % self.shards]}token:{token_id}"

    def account(self, shard: int, which: str, account_id: int) -> str:
        """Hash of a `user` or `token`, by the shard it was found in."""
        return f"{self._shard_prefixes[shard]}{which}:{account_id}"

    def hold(self, shard: int, request_id: str) -> str:
        """String: an open hold, or for a while its tombstone."""
        return f"{self._shard_prefixes[shard]}hold:{request_id}"

    def due(self, shard: int) -> str:
        """Sorted set: request ids of open holds by expiry."""
        return self._shard_prefixes[shard] + "due"

    def outbox(self, shard: int) -> str:
        """Stream: events that the ledger has not booked yet."""
        return self._shard_prefixes[shard] + "outbox"

    def doorbell(self, shard: int) -> str:
        """String with a TTL: somebody rang or drains."""
        return self._shard_prefixes[shard] + "doorbell"

    def drainer(self, shard: int) -> str:
        """String with a TTL: who drains."""
        return self._shard_prefixes[shard] + "drainer"
