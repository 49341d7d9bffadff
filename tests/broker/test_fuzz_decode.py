"""Anything at all as a message to billing.consume and billing.refund: an error of ours and a dead letter, never a
changed balance, never a crash."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from billing_tasks import errors
from billing_tasks.model.ids import new_request_id
from tests.conftest import Billing
from tests.worker.tasks import module as tasks
from tests.worker.tasks import task_of

FIELDS = {
    *("user_id", "token_id", "channel_id", "quota", "request_id", "prompt_tokens", "completion_tokens"),
    *("model_name", "content", "usage", "refund_id", "reason", "dead_letter", "attempt", "kind", "fingerprint"),
    *("is_stream", "self"),
}

scalars = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.sampled_from([-1, 0, 1, 2**53, 2**63, 10**400])
    | st.floats()
    | st.text(max_size=20)
    | st.sampled_from(["\x00", "None", "x" * 100_000, "1", new_request_id()])
)
values = st.recursive(
    scalars, lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=5), inner, max_size=4)
)
#: A message that would be booked if nothing in it were replaced: fuzz finds more beside the path than far from it.
messages = st.fixed_dictionaries({}, optional=dict.fromkeys(FIELDS, values) | {"surprise": values})


def deliver(task: Any, message: dict[str, Any]) -> None:
    """As a worker runs it: what comes out is an answer or a refusal of ours."""
    result = task.apply(kwargs=message)
    assert isinstance(result.result, dict | errors.Refused), repr(result.result)


@pytest.fixture
def delivered(billing: Billing, monkeypatch: pytest.MonkeyPatch) -> Iterator[Billing]:
    monkeypatch.setattr(tasks, "runtime", lambda: billing.runtime)
    # Celery logs each refusal with its traceback, and pytest keeps every record until the session ends.
    logging.disable(logging.CRITICAL)
    yield billing
    logging.disable(logging.NOTSET)


@pytest.mark.parametrize("name", ["consume_one", "refund_one"])
def test_no_message_crashes_a_worker_or_moves_quota_that_is_not_its_own(delivered: Billing, name: str) -> None:
    payer = delivered.payer(1_000_000)
    bystander = delivered.payer(777)
    task = task_of(name)

    @settings(
        max_examples=300,
        derandomize=True,
        database=None,
        deadline=None,
        suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
    )
    @given(messages, st.booleans())
    def check(message: dict[str, Any], plausible: bool) -> None:
        if plausible:
            good = {"user_id": payer[0], "token_id": payer[1], "channel_id": 3, "quota": 1}
            message = {**good, "request_id": new_request_id(), **message}
        deliver(task, json.loads(json.dumps(message)))
        assert delivered.accounts.user(bystander[0]).quota == 777

    check()
    delivered.settle()
    spent = 1_000_000 - delivered.accounts.user(payer[0]).quota
    booked = delivered.sql("select coalesce(sum(quota), 0) from billing.ledger_entries where kind = 'consume'")[0][0]
    assert spent == booked
    assert delivered.verify().backlog == 0


WRONG = ["abc", True, 1.5, [1], {}, 10**30, -1, "\x00"]


@pytest.mark.parametrize(
    ("task", "argument", "value"),
    [("consume_one", "dead_letter", value) for value in [*WRONG, 0]]
    + [("settle_shard", "shard", value) for value in [*WRONG, None]]
    + [("retry_failed", "limit", value) for value in [*WRONG, 0, None]],
)
def test_arguments_of_the_wrong_kind_are_refused_by_name(
    delivered: Billing, task: str, argument: str, value: object
) -> None:
    with pytest.raises(errors.InvalidRequest, match=argument):
        task_of(task).apply(kwargs={argument: value}, throw=True)
