"""The time of use is kept beside the time of booking; the consume log and reports by time go by it."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

from billing_tasks.admin import Admin
from billing_tasks.model import events
from billing_tasks.model.ids import now_ms
from billing_tasks.settings import Settings
from tests.conftest import Billing, MakeBilling

DAY_MS = 86_400_000


def used_at(billing: Billing) -> list[datetime]:
    return [at for (at,) in billing.sql("select used_at from billing.consume_log order by quota")]


def moment(ms: int) -> datetime:
    return datetime.fromtimestamp(ms / 1000, UTC)


def test_usage_is_of_the_time_it_was_filed_however_late_it_is_booked(billing: Billing) -> None:
    payer = billing.payer()
    before = now_ms()
    billing.use(billing.reserve(payer, 100), 40)
    filed = now_ms()
    keys = billing.runtime.commands.keys
    [(entry_id, fields)] = billing.redis("XRANGE", keys.outbox(keys.shard_of(payer[0])), "-", "+")
    # Two days in the outbox: only the clock of the entry says so.
    words = fields[1].decode().split()
    words[6] = str(int(words[6]) - 2 * DAY_MS)
    billing.redis("DEL", keys.outbox(keys.shard_of(payer[0])))
    billing.redis("XADD", keys.outbox(keys.shard_of(payer[0])), entry_id, "event", " ".join(words), *fields[2:])

    billing.settle()

    [at] = used_at(billing)
    assert moment(before - 2 * DAY_MS - 1000) <= at <= moment(filed - 2 * DAY_MS + 1000)
    [(created,)] = billing.sql("select created_at from billing.consume_log")
    assert abs(created - at.timestamp()) <= 0.5  # the column of the reference, in whole seconds
    [entry] = billing.runtime.ledger.consume_log()
    assert entry.created_at - entry.used_at > timedelta(days=1, hours=23)


def test_a_gateway_may_say_when_it_was_used_and_reports_by_time_find_it_there(billing: Billing) -> None:
    payer, admin = billing.payer(), Admin(billing.runtime)
    month_ago, now = now_ms() - 31 * DAY_MS, now_ms()
    billing.use(billing.reserve(payer, 100), 40, used_at_ms=month_ago)
    billing.use(billing.reserve(payer, 100), 41)
    billing.settle()

    assert used_at(billing)[0] == moment(month_ago)
    until_yesterday = admin.entries.find(kinds=["consume"], before=moment(now - DAY_MS))
    assert [entry.quota for entry in until_yesterday.rows] == [40]
    since_yesterday = admin.entries.find(kinds=["consume"], since=moment(now - DAY_MS))
    assert [entry.quota for entry in since_yesterday.rows] == [41]


def test_what_was_spooled_keeps_its_time(make_billing: MakeBilling, tmp_path) -> None:
    billing = make_billing()
    payer = billing.payer()
    reservation = billing.reserve(payer, 100)
    away = {"redis_url": "unix:///nowhere/redis.sock", "database_url": "postgresql:///x?host=/nowhere"}
    from billing_tasks import Bookkeeper

    with Bookkeeper.from_settings(Settings(**away, spool_folder=tmp_path)) as door:
        assert door.consume(reservation.log(channel_id=3, quota=40)).spooled
    [file] = tmp_path.glob("*.json")
    kept = events.decode(file.read_bytes())
    assert kept.used_at_ms is not None
    assert abs(kept.used_at_ms - now_ms()) < 10_000

    billing.runtime.ledger.post_batch(0, [kept])
    assert used_at(billing) == [moment(kept.used_at_ms)]


def test_messages_carry_the_time_they_were_sent(make_billing: MakeBilling) -> None:
    billing = make_billing(dispatch="request")
    payer = billing.payer()
    sent = []
    billing.runtime.doorbell.enqueue = lambda task, task_id, kwargs: sent.append(kwargs)  # type: ignore[method-assign]
    billing.use(billing.reserve(payer, 100), 40)
    billing.use(billing.reserve(payer, 100), 41, used_at_ms=5)
    assert [abs(kwargs["used_at_ms"] - now_ms()) < 10_000 for kwargs in sent] == [True, False]
    assert sent[1]["used_at_ms"] == 5
