"""Both servers away: with a spool the usage is on this machine's disk, and is booked once when they are back."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
import textwrap
import threading
from pathlib import Path

import pytest

from billing_tasks import AsyncBookkeeper, Bookkeeper, Settings, errors
from billing_tasks.client.relayer import relay
from billing_tasks.model.ids import new_request_id
from billing_tasks.runtime import Runtime
from tests.conftest import CHANNEL, Billing, Payer
from tests.flows.requests.test_away import NO_POSTGRESQL, NO_REDIS, log_of


@pytest.fixture
def cut_off(tmp_path: Path) -> Settings:
    """Settings of a gateway that reaches no server and has a spool."""
    return Settings(redis_url=NO_REDIS, database_url=NO_POSTGRESQL, spool_folder=tmp_path / "spool")


def back(billing: Billing, cut_off: Settings) -> Settings:
    """The same gateway with its servers."""
    return billing.settings.model_copy(update={"spool_folder": cut_off.spool_folder})


def files(settings: Settings) -> list[str]:
    assert settings.spool_folder is not None
    return sorted(path.name for path in settings.spool_folder.glob("[!.]*"))


def relayed(settings: Settings) -> tuple[int, int, int]:
    runtime = Runtime(settings)
    try:
        done = relay(runtime)
        return done.relayed, done.refused, done.left
    finally:
        runtime.close()


def test_what_no_server_took_is_booked_once_after_the_next_start(billing: Billing, cut_off: Settings) -> None:
    payer = billing.payer()
    log = log_of(payer)
    with Bookkeeper.from_settings(cut_off) as bk:
        receipt = bk.consume(log)
        assert (receipt.spooled, receipt.quota) == (True, 40)
        assert bk.consume(log).spooled, "repeating is safe"
    assert len(files(cut_off)) == 1
    with Bookkeeper.from_settings(back(billing, cut_off)) as bk:
        wait_until_empty(bk, cut_off)
    billing.settle()
    assert billing.accounts.user(payer[0]).used_quota == 40
    assert files(cut_off) == []


def wait_until_empty(bk: Bookkeeper, settings: Settings) -> None:
    thread = bk._relayer._thread
    if thread is not None:
        thread.join(30)
    assert files(settings) == []


def test_a_spooled_event_that_had_arrived_after_all_is_a_duplicate(billing: Billing, cut_off: Settings) -> None:
    payer = billing.payer()
    reservation = billing.reserve(payer, 100)
    log = reservation.log(channel_id=CHANNEL, quota=40)
    with Bookkeeper.from_settings(cut_off) as bk:
        assert bk.consume(log).spooled
    assert billing.bk.consume(log).quota == 40
    billing.settle()
    assert relayed(back(billing, cut_off)) == (1, 0, 0)
    billing.settle()
    assert billing.accounts.user(payer[0]).used_quota == 40


def test_relaying_while_the_servers_are_still_away_keeps_every_file(billing: Billing, cut_off: Settings) -> None:
    payer = billing.payer()
    with Bookkeeper.from_settings(cut_off) as bk:
        for _ in range(3):
            assert bk.consume(log_of(payer)).spooled
    before = files(cut_off)
    assert relayed(cut_off) == (0, 0, 3)
    assert files(cut_off) == before
    assert relayed(back(billing, cut_off)) == (3, 0, 0)
    billing.settle()
    assert billing.accounts.user(payer[0]).used_quota == 120


def test_one_server_is_enough_to_relay(billing: Billing, cut_off: Settings) -> None:
    payer = billing.payer()
    with Bookkeeper.from_settings(cut_off) as bk:
        assert bk.consume(log_of(payer)).spooled
    without_redis = back(billing, cut_off).model_copy(update={"redis_url": NO_REDIS})
    assert relayed(without_redis) == (1, 0, 0)
    assert billing.accounts.user(payer[0]).used_quota == 40


def test_refunds_are_spooled_too(billing: Billing, cut_off: Settings) -> None:
    payer = billing.payer()
    reservation = billing.reserve(payer, 100)
    billing.use(reservation, 60)
    billing.settle()
    with Bookkeeper.from_settings(cut_off) as bk:
        for _ in range(2):
            receipt = bk.refund_charge(
                user_id=payer[0], request_id=reservation.request_id, refund_id="case-1", quota=25
            )
            assert receipt.spooled
    assert relayed(back(billing, cut_off)) == (1, 0, 0)
    billing.settle()
    assert billing.accounts.user(payer[0]).used_quota == 35


def test_usage_of_an_unknown_user_becomes_a_dead_letter_when_it_is_relayed(billing: Billing, cut_off: Settings) -> None:
    with Bookkeeper.from_settings(cut_off) as bk:
        assert bk.consume(log_of((999, 999))).spooled
    assert relayed(back(billing, cut_off).model_copy(update={"redis_url": NO_REDIS})) == (0, 1, 0)
    (dead_letter,) = billing.runtime.ledger.dead_letters()
    assert (dead_letter.reason, dead_letter.user_id) == ("unknown_user", 999)
    assert files(cut_off) == []


def test_a_file_that_is_no_event_is_set_aside_and_stops_nothing(billing: Billing, cut_off: Settings) -> None:
    payer = billing.payer()
    assert cut_off.spool_folder is not None
    with Bookkeeper.from_settings(cut_off) as bk:
        assert bk.consume(log_of(payer)).spooled
    (cut_off.spool_folder / "0.json").write_bytes(b"\xff{")
    assert relayed(back(billing, cut_off)) == (1, 1, 0)
    assert files(cut_off) == ["0.refused"]
    billing.settle()
    assert billing.accounts.user(payer[0]).used_quota == 40


def test_without_a_spool_or_without_room_in_it_the_error_says_so(tmp_path: Path) -> None:
    payer: Payer = (1, 1)
    none = Settings(redis_url=NO_REDIS, database_url=NO_POSTGRESQL)
    with Bookkeeper.from_settings(none) as bk, pytest.raises(errors.NotBooked, match="Neither"):
        bk.consume(log_of(payer))
    (tmp_path / "file").write_text("in the way")
    blocked = none.model_copy(update={"spool_folder": tmp_path / "file" / "spool"})
    with Bookkeeper.from_settings(blocked) as bk, pytest.raises(errors.NotBooked, match="spool"):
        bk.consume(log_of(payer))


def test_asyncio_spools_and_relays_as_well(billing: Billing, cut_off: Settings) -> None:
    payer = billing.payer()

    async def cut() -> None:
        async with AsyncBookkeeper.from_settings(cut_off) as bk:
            receipts = await asyncio.gather(*(bk.consume(log_of(payer, 10)) for _ in range(5)))
            assert all(receipt.spooled for receipt in receipts)

    asyncio.run(cut())
    assert len(files(cut_off)) == 5
    assert relayed(back(billing, cut_off)) == (5, 0, 0)
    billing.settle()
    assert billing.accounts.user(payer[0]).used_quota == 50


def test_two_processes_relay_one_folder_without_booking_twice(billing: Billing, cut_off: Settings) -> None:
    payer = billing.payer()
    with Bookkeeper.from_settings(cut_off) as bk:
        for _ in range(20):
            assert bk.consume(log_of(payer, 1)).spooled
    threads = [threading.Thread(target=relayed, args=(back(billing, cut_off),)) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    while files(cut_off):
        relayed(back(billing, cut_off))
    billing.settle()
    assert billing.accounts.user(payer[0]).used_quota == 20


def test_a_gateway_killed_after_its_receipt_has_lost_nothing(billing: Billing, cut_off: Settings) -> None:
    payer = billing.payer()
    program = textwrap.dedent(f"""
        import os, signal
        from billing_tasks import Bookkeeper, ConsumeLog, Settings
        from billing_tasks.model.ids import new_request_id
        bk = Bookkeeper.from_settings(Settings(redis_url={NO_REDIS!r}, database_url={NO_POSTGRESQL!r},
                                               spool_folder={str(cut_off.spool_folder)!r}))
        for _ in range(3):
            log = ConsumeLog(user_id={payer[0]}, token_id={payer[1]}, channel_id=3, quota=7,
                             request_id=new_request_id())
            assert bk.consume(log).spooled
        os.kill(os.getpid(), signal.SIGKILL)
    """)
    ended = subprocess.run([sys.executable, "-c", program], env=os.environ, check=False)
    assert ended.returncode == -signal.SIGKILL
    assert relayed(back(billing, cut_off)) == (3, 0, 0)
    billing.settle()
    assert billing.accounts.user(payer[0]).used_quota == 21


@pytest.mark.parametrize(
    "text",
    [
        b'{"fingerprint":"00","content":"\xff"}',
        b'{"fingerprint":"00","user_id":1,"token_id":1,"quota":5}',
        b'{"fingerprint":"00","kind":"consume","request_id":"a b","user_id":1,"token_id":1,"quota":5}',
        b'{"fingerprint":"00","kind":"release","request_id":"ID","user_id":1,"token_id":1,"quota":5}',
        b'{"fingerprint":"00","kind":"consume","request_id":"ID","user_id":1,"used_at_ms":1000000000000000}',
    ],
)
def test_a_file_that_is_no_event_of_ours_is_set_aside_and_stops_no_other(
    billing: Billing, cut_off: Settings, text: bytes
) -> None:
    payer = billing.payer()
    with Bookkeeper.from_settings(cut_off) as bk:
        bk.consume(log_of(payer))
    assert cut_off.spool_folder is not None
    bad = cut_off.spool_folder / "a.json"
    bad.write_bytes(text.replace(b"ID", new_request_id().encode()))
    os.utime(bad, (1, 1))  # it is the oldest

    assert relayed(back(billing, cut_off)) == (1, 1, 0)

    assert files(cut_off) == ["a.refused"]
    assert billing.settle().posted == 1
    assert billing.accounts.user(payer[0]).used_quota == 40
