"""Each number of an outbox is accounted for once, whatever happens to Redis next; what is not is known until closed."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from typing import Any

import pytest

from billing_tasks.errors import BillingError, Unavailable
from billing_tasks.flows.settlement import ring
from billing_tasks.ledger.outboxes import OutboxLook
from billing_tasks.ledger.store import Ledger
from billing_tasks.model.events import Event
from billing_tasks.model.ids import new_request_id
from billing_tasks.model.posting import OutboxPart, PostedBatch
from tests.conftest import EMPTY, Billing, Payer


def look(billing: Billing) -> None:
    billing.runtime.run(ring.ring_stale(commands=billing.runtime.commands, settings=billing.settings))


def outbox(billing: Billing, payer: Payer) -> str:
    keys = billing.runtime.commands.keys
    return keys.outbox(keys.shard_of(payer[0]))


def use(billing: Billing, payer: Payer, times: int) -> None:
    for _ in range(times):
        billing.use(billing.reserve(payer, 10), 10)


def lose_events(billing: Billing, payer: Payer, first: int, last: int) -> None:
    """Events by their place in the outbox, with their weight: what a bug or a stranger may do."""
    entries = billing.redis("XRANGE", outbox(billing, payer), "-", "+")[first - 1 : last]
    for entry_id, _ in entries:
        billing.redis("XDEL", outbox(billing, payer), entry_id)
    keys = billing.runtime.commands.keys
    for account in (billing.user_key(payer[0]), keys.token(keys.shard_of(payer[0]), payer[1])):
        billing.redis("HINCRBY", account, "unposted", -10 * len(entries))


def restart(billing: Billing, payer: Payer) -> None:
    """With all it knows; to the scripts it is another run."""
    keys = billing.runtime.commands.keys
    billing.redis("HSET", keys.meta(keys.shard_of(payer[0])), "run_id", "0" * 40)


def incidents(billing: Billing) -> list[tuple[str, int | None]]:
    found = billing.runtime.ledger.incidents()
    return [(incident.kind, incident.events_bound) for incident in reversed(found)]


def accounted(billing: Billing) -> list[tuple[tuple[int, int], ...]]:
    return [cursor.accounted for cursor in billing.runtime.ledger.outbox_cursors() if cursor.accounted]


def test_an_outbox_that_is_deleted_before_a_restart_is_missed(billing: Billing) -> None:
    payer = billing.payer()
    use(billing, payer, 3)
    look(billing)
    lose_events(billing, payer, 1, 3)
    billing.redis("DEL", outbox(billing, payer))
    restart(billing, payer)
    use(billing, payer, 1)
    billing.settle()
    look(billing)
    assert incidents(billing) == [("new_epoch", 0), ("gap", 3)]
    assert billing.verify().events_missing == 3


def test_an_outbox_that_is_deleted_under_way_is_missed_by_the_next_look(billing: Billing) -> None:
    payer = billing.payer()
    use(billing, payer, 3)
    lose_events(billing, payer, 1, 3)
    look(billing)
    assert incidents(billing) == [("gap", 3)]
    use(billing, payer, 2)
    billing.settle()
    look(billing)
    assert incidents(billing) == [("gap", 3)]


@pytest.mark.parametrize(("first", "last"), [(1, 2), (3, 5), (6, 6)])
def test_a_hole_inside_a_batch_is_missed(billing: Billing, first: int, last: int) -> None:
    payer = billing.payer()
    use(billing, payer, 6)
    lose_events(billing, payer, first, last)
    billing.settle()
    look(billing)
    assert incidents(billing) == [("gap", last - first + 1)]
    (incident,) = billing.runtime.ledger.incidents()
    assert incident.lost == ((first, last),)


def test_a_hole_below_a_restart_is_missed(billing: Billing) -> None:
    payer = billing.payer()
    use(billing, payer, 6)
    look(billing)
    lose_events(billing, payer, 3, 4)
    restart(billing, payer)
    use(billing, payer, 2)
    look(billing)
    billing.settle()
    look(billing)
    assert incidents(billing) == [("new_epoch", 0), ("gap", 2)]


def test_a_clock_that_ran_ahead_hides_no_later_loss(billing: Billing) -> None:
    payer = billing.payer()
    keys = billing.runtime.commands.keys
    meta = keys.meta(keys.shard_of(payer[0]))
    ahead = 4_000_000_000_000_000  # the year 2096
    billing.redis("HSET", meta, "epoch", ahead, "run_id", "0" * 40)
    use(billing, payer, 3)
    look(billing)
    billing.redis("FLUSHDB")
    use(billing, payer, 1)  # of an epoch with a lower number
    billing.settle()
    look(billing)
    assert incidents(billing) == [("rewind", 3)]
    look(billing)
    use(billing, payer, 2)
    look(billing)
    billing.redis("FLUSHDB")
    use(billing, payer, 1)
    look(billing)
    billing.settle()
    assert incidents(billing) == [("rewind", 3), ("rewind", 2)]


def test_a_meta_that_is_lost_stops_no_shard(billing: Billing) -> None:
    payer = billing.payer()
    keys = billing.runtime.commands.keys
    use(billing, payer, 2)
    ((first, fields), *_) = billing.redis("XRANGE", outbox(billing, payer), "-", "+")
    billing.redis("XADD", outbox(billing, payer), "4000000000000000-1", *fields)  # ids of a stream only grow
    billing.redis("XDEL", outbox(billing, payer), "4000000000000000-1")
    billing.redis("XADD", outbox(billing, payer), "4000000000000001-1", "not", "ours")
    billing.redis("DEL", keys.meta(keys.shard_of(payer[0])))
    use(billing, payer, 2)
    billing.settle()
    assert billing.accounts.user(payer[0]).used_quota == 40
    assert first


def test_a_look_that_comes_late_changes_nothing(billing: Billing) -> None:
    payer = billing.payer()
    use(billing, payer, 2)
    look(billing)
    shard = billing.runtime.commands.keys.shard_of(payer[0])
    (old,) = billing.runtime.ledger.outbox_cursors()
    restart(billing, payer)
    use(billing, payer, 1)
    look(billing)
    before = incidents(billing)
    late = OutboxLook(shard, old.epoch, 2, oldest=())
    billing.runtime.ledger.observe_outboxes([late], backlog_limit=10)
    assert incidents(billing) == before == [("new_epoch", 0)]
    billing.settle()
    look(billing)
    assert incidents(billing) == before


def test_what_was_read_before_it_was_lost_and_is_booked_after_all_is_not_missing(billing: Billing) -> None:
    payer = billing.payer()
    use(billing, payer, 3)
    keys = billing.runtime.commands.keys
    shard = keys.shard_of(payer[0])
    read = billing.runtime.holds.send(billing.runtime.commands.read_outbox(shard, count=10))
    lose_events(billing, payer, 1, 3)
    look(billing)
    assert incidents(billing) == [("gap", 3)]
    part = OutboxPart(shard, read[0].epoch, ((1, 2),))
    billing.runtime.ledger.post_outboxes([entry.read() for entry in read[:2]], [part])
    look(billing)
    assert incidents(billing) == [("gap", 1)]


def test_what_is_missing_is_known_until_a_person_closes_the_incident(billing: Billing) -> None:
    payer = billing.payer()
    use(billing, payer, 3)
    lose_events(billing, payer, 2, 2)
    billing.settle()
    look(billing)
    report = billing.verify()
    assert (report.ok, report.incidents, report.events_missing) == (True, 1, 1)
    (incident,) = billing.runtime.ledger.incidents()
    ledger = billing.runtime.ledger
    assert ledger.close_incidents([incident.id], closed_by="ann", comment="booked by hand") == [incident.id]
    assert ledger.close_incidents([incident.id], closed_by="bob", comment="me too") == []
    report = billing.verify()
    assert (report.ok, report.incidents, report.events_missing) == (True, 0, 0)
    (closed,) = ledger.incidents()
    assert (closed.closed_by, closed.comment) == ("ann", "booked by hand")
    look(billing)
    assert len(ledger.incidents()) == 1


def test_verify_names_what_no_incident_knows_yet(billing: Billing) -> None:
    payer = billing.payer()
    use(billing, payer, 3)
    lose_events(billing, payer, 2, 3)
    (finding,) = billing.verify().findings
    assert (finding.guarantee, finding.what, finding.expected, finding.actual) == (2, "events of outbox", 3, 1)
    look(billing)
    billing.settle()
    look(billing)


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


def test_a_look_that_is_told_late_finds_no_gap(billing: Billing) -> None:
    ledger, epoch = billing.runtime.ledger, 1_795_738_391_437_846
    ledger.observe_outboxes([OutboxLook(0, epoch, 6, oldest=(epoch, 1))], backlog_limit=24)
    ledger.observe_outboxes([OutboxLook(0, epoch, 0, oldest=())], backlog_limit=24)
    ledger.observe_outboxes([OutboxLook(0, epoch, 3, oldest=(epoch, 1))], backlog_limit=24)
    assert incidents(billing) == []
    ledger.observe_outboxes([OutboxLook(0, epoch, 6, oldest=())], backlog_limit=24)
    assert incidents(billing) == [("gap", 6)]


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


def test_verify_waits_for_no_request_to_see_that_redis_came_back_older(billing: Billing) -> None:
    """The same numbers with the same run of the server are a cursor ahead of its outbox."""
    payer = billing.payer()
    use(billing, payer, 2)
    billing.settle()
    keys = billing.runtime.commands.keys
    billing.redis("HSET", keys.meta(keys.shard_of(payer[0])), "seq", 1)
    assert [(one.what, one.expected, one.actual) for one in billing.verify().findings] == [("cursor of outbox", 1, 2)]
    restart(billing, payer)
    assert billing.verify().findings == []
    look(billing)
    assert incidents(billing) == [("rewind", 0)]
