"""Keys: each shard in one slot, the shards spread over the primaries of a cluster. No server."""

from __future__ import annotations

import re
from binascii import crc_hqx
from itertools import pairwise

import pytest

from billing_tasks.holds.keys import Keys, keys_of_layout, spread_tags
from billing_tasks.settings import Settings

DEFAULT = Settings().shards


def slot(key: str) -> int:
    """As the Redis Cluster specification says: of the hash tag, if there is one."""
    tag = re.search(r"\{([^}]+)\}", key)
    return crc_hqx((tag[1] if tag else key).encode(), 0) % 16384


def primaries(count: int) -> list[range]:
    """Slot ranges as `redis-cli --cluster create` gives them."""
    bounds = [round(16384 / count * at) for at in range(count + 1)]
    return [range(first, last) for first, last in pairwise(bounds)]


def spread(shards: int, count: int) -> list[int]:
    keys = Keys("billing", shards)
    slots = [slot(keys.outbox(shard)) for shard in range(shards)]
    return [sum(one in owned for one in slots) for owned in primaries(count)]


def test_the_slot_is_the_specifications() -> None:
    assert slot("123456789") == 12739


@pytest.mark.parametrize("count", [1, 2, 3, 4, 6])
def test_the_default_shards_lie_evenly_on_the_primaries(count: int) -> None:
    assert set(spread(DEFAULT, count)) == {DEFAULT // count}


@pytest.mark.parametrize("count", [2, 3, 5, 6])
@pytest.mark.parametrize("shards", [16, 24, 60, 1024])
def test_other_numbers_of_shards_lie_as_evenly_as_they_can(shards: int, count: int) -> None:
    found = spread(shards, count)
    assert max(found) - min(found) <= 2


def test_every_shard_has_a_tag_of_its_own_and_all_its_keys_one_slot() -> None:
    keys = Keys("billing", DEFAULT)
    assert len(set(keys.tags)) == DEFAULT
    for user_id in range(1, 50):
        shard = keys.shard_of(user_id)
        names = [keys.user(shard, user_id), keys.token(shard, 7), keys.hold(shard, "r"), keys.meta(shard)]
        names += [keys.due(shard), keys.outbox(shard), keys.doorbell(shard), keys.drainer(shard)]
        assert len({slot(name) for name in names}) == 1
        assert all(name.startswith(keys.shard(shard)) for name in names)


@pytest.mark.parametrize("shards", [1, 2, 12, 1024])
def test_the_layout_is_read_as_it_is_noted(shards: int) -> None:
    for keys in (Keys("p", shards), Keys("p", shards, "numbered")):
        assert keys_of_layout("p", keys.layout_name).tags == keys.tags
    assert Keys("p", 16, "numbered").layout_name == "16"  # as release 0.1.0 noted it
    assert Keys("p", 16, "numbered").meta(3) == "p:{s03}:meta"


def test_a_layout_that_no_release_noted_is_refused() -> None:
    with pytest.raises(ValueError, match="12/3"):
        keys_of_layout("p", "12/3")


def test_choosing_tags_gives_the_same_ones_again() -> None:
    spread_tags.cache_clear()
    assert spread_tags(12) == ["t3", "t50", "t61", "t2", "t51", "t60", "t1", "t52", "t63", "t0", "t53", "t62"]
