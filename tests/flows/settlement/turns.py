"""A drainer's Meanwhile taken apart: what really happens at the same time happens in one order or another."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

from billing_tasks.errors import BillingError
from billing_tasks.flows.effects import Effect, Flow, Meanwhile


async def in_turns(flow: Flow[Any], ledger_first: Callable[[], bool]) -> Any:
    """The flow with single effects only; before each of the others `ledger_first` says whose turn it is."""
    go_on: Callable[[], Effect[Any]] = partial(flow.send, None)
    while True:
        try:
            effect = go_on()
        except StopIteration as stop:
            return stop.value
        try:
            reply = await (_apart(effect, ledger_first) if isinstance(effect, Meanwhile) else effect)
        except BillingError as exc:
            go_on = partial(flow.throw, exc)
        else:
            go_on = partial(flow.send, reply)


async def _apart(both: Meanwhile[Any], ledger_first: Callable[[], bool]) -> Any:
    others, booked, answer, failed = both.others(), False, None, None
    waits_for = _next(partial(others.send, None))
    while waits_for is not None or not booked:
        if not booked and (waits_for is None or ledger_first()):
            booked = True
            try:
                answer = await both.ledger
            except BillingError as exc:
                failed = exc
            continue
        assert waits_for is not None
        try:
            reply = await waits_for
        except BillingError as exc:
            waits_for = _next(partial(others.throw, exc))
        else:
            waits_for = _next(partial(others.send, reply))
    if failed is not None:
        raise failed
    return answer


def _next(go_on: Callable[[], Effect[Any]]) -> Effect[Any] | None:
    """None: the flow has ended."""
    try:
        return go_on()
    except StopIteration:
        return None
