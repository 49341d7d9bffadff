"""AsyncAdmin: the same methods, awaited, none missing, and none of them blocks the loop."""

from __future__ import annotations

import asyncio
import inspect
import time
from collections.abc import Awaitable, Callable

import pytest

from billing_tasks.admin import Admin, AsyncAdmin
from billing_tasks.admin.in_threads import Awaited, Iterated, Twin
from billing_tasks.errors import IdempotencyConflict, InvalidRequest
from billing_tasks.model.ids import new_request_id
from tests.admin.conftest import DeadLetterDriver, charge, refund_of
from tests.conftest import Billing


def run(billing: Billing, story: Callable[[AsyncAdmin], Awaitable[None]]) -> None:
    async def main() -> None:
        async with AsyncAdmin.from_settings(billing.settings) as admin:
            await story(admin)

    asyncio.run(main())


def test_accounts_and_entries_are_awaited(billing: Billing) -> None:
    async def story(admin: AsyncAdmin) -> None:
        await admin.accounts.create_user(42, quota=100)
        row, new = await admin.accounts.top_up(42, 50, "payment-1", note="card")
        assert (row.quota, new) == (150, True)
        assert (await admin.accounts.top_up(42, 50, "payment-1"))[1] is False
        with pytest.raises(IdempotencyConflict):
            await admin.accounts.top_up(42, 51, "payment-1")
        assert (await admin.accounts.balance(42)).available == 150
        page = await admin.entries.find(user_id=42, limit=1)
        assert (page.rows[0].kind, page.next is None) == ("topup", False)
        rest = await admin.entries.find(user_id=42, cursor=page.next)
        assert (len(rest.rows), rest.next) == (1, None)
        with pytest.raises(InvalidRequest):
            await admin.entries.find(cursor="rubbish")

    run(billing, story)


def test_dead_letters_are_found_previewed_and_retried_one_by_one(
    billing: Billing, dead_letters: DeadLetterDriver
) -> None:
    payer = billing.payer()
    good = dead_letters.keep(refund_of(payer[0], charge(billing, payer), 300, "case-1"))
    early = dead_letters.keep(refund_of(payer[0], new_request_id(), 10, "case-2"))

    async def story(admin: AsyncAdmin) -> None:
        found = await admin.dead_letters.find(refund_ids=["case-1"])
        assert [row.id for row in found.rows] == [good]
        assert (await admin.dead_letters.preview(good)).would == "posted"
        results = [result async for result in admin.dead_letters.retry_many([early, good], actor="ann")]
        assert [(result.dead_letter, result.outcome) for result in results] == [(early, "no_charge"), (good, "posted")]
        async for result in admin.dead_letters.discard_many([early, 999], actor="ann", comment="test"):
            assert result.outcome in ("discarded", "not_found")
            break  # a caller that leaves early leaves the rest as it was
        assert (await admin.status(workers=False)).problems == []
        assert (await admin.audit.verify()).ok

    run(billing, story)


def test_the_loop_goes_on_while_a_method_works(billing: Billing) -> None:
    class Slow:
        def work(self, seconds: float) -> float:
            time.sleep(seconds)
            return seconds

    class AsyncSlow(Twin[Slow]):
        work = Awaited(Slow.work)

    async def main() -> int:
        working, ticks = asyncio.create_task(AsyncSlow(Slow()).work(0.3)), 0
        while not working.done():
            await asyncio.sleep(0.01)
            ticks += 1
        return ticks

    assert asyncio.run(main()) > 5


def public(kind: type) -> set[str]:
    return {name for name in vars(kind) if not name.startswith("_") and name not in ("close", "from_settings")}


def test_no_method_is_missing_and_each_is_the_sync_one_with_its_own_words(billing: Billing) -> None:
    sync, twin = Admin(billing.runtime), AsyncAdmin(billing.runtime)
    assert public(type(twin)) == public(type(sync))
    for name in ("accounts", "entries", "dead_letters", "incidents", "audit"):
        there, here = type(getattr(sync, name)), type(getattr(twin, name))
        assert public(here) == public(there) - ({"entries"} if name == "accounts" else set())
        for method in public(here):
            awaited = inspect.getattr_static(here, method)
            assert isinstance(awaited, Awaited | Iterated)
            assert (awaited._method, awaited.__doc__) == (getattr(there, method), getattr(there, method).__doc__)
            assert isinstance(awaited, Iterated) == method.endswith("_many")
