"""Usage comes in pieces: what each upstream says when, put together, and what is charged if nobody says anything."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator
from contextlib import suppress
from typing import Any

import pytest

from billing_tasks import AsyncBookkeeper, Settings, errors
from billing_tasks.client.charge import Charge
from billing_tasks.lab.servers import Servers
from billing_tasks.model.ids import new_request_id
from tests.client.test_charge import ask_for
from tests.conftest import Billing, MakeBilling

Pieces = list[dict[str, Any]]


def charged(billing: Billing, pieces: Pieces, **more: Any) -> Charge:
    payer = billing.payer()
    with billing.bk.charge(**ask_for(payer, **more)) as charge:
        for piece in pieces:
            charge.usage(**piece)
    billing.settle()
    assert charge.receipt is not None
    assert billing.accounts.user(payer[0]).used_quota == charge.receipt.quota
    return charge


def entry(billing: Billing, charge: Charge) -> Any:
    (found,) = billing.runtime.ledger.entries_of(charge.request_id)
    return found


@pytest.mark.parametrize(
    ("pieces", "prompt", "completion"),
    [
        ([{"prompt_tokens": 20_000, "completion_tokens": 1}, {"completion_tokens": 800}], 20_000, 800),  # Anthropic
        ([{"prompt_tokens": 20_000}, {"prompt_tokens": None, "completion_tokens": 800}], 20_000, 800),
        ([{"completion_tokens": 5}, {"completion_tokens": 9}, {"completion_tokens": 12}], 0, 12),  # running totals
        ([{"prompt_tokens": 7, "completion_tokens": 9}, {}], 7, 9),
        ([{"prompt_tokens": 20_000.0, "completion_tokens": 8e2}], 20_000, 800),
        ([{"prompt_tokens": 374, "completion_tokens": 44}, {"completion_tokens": 40}], 374, 40),
    ],
)
def test_pieces_are_put_together(billing: Billing, pieces: Pieces, prompt: int, completion: int) -> None:
    charge = charged(billing, pieces)
    booked = entry(billing, charge)
    assert (booked.prompt_tokens, booked.completion_tokens) == (prompt, completion)
    assert charge.price is not None
    assert booked.quota == charge.price.quota(prompt, completion)


def test_a_decrease_is_kept_with_the_entry(billing: Billing) -> None:
    charge = charged(
        billing, [{"completion_tokens": 58_000}, {"completion_tokens": 60_000}, {"completion_tokens": 8_000}]
    )
    booked = entry(billing, charge)
    assert booked.completion_tokens == 8_000
    assert booked.details["decreases"] == {"completion_tokens": 60_000}


def test_the_upstreams_own_detail_is_put_together_too(billing: Billing) -> None:
    pieces: Pieces = [
        {"prompt_tokens": 3, "usage": {"input_tokens": 3, "cache": {"read": 1}, "output_tokens": 1}},
        {"completion_tokens": 5, "usage": {"output_tokens": 5, "cache": None}},
    ]
    assert entry(billing, charged(billing, pieces)).usage == {
        "input_tokens": 3,
        "cache": {"read": 1},
        "output_tokens": 5,
    }


@pytest.mark.parametrize("wrong", ["12", -1, 1.5, float("nan"), float("inf"), True, [], {}, 2**60])
def test_what_can_not_be_read_raises_and_the_last_good_value_is_charged(billing: Billing, wrong: Any) -> None:
    payer = billing.payer()
    with pytest.raises(errors.InvalidRequest, match="completion_tokens"), billing.bk.charge(**ask_for(payer)) as charge:
        charge.usage(prompt_tokens=374, completion_tokens=44)
        charge.usage(prompt_tokens=400, completion_tokens=wrong)
    billing.settle()
    booked = entry(billing, charge)
    assert (booked.prompt_tokens, booked.completion_tokens) == (400, 44)


def test_the_first_word_that_can_not_be_read_makes_the_rest_not_free(billing: Billing) -> None:
    payer = billing.payer()
    with pytest.raises(errors.InvalidRequest), billing.bk.charge(**ask_for(payer)) as charge:
        charge.usage(prompt_tokens=374, completion_tokens="many", usage={"nul": "\x00"})  # type: ignore[arg-type]
    billing.settle()
    assert entry(billing, charge).prompt_tokens == 374


# -- no usage was ever reported -------------------------------------------------------------------------------


def leave(billing: Billing, *, counted: int = 0, error: BaseException | None = None, **more: Any) -> list[Any]:
    """A reader who leaves in mid-stream, or the error that ends it; the entries."""
    payer = billing.payer()
    seen: list[Charge] = []

    def stream() -> Iterator[str]:
        with billing.bk.charge(**ask_for(payer, **more)) as charge:
            seen.append(charge)
            yield "token"
            if error is not None:
                if counted:
                    charge.counted(completion_tokens=counted)
                raise error
            charge.counted(completion_tokens=counted)
            yield "token"
            yield "token"

    reading = stream()
    with suppress(ConnectionError):
        next(reading)
        next(reading)
    reading.close()
    billing.settle()
    found: list[Any] = billing.runtime.ledger.entries_of(seen[0].request_id)
    return found


def test_by_default_a_reader_who_leaves_before_usage_pays_nothing(billing: Billing) -> None:
    assert [entry.kind for entry in leave(billing)] == ["release"]


def test_the_prompt_is_billed_by_policy(billing: Billing) -> None:
    (booked,) = leave(billing, without_usage="prompt", counted=20)
    assert (booked.kind, booked.prompt_tokens, booked.completion_tokens) == ("consume", 374, 0)
    assert booked.details["usage_source"] == "prompt"


def test_what_the_gateway_counted_is_billed_by_policy(make_billing: MakeBilling) -> None:
    (booked,) = leave(make_billing(without_usage="counted"), counted=20)
    assert (booked.prompt_tokens, booked.completion_tokens) == (374, 20)
    assert booked.details["usage_source"] == "counted"


@pytest.mark.parametrize(("counted", "kind"), [(0, "release"), (20, "consume")])
def test_an_upstream_that_fails_is_billed_only_for_what_was_counted(billing: Billing, counted: int, kind: str) -> None:
    found = leave(billing, without_usage="counted", counted=counted, error=ConnectionError("upstream 502"))
    assert [entry.kind for entry in found] == [kind]


def test_usage_that_was_reported_counts_before_any_policy(billing: Billing) -> None:
    charge = charged(billing, [{"prompt_tokens": 1, "completion_tokens": 1}], without_usage="counted")
    assert "usage_source" not in entry(billing, charge).details


def test_an_unknown_policy_is_refused_before_anything_is_set_aside(billing: Billing) -> None:
    payer = billing.payer()
    with pytest.raises(errors.InvalidRequest, match="without_usage"):
        billing.bk.open_charge(**ask_for(payer, without_usage="all"))
    assert billing.available(payer[0]) == 1_000_000


# -- once ----------------------------------------------------------------------------------------------------


def test_five_calls_under_one_id_run_their_block_once(billing: Billing) -> None:
    payer = billing.payer()
    request_id = new_request_id()
    ran: list[int] = []
    refused: list[str | None] = []
    go = threading.Barrier(5)

    def call() -> None:
        go.wait()
        try:
            with billing.bk.charge(**ask_for(payer, request_id=request_id)) as charge:
                ran.append(1)
                charge.usage(prompt_tokens=374, completion_tokens=44)
        except errors.ReservationClosed as exc:
            refused.append(exc.reason)

    threads = [threading.Thread(target=call) for _ in range(5)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert (len(ran), len(refused)) == (1, 4)
    assert set(refused) <= {"again", "consumed"}
    billing.settle()
    assert billing.accounts.user(payer[0]).used_quota == 1375


def test_a_call_that_is_known_to_be_gone_may_be_made_again(billing: Billing) -> None:
    payer = billing.payer()
    gone = billing.bk.open_charge(**ask_for(payer))
    with pytest.raises(errors.ReservationClosed, match="again=True"):
        billing.bk.open_charge(**ask_for(payer, request_id=gone.request_id))
    with billing.bk.charge(**ask_for(payer, request_id=gone.request_id, again=True)) as charge:
        charge.usage(prompt_tokens=374, completion_tokens=44)
    assert billing.available(payer[0]) == 1_000_000 - 1375


# -- before the response begins ------------------------------------------------------------------------------


def test_an_open_charge_is_refused_at_once_and_settled_later(billing: Billing) -> None:
    poor, payer = billing.payer(10), billing.payer()
    with pytest.raises(errors.InsufficientUserQuota):
        billing.bk.open_charge(**ask_for(poor))
    opened = billing.bk.open_charge(**ask_for(payer))
    assert billing.available(payer[0]) == 1_000_000 - 6055
    with opened as charge:
        charge.usage(prompt_tokens=374, completion_tokens=44)
    assert billing.available(payer[0]) == 1_000_000 - 1375


def test_an_open_charge_under_asyncio(billing: Billing) -> None:
    poor, payer = billing.payer(10), billing.payer()

    async def run() -> None:
        async with AsyncBookkeeper.from_settings(billing.settings) as bk:
            with pytest.raises(errors.InsufficientUserQuota):
                await bk.open_charge(**ask_for(poor))
            charge = await bk.open_charge(**ask_for(payer))

            async def stream() -> None:
                async with charge:
                    charge.usage(prompt_tokens=374, completion_tokens=44)
                    await charge.extend(completion_tokens=2000)
                    await asyncio.sleep(3600)

            task = asyncio.create_task(stream())
            while charge.reservation.held_quota == 6055:
                await asyncio.sleep(0)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task

    asyncio.run(run())
    assert billing.available(payer[0]) == 1_000_000 - 1375


def test_without_a_maximum_the_setting_says_how_much_is_set_aside(servers: Servers, make_billing: MakeBilling) -> None:
    billing = make_billing(max_tokens={"gpt-4o": 1000, "*": 50})
    payer = billing.payer()
    charge = billing.bk.open_charge(**ask_for(payer, max_tokens=None))
    assert charge.price is not None
    assert charge.reservation.held_quota == charge.price.quota(374, 1000)
    other = billing.bk.open_charge(**ask_for(payer, max_tokens=None, model="gpt-4"))
    assert other.price is not None
    assert other.reservation.held_quota == other.price.quota(374, 50)
    assert Settings().max_tokens["*"] == 4096
