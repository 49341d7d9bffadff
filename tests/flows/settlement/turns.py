"""A drainer's Meanwhile taken apart: what really happens at the same time happens in one order or another."""

from __future__ import annotations

from collections.abc import Callable, Generator
from typing import Any

from billing_tasks.errors import BillingError
from billing_tasks.flows.effects import Effect, Meanwhile

Script = Generator[Effect, Any, Any]


def in_turns(flow: Script, ledger_first: Callable[[], bool]) -> Script:
    """The flow with single effects only; before each of the others `ledger_first` says whose turn it is."""
    go_on: Callable[[], Effect] = lambda: next(flow)  # noqa: E731
    while True:
        try:
            effect = go_on()
        except StopIteration as stop:
            return stop.value
        try:
            reply = (yield from _apart(effect, ledger_first)) if isinstance(effect, Meanwhile) else (yield effect)
        except BillingError as exc:
            go_on = lambda failed=exc: flow.throw(failed)  # type: ignore[misc]  # noqa: E731
        else:
            go_on = lambda answer=reply: flow.send(answer)  # type: ignore[misc]  # noqa: E731


def _apart(both: Meanwhile, ledger_first: Callable[[], bool]) -> Script:
    others, booked, answer, failed = both.others, False, None, None
    waits_for: Effect | None = next(others, None)
    while waits_for is not None or not booked:
        if not booked and (waits_for is None or ledger_first()):
            booked = True
            try:
                answer = yield both.ledger
            except BillingError as exc:
                failed = exc
            continue
        assert waits_for is not None
        waits_for = yield from _one(others, waits_for)
    if failed is not None:
        raise failed
    return answer


def _one(others: Script, effect: Effect) -> Generator[Effect, Any, Effect | None]:
    try:
        reply = yield effect
    except BillingError as exc:
        following = lambda failed=exc: others.throw(failed)  # type: ignore[misc]  # noqa: E731
    else:
        following = lambda: others.send(reply)  # noqa: E731
    try:
        return following()  # type: ignore[no-any-return]
    except StopIteration:
        return None
