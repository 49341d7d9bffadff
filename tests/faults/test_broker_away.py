"""The broker is gone, flushed or frozen: requests don't notice, and everything is booked when it is back."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest

from tests.conftest import Billing, Payer
from tests.faults.breaking import frozen
from tests.faults.site import Site
from tests.worker.conftest import eventually

#: Below the shortest time a publish to this broker would wait (2 s), for all calls together.
NO_WAIT = 1.5


@contextmanager
def killed(site: Site) -> Iterator[None]:
    site.broker.kill()
    try:
        yield
    finally:
        site.broker.start()


@contextmanager
def stopped(site: Site) -> Iterator[None]:
    with frozen(site.broker):
        yield


@contextmanager
def flushed(site: Site) -> Iterator[None]:
    """Again and again: whatever was published is lost."""
    with site.queue() as client:
        client.flushall()
        yield
        client.flushall()


@contextmanager
def demoted(site: Site) -> Iterator[None]:
    """READONLY, and UNBLOCKED for whoever waits; then it is promoted again."""
    with site.queue() as client:
        client.replicaof("127.0.0.1", 1)  # type: ignore[no-untyped-call]
        yield
        client.replicaof("NO", "ONE")  # type: ignore[no-untyped-call]


@contextmanager
def without_replicas(site: Site) -> Iterator[None]:
    """NOREPLICAS."""
    with site.queue() as client:
        client.config_set("min-replicas-to-write", 1)
        yield
        client.config_set("min-replicas-to-write", 0)


@contextmanager
def unblocked(site: Site) -> Iterator[None]:
    """UNBLOCKED, for each worker that waits for a message."""
    with site.queue() as client:
        for one in client.client_list():
            client.execute_command("CLIENT", "UNBLOCK", one["id"], "ERROR")
        yield


FAULTS = pytest.mark.parametrize(
    "fault", [killed, stopped, flushed, demoted, without_replicas, unblocked], ids=lambda fault: fault.__name__
)


def one_of_each(billing: Billing, payer: Payer) -> None:
    """A charge of 40, a released hold, and a refund of 10: 30 used."""
    reservation = billing.reserve(payer, 100)
    billing.use(reservation, 40)
    billing.bk.refund_quota(billing.reserve(payer, 100), reason="upstream 502")
    refund = {"user_id": payer[0], "request_id": reservation.request_id}
    billing.bk.refund_charge(**refund, refund_id=f"r-{reservation.request_id}", quota=10)


@FAULTS
def test_no_request_waits_for_the_broker_and_everything_is_booked_when_it_is_back(
    site: Site, fault: Callable[[Site], Iterator[None]]
) -> None:
    payer = site.billing.payer()
    one_of_each(site.billing, payer)
    with fault(site):  # type: ignore[attr-defined]
        began = time.monotonic()
        for _ in range(20):
            one_of_each(site.billing, payer)
            if fault is flushed:
                site.queue().flushall()
        assert time.monotonic() - began < NO_WAIT
    eventually(lambda: site.billing.accounts.user(payer[0]).used_quota == 21 * 30, seconds=90, what="all is booked")


@pytest.mark.parametrize("fault", [killed, stopped])
def test_requests_that_want_tasks_of_their_own_are_filed_at_once_after_the_first_has_found_out(
    site: Site, fault: Callable[[Site], Iterator[None]]
) -> None:
    gateway = site.gateway(dispatch="request")
    payer = gateway.payer()
    one_of_each(gateway, payer)
    # What a worker has taken when the broker is killed comes back after the visibility time-out, in five minutes.
    eventually(lambda: gateway.accounts.user(payer[0]).used_quota == 30)
    with fault(site):  # type: ignore[attr-defined]
        began = time.monotonic()
        for _ in range(20):  # 40 tasks: without a memory of the first failure, 4 s each
            one_of_each(gateway, payer)
        assert time.monotonic() - began < 15
    eventually(lambda: gateway.accounts.user(payer[0]).used_quota == 21 * 30, seconds=90, what="all is booked")
    gateway.bk.close()


def test_a_gateway_that_ends_while_the_broker_is_away_ends_soon_and_loses_nothing(site: Site) -> None:
    gateway = site.gateway()
    payer = gateway.payer()
    with frozen(site.broker):
        gateway.use(gateway.reserve(payer, 100), 40)
        began = time.monotonic()
        gateway.bk.close()
        assert time.monotonic() - began < 10
    eventually(lambda: site.billing.accounts.user(payer[0]).used_quota == 40, what="beat rings for it")
