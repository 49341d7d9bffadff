"""A COMMIT that should have waited for a standby and did not is no success."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from billing_tasks.errors import Unavailable
from tests.conftest import Billing
from tests.worker.conftest import eventually

CANCEL = "select pg_cancel_backend(pid) from pg_stat_activity where wait_event = 'SyncRep'"


@contextmanager
def a_standby_that_is_away(billing: Billing) -> Iterator[None]:
    """Each COMMIT waits for it."""
    billing.sql("alter system set synchronous_standby_names = 'nobody'")
    billing.sql("select pg_reload_conf()")
    eventually(lambda: billing.sql("show synchronous_standby_names") == [("nobody",)])
    try:
        yield
    finally:
        billing.sql("alter system reset synchronous_standby_names")
        billing.sql("select pg_reload_conf()")
        eventually(lambda: billing.sql("show synchronous_standby_names") == [("",)])


def test_an_event_stays_in_the_outbox_until_a_commit_has_waited_for_the_standby(billing: Billing) -> None:
    payer = billing.payer(1000)
    charge = billing.reserve(payer, 100)
    billing.use(charge, 100)
    refused: list[Unavailable] = []

    def settle() -> None:
        for _ in range(2):  # the second time all it finds is a duplicate
            with pytest.raises(Unavailable) as error:
                billing.settle()
            refused.append(error.value)

    with a_standby_that_is_away(billing):
        thread = threading.Thread(target=settle)
        thread.start()
        eventually(lambda: [billing.sql(CANCEL), thread.is_alive()][1] is False, what="both were cancelled")
        assert billing.redis("XLEN", billing.runtime.commands.keys.outbox(payer[0] % billing.settings.shards)) == 1
    assert all("standby" in error.message for error in refused)
    assert billing.settle().duplicates == 1
    assert billing.available(payer[0]) == 900
