"""A number is accounted for when its event is booked or kept as a dead letter, and not before."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from typing import Any

import pytest

from billing_tasks.errors import BillingError, Unavailable
from billing_tasks.ledger.store import Ledger
from billing_tasks.model.events import Event
from billing_tasks.model.ids import new_request_id
from billing_tasks.model.posting import PostedBatch
from tests.conftest import EMPTY, Billing, Payer
from tests.flows.settlement.accounting import accounted, incidents, look, outbox, restart, use


class Dies(Exception):
    """A worker that is gone."""


def _dying(name: str) -> Callable[..., None]:
    def dies(*_: object, **__: object) -> None:
        raise Dies

    dies.__name__ = name  # what the flows call it by
    return dies


def _a_refund(billing: Billing, payer: Payer) -> None:
    reservation = billing.reserve(payer, 10)
    billing.use(reservation, 10)
    billing.settle()
    billing.bk.refund_charge(user_id=payer[0], request_id=reservation.request_id, refund_id="case")


def _usage_of_an_unknown_token(billing: Billing, payer: Payer) -> None:
    use(billing, payer, 1)
    billing.sql(f"set session_replication_role = replica; delete from billing.tokens where id = {payer[1]}")


def _usage_that_can_not_be_stored(billing: Billing, payer: Payer) -> None:
    billing.sql("update billing.users set used_quota = 9223372036854775800 where id = %s", payer[0])
    use(billing, payer, 1)


def _usage_in_two_versions(billing: Billing, payer: Payer) -> None:
    reservation = billing.reserve(payer, 20)
    billing.use(reservation, 10)
    with suppress(BillingError):
        billing.use(reservation, 20)


@pytest.mark.parametrize(
    ("file", "dies_in"),
    [
        (_a_refund, "post_refund"),
        (_usage_of_an_unknown_token, "add_dead_letter"),
        (_usage_that_can_not_be_stored, "add_dead_letter"),
        (_usage_in_two_versions, "add_dead_letter"),
    ],
)
def test_what_was_neither_booked_nor_kept_when_its_worker_died_is_missed(
    billing: Billing,
    monkeypatch: pytest.MonkeyPatch,
    file: Callable[[Billing, Payer], None],
    dies_in: str,
) -> None:
    """Redis loses the outbox right after."""
    payer = billing.payer()
    file(billing, payer)
    look(billing)
    with monkeypatch.context() as patch:
        patch.setattr(Ledger, dies_in, _dying(dies_in))
        with pytest.raises(Dies):
            billing.settle()
    billing.redis("FLUSHALL")
    other = billing.payer()
    keys = billing.runtime.commands.keys
    while keys.shard_of(other[0]) != keys.shard_of(payer[0]):
        other = billing.payer()
    billing.reserve(other, 1)
    look(billing)
    assert billing.verify().events_missing >= 1
    billing.sql(EMPTY)
    billing.redis("FLUSHALL")


def test_a_batch_with_refunds_and_refusals_leaves_no_number_open(billing: Billing) -> None:
    payer = billing.payer()
    _a_refund(billing, payer)
    use(billing, payer, 2)
    _usage_in_two_versions(billing, payer)
    use(billing, payer, 1)
    billing.bk.refund_charge(user_id=payer[0], request_id=new_request_id(), refund_id="of nothing")
    use(billing, payer, 1)
    billing.settle()
    look(billing)
    assert accounted(billing) == [((1, 9),)]
    assert len(billing.runtime.ledger.dead_letters()) == 2
    assert incidents(billing) == []
    restart(billing, payer)
    use(billing, payer, 1)
    look(billing)
    assert billing.verify().events_missing == 0
    billing.settle()


def test_two_drainers_meet_an_entry_that_one_of_them_drops_first(
    billing: Billing, monkeypatch: pytest.MonkeyPatch
) -> None:
    payer = billing.payer()
    billing.redis("XADD", outbox(billing, payer), "5-1", "event", "?", "payload", "?")
    commands = type(billing.runtime.commands)
    drop = commands.drop

    def another_first(self: Any, shard: int, entries: Any) -> Any:
        billing.runtime.holds.send(drop(self, shard, entries))
        return drop(self, shard, entries)

    monkeypatch.setattr(commands, "drop", another_first)
    billing.settle()
    assert billing.redis("XLEN", outbox(billing, payer)) == 0
    assert len(billing.runtime.ledger.dead_letters()) == 1


def test_a_server_that_was_restored_in_the_middle_of_a_batch_accounts_for_nothing_of_it(
    billing: Billing, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A batch with a refund takes several calls; what the first ones booked may be gone with the run that booked it."""
    payer = billing.payer()
    _a_refund(billing, payer)
    use(billing, payer, 1)
    post_refund = Ledger.post_refund

    def and_then_another_run(self: Ledger, shard: int, event: Event) -> PostedBatch:
        answer = post_refund(self, shard, event)
        billing.sql("vacuum full billing.users")  # as after a restore, its file has another name
        return answer

    and_then_another_run.__name__ = "post_refund"
    with monkeypatch.context() as patch:
        patch.setattr(Ledger, "post_refund", and_then_another_run)
        with pytest.raises(Unavailable, match="PostgreSQL was restarted while a batch of outbox"):
            billing.settle()
    assert accounted(billing) == [((1, 1),)]
    assert billing.settle().duplicates == 2
    assert accounted(billing) == [((1, 3),)]
    assert incidents(billing) == []


def test_a_restore_after_a_refused_batch_was_kept_accounts_for_nothing_of_it(
    billing: Billing, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing of it was booked, so no answer had told which run of PostgreSQL keeps its dead letter."""
    payer = billing.payer()
    _usage_that_can_not_be_stored(billing, payer)
    add = Ledger.add_dead_letter

    def and_then_another_run(self: Ledger, **fields: Any) -> Any:
        kept = add(self, **fields)
        billing.sql("vacuum full billing.users")
        return kept

    and_then_another_run.__name__ = "add_dead_letter"
    with monkeypatch.context() as patch:
        patch.setattr(Ledger, "add_dead_letter", and_then_another_run)
        with pytest.raises(Unavailable, match="PostgreSQL was restarted while a batch of outbox"):
            billing.settle()
    assert accounted(billing) == []
    assert billing.redis("XLEN", outbox(billing, payer)) == 1
    billing.sql(EMPTY)
    billing.redis("FLUSHALL")
