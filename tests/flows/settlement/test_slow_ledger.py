"""A PostgreSQL for which a full batch is too much: batches shrink until they fit, and grow again later."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from billing_tasks.errors import Unavailable
from billing_tasks.flows.settlement.batch_size import GROW_AFTER, SIZES, BatchSizes
from tests.conftest import Billing, MakeBilling


@contextmanager
def slow_entries(billing: Billing, seconds: float) -> Iterator[None]:
    """Each entry takes so long."""
    billing.sql(
        "create or replace function public.dawdle() returns trigger language plpgsql as"
        f" $$ begin perform pg_sleep({seconds}); return new; end $$"
    )
    billing.sql(
        "create trigger dawdles before insert on billing.ledger_entries for each row when (new.kind = 'consume')"
        " execute function public.dawdle()"
    )
    try:
        yield
    finally:
        billing.sql("drop trigger dawdles on billing.ledger_entries; drop function public.dawdle()")


def test_a_shard_drains_although_a_full_batch_takes_too_long(make_billing: MakeBilling) -> None:
    billing = make_billing(statement_timeout_seconds=0.5, batch_size=64, shards=1)
    payer = billing.payer()
    for _ in range(64):
        billing.use(billing.reserve(payer, 10), 10)
    with slow_entries(billing, 0.02):
        with pytest.raises(Unavailable) as slow:
            billing.settle()
        assert slow.value.reason == "57014"
        assert billing.settle().posted == 64
        assert SIZES.of(0, 64) == 16
    for _ in range(2 * GROW_AFTER):
        billing.use(billing.reserve(payer, 10), 10)
        billing.settle()
    assert SIZES.of(0, 64) == 64, "it grew again"


def test_another_failure_shrinks_nothing() -> None:
    sizes = BatchSizes()
    sizes.failed(0, 64, Unavailable("PostgreSQL can't be reached"))
    assert sizes.of(0, 64) == 64
    for _ in range(5):
        sizes.failed(0, sizes.of(0, 64), Unavailable("", reason="overdue"))
    assert sizes.of(0, 64) == 1
