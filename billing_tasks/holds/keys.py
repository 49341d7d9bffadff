"""The names of all keys in Redis. Every key of a user and its tokens carries the shard's hash tag,
so that each script's keys lie in one slot of a Redis Cluster."""

from __future__ import annotations

import re
from binascii import crc_hqx
from functools import cache
from itertools import count
from typing import Final, Literal, TypeAlias

from billing_tasks.settings import MAX_SHARDS

#: Hash slots of a Redis Cluster.
_SLOTS: Final = 16384
#: How tags are chosen, and how Redis notes it behind the number of shards. 0.1.0's {s00}, {s01} and so on gave one
#: primary of three half of them, and were not noted.
Tags: TypeAlias = Literal["spread", "numbered"]
_NOTES: Final[dict[str, Tags]] = {"": "numbered", "/2": "spread"}


class Keys:
    """Names of all keys, for one prefix, number of shards and way to choose their hash tags."""

    def __init__(self, prefix: str, shards: int, tags: Tags = "spread") -> None:
        self.prefix = prefix
        self.shards = shards
        #: True for keys that release 0.1.0 shares: its gateways and workers may be at work beside ours.
        self.shared_with_0_1_0 = tags == "numbered"
        self.tags = spread_tags(shards) if tags == "spread" else _numbered_tags(shards)
        #: What Redis notes of it.
        self.layout_name = str(shards) + next(note for note, chosen in _NOTES.items() if chosen == tags)
        self._shard_prefixes = [f"{prefix}:{{{tag}}}:" for tag in self.tags]

    @property
    def layout(self) -> str:
        """The layout this Redis was filled with, as `layout_name`; another one is refused."""
        return f"{self.prefix}:layout"

    @property
    def installation(self) -> str:
        """The ledger whose accounts, holds and events these keys are of; another one is refused."""
        return f"{self.prefix}:installation"

    @property
    def prices(self) -> str:
        """String: the prices that operators set, as PostgreSQL had them; a copy."""
        return f"{self.prefix}:prices"

    def shard_of(self, user_id: int) -> int:
        """The shard of a user and of everything the user owns. The only function that knows."""
        return user_id % self.shards

    def shard(self, shard: int) -> str:
        """What every key of the shard begins with."""
        return self._shard_prefixes[shard]

    def meta(self, shard: int) -> str:
        """Hash: run_id, epoch, seq."""
        return self._shard_prefixes[shard] + "meta"

    def user(self, shard: int, user_id: int) -> str:
        """Hash: what is cached of the user's row; counters held, unposted."""
        return f"{self._shard_prefixes[shard]}user:{user_id}"

    def token(self, shard: int, token_id: int) -> str:
        """Hash: what is cached of the token's row; counters held, unposted. Lies in its user's shard."""
        return f"{self._shard_prefixes[shard]}token:{token_id}"

    def account(self, shard: int, which: str, account_id: int) -> str:
        """Hash of a `user` or `token`."""
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
        """String with a TTL: a drainer was called, or is at work."""
        return self._shard_prefixes[shard] + "doorbell"

    def drainer(self, shard: int) -> str:
        """String with a TTL: which drainer is at work."""
        return self._shard_prefixes[shard] + "drainer"


def keys_of_layout(prefix: str, layout_name: str) -> Keys:
    """The keys of a layout as Redis noted it. Raises ValueError for what no release noted."""
    shards, slash, note = layout_name.partition("/")
    if slash + note not in _NOTES or not re.fullmatch("[1-9][0-9]{0,3}", shards) or int(shards) > MAX_SHARDS:
        raise ValueError(layout_name)
    return Keys(prefix, int(shards), _NOTES[slash + note])


@cache
def spread_tags(shards: int) -> list[str]:
    """One hash tag per shard, so that any number of primaries with equal slot ranges gets its fair part of them.

    Shard i's tag lies in the middle half of the i-th of `shards` equal ranges of slots, and is the smallest number
    that does. Slot: CRC16 (XMODEM) of the tag, modulo 16384, by the Redis Cluster specification.
    """
    tags: dict[int, str] = {}
    for number in count():
        tag = f"t{number}"  # not s: no shard's keys are to be those of another one of 0.1.0
        at, within = divmod((crc_hqx(tag.encode(), 0) % _SLOTS) * shards * 4, _SLOTS * 4)
        if _SLOTS <= within < 3 * _SLOTS:
            tags.setdefault(at, tag)
        if len(tags) == shards:
            return [tags[shard] for shard in range(shards)]
    raise AssertionError


def _numbered_tags(shards: int) -> list[str]:
    width = len(str(shards - 1))
    return [f"s{shard:0{width}d}" for shard in range(shards)]
