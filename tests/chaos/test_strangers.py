"""What another program writes into a shard in a chaos run stops nothing, and is kept or taken out."""

from __future__ import annotations

import pytest

from chaos.inject import strange_words
from tests.conftest import Billing


@pytest.mark.parametrize(("number", "kept"), [(0, 1), (1, 1), (2, 0)])
def test_it_is_kept_or_taken_out(billing: Billing, number: int, kept: int) -> None:
    payer = billing.payer()
    keys = billing.runtime.commands.keys
    billing.use(billing.reserve(payer, 10), 10)
    billing.redis(*strange_words(keys, keys.shard_of(payer[0]), number))
    billing.use(billing.reserve(payer, 10), 10)
    billing.settle()
    billing.expire()
    assert len(billing.runtime.ledger.dead_letters()) == kept
    assert billing.redis("ZCARD", keys.due(keys.shard_of(payer[0]))) == 0
    assert billing.sql("select used_quota from billing.users where id = %s", payer[0]) == [(20,)]
