"""Dead letters of every sort, retried and looked at as a worker and a person would."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from typing import Any

import msgspec
import pytest
from click.testing import Result
from typer.testing import CliRunner

from billing_tasks import ConsumeLog
from billing_tasks.cli import app
from billing_tasks.errors import BillingError
from billing_tasks.flows.dead_letters import preview, record, retry
from billing_tasks.flows.effects import Enqueue
from billing_tasks.ledger.rows import DeadLetter
from billing_tasks.model import events
from billing_tasks.model.events import Event
from billing_tasks.model.ids import new_request_id
from billing_tasks.model.refund import RefundRequest
from billing_tasks.runtime import runtime
from tests.conftest import CHANNEL, Billing, Payer
from tests.worker.conftest import processes, start_flower

__all__ = ["processes", "start_flower"]


class DeadLetterDriver:
    """Dead letters of a Billing, treated as a worker and a person would."""

    def __init__(self, billing: Billing) -> None:
        self.billing = billing
        self.ledger = billing.runtime.ledger

    def keep(self, event: Event, reason: str = "no_charge") -> int:
        """An event as a dead letter; its number."""
        (number,) = self.billing.runtime.run(record.keep([record.of_event(event, reason, "kept by the test")]))
        return number

    def get(self, number: int) -> DeadLetter:
        dead_letter = self.ledger.get_dead_letter(number)
        assert dead_letter is not None
        return dead_letter

    def only(self) -> DeadLetter:
        (dead_letter,) = self.ledger.dead_letters()
        return dead_letter

    def history(self, number: int) -> list[str]:
        return [str(event.what) for event in self.ledger.dead_letter_history(number)]

    def attempt(self, number: int, **more: Any) -> str:
        """One attempt: its outcome, or the class of the error that says why not."""
        b = self.billing
        flow = retry.attempt(number, **{"actor": "test", **more}, commands=b.runtime.commands, settings=b.settings)
        try:
            return b.runtime.run(flow).outcome
        except BillingError as exc:
            return type(exc).__name__

    def preview(self, number: int) -> preview.Preview:
        return self.billing.runtime.run(preview.preview(number, commands=self.billing.runtime.commands))

    def beat(self, limit: int = 100, **asked: Any) -> list[int]:
        """What beat sends, attempted at once; the numbers in the order of their turns. With filters: a person's."""
        b, turns = self.billing, []
        flow = retry.send_again(limit=limit, due_only=not asked, settings=b.settings, **asked)
        reply = None
        try:
            while True:
                effect = flow.send(reply)
                reply = None
                if isinstance(effect, Enqueue):
                    turns.append(effect.kwargs["dead_letter"])
                    self.attempt(effect.kwargs["dead_letter"], count=effect.kwargs["attempt"], actor="worker")
                else:
                    reply = b.runtime.perform(effect)
        except StopIteration:
            return turns

    def now_due(self) -> None:
        """Instead of waiting for their time."""
        self.billing.sql("update billing.dead_letters set next_attempt_at = now() where state = 'retrying'")


@pytest.fixture
def dead_letters(billing: Billing) -> DeadLetterDriver:
    return DeadLetterDriver(billing)


def usage(payer: Payer, quota: int, request_id: str | None = None, **more: Any) -> Event:
    """What a gateway would file."""
    request_id = request_id or new_request_id()
    log = ConsumeLog(user_id=payer[0], token_id=payer[1], channel_id=CHANNEL, quota=quota, request_id=request_id)
    return msgspec.structs.replace(events.of_log(log), **more)


def refund_of(user_id: int, request_id: str, quota: int | None = None, refund_id: str = "case-17") -> Event:
    return RefundRequest(user_id=user_id, request_id=request_id, quota=quota, refund_id=refund_id).event


def charge(billing: Billing, payer: Payer, quota: int = 1000) -> str:
    """A request that is charged and booked; its id."""
    event = usage(payer, quota)
    shard = billing.runtime.commands.keys.shard_of(payer[0])
    assert [str(outcome) for outcome in billing.runtime.ledger.post_batch(shard, [event]).outcomes] == ["posted"]
    return event.request_id


Run = Callable[..., Result]


@pytest.fixture
def run(billing: Billing, monkeypatch: pytest.MonkeyPatch) -> Iterator[Run]:
    """Runs `billing-tasks dead-letters ...` in this process, on the test's servers."""
    for name, value in billing.environment.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("COLUMNS", "200")
    runtime.cache_clear()

    def invoke(*words: object, status: int = 0, answer: str | None = None) -> Result:
        result = CliRunner().invoke(app, ["dead-letters", *map(str, words)], input=answer)
        if result.exception and not isinstance(result.exception, SystemExit):
            raise result.exception
        assert result.exit_code == status, result.output
        return result

    yield invoke
    if runtime.cache_info().currsize:
        runtime().close()
    runtime.cache_clear()


def as_json(result: Result) -> Any:
    return json.loads(result.stdout)
