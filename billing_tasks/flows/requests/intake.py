"""Intake: a message of another program, filed as if a gateway had called; what can't be used is a dead letter.

It is kept before the message is acknowledged; a crash in between has it delivered, and kept, again.
"""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from typing import Any

from billing_tasks.broker.decode import consume_log_from, refund_request_from
from billing_tasks.errors import BillingError, InvalidRequest, Refused
from billing_tasks.flows.dead_letters.record import keep, of_message
from billing_tasks.flows.requests.consume import consume
from billing_tasks.flows.requests.refund import refund, reverse
from billing_tasks.holds.commands import Commands
from billing_tasks.model.refund import RefundRequest
from billing_tasks.model.reservation import Receipt


async def consume_message(message: dict[str, Any], *, task_id: str, commands: Commands) -> Receipt:
    """File the ConsumeLog inside a message of billing.consume. Raises what consume raises; InvalidRequest is kept."""
    try:
        return await consume(consume_log_from(message), commands=commands)
    except InvalidRequest as exc:
        await keep([of_message("consume", message, exc, task_id=task_id)])
        raise


async def refund_message(
    message: dict[str, Any],
    *,
    task_id: str,
    commands: Commands,
    sent_at_ms: int | None = None,
    patient: bool = False,
) -> Receipt:
    """Do what a message of billing.refund asks for. Raises what refund raises; what is Refused is kept.

    `sent_at_ms`: when it was asked for, since 1970; None: it is not known, and now counts. `patient`: Unavailable, and
    not kept yet, while there is no charge.
    """
    try:
        wanted = replace(refund_request_from(message), asked_at_ms=sent_at_ms)
        return await refund(wanted, commands=commands, refund_charge=partial(_reversed, patient=patient))
    except _Kept as kept:
        raise kept.error from None
    except Refused as exc:
        await keep([of_message("refund", message, exc, task_id=task_id)])
        raise


class _Kept(Exception):
    """It is a dead letter already."""

    def __init__(self, error: BillingError) -> None:
        self.error = error


async def _reversed(wanted: RefundRequest, *, commands: Commands, patient: bool) -> Receipt:
    try:
        return await reverse(wanted, commands=commands, patient=patient)
    except Refused as exc:
        raise _Kept(exc) from None
