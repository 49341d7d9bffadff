"""Errors: a tree in two branches, each leaf with a code, a status and advice; whole after a pickle. No server."""

from __future__ import annotations

import pickle
from collections.abc import Iterator

import pytest

from billing_tasks import errors
from billing_tasks.errors import BillingError, Refused, Unavailable


def leaves(kind: type[BillingError] = BillingError) -> Iterator[type[BillingError]]:
    for child in kind.__subclasses__():
        if child.__module__ == errors.__name__:
            yield child
            yield from leaves(child)


KINDS = sorted(set(leaves()), key=lambda kind: kind.__name__)


@pytest.mark.parametrize("kind", KINDS)
def test_an_error_survives_a_pickle(kind: type[BillingError]) -> None:
    error = kind("what", reason="why", request_id="id")
    again = pickle.loads(pickle.dumps(error))
    assert (type(again), again.message, again.reason, again.request_id) == (kind, "what", "why", "id")
    assert str(again) == "what"


@pytest.mark.parametrize("kind", KINDS)
def test_an_error_says_what_to_do_and_answers_as_openai_does(kind: type[BillingError]) -> None:
    assert kind.what_to_do.endswith(".")
    assert 400 <= kind.http_status < 600
    body = kind("what", reason="why").as_openai()["error"]
    told = "what" if issubclass(kind, Refused) and kind.for_customers is None else kind.for_customers
    assert body == {"message": told, "type": "one_api_error", "param": "why", "code": kind.code}


def test_codes_tell_errors_apart() -> None:
    codes = [kind.code for kind in KINDS]
    assert len(codes) == len(set(codes))


def test_an_error_is_refused_or_unavailable_and_never_both() -> None:
    for kind in KINDS:
        assert not (issubclass(kind, Refused) and issubclass(kind, Unavailable))
    assert {kind for kind in KINDS if not issubclass(kind, Refused | Unavailable)} == {errors.OutboxStuck}
