"""Request ids: minted, read, checked. No server."""

from __future__ import annotations

import time
from uuid import UUID

import pytest

from billing_tasks.errors import InvalidRequest
from billing_tasks.model.ids import (
    MAX_AGE_DAYS,
    MAX_AHEAD_SECONDS,
    check_new_request_id,
    check_request_id,
    new_request_id,
    now_ms,
    reserved_at_ms,
    shorten,
)

UUID4 = "9f1c2e34-5b67-4d89-8abc-0123456789ab"


def dated(seconds_from_now: float) -> str:
    ms = now_ms() + int(seconds_from_now * 1000)
    return f"{ms >> 16:08x}-{ms & 0xFFFF:04x}{new_request_id()[13:]}"


def test_an_id_is_a_uuid_of_version_7_that_carries_the_time() -> None:
    ids = {new_request_id() for _ in range(2000)}
    assert len(ids) == 2000
    for request_id in ids:
        assert (UUID(request_id).version, str(UUID(request_id))) == (7, request_id)
        assert abs(reserved_at_ms(request_id) / 1000 - time.time()) < 5
        assert check_request_id(request_id) == request_id


def test_capitals_and_uuids_are_the_same_id() -> None:
    request_id = new_request_id()
    assert check_request_id(request_id.upper()) == request_id
    assert check_request_id(UUID(request_id)) == request_id


@pytest.mark.parametrize("wrong", [None, "", 7, "abc", UUID4, b"x", ["x"], "0" * 10_000, {"a": 1}])
def test_what_is_no_uuid_of_version_7_is_refused_and_named(wrong: object) -> None:
    with pytest.raises(InvalidRequest, match="UUID of version 7") as refused:
        check_request_id(wrong, field="request_id")
    assert len(refused.value.message) < 300


@pytest.mark.parametrize(
    ("seconds", "accepted"),
    [
        (-MAX_AGE_DAYS * 86_400 + 60, True),
        (-MAX_AGE_DAYS * 86_400 - 60, False),
        (MAX_AHEAD_SECONDS - 60, True),
        (MAX_AHEAD_SECONDS + 60, False),
    ],
)
def test_an_id_is_refused_if_it_is_dated_outside_the_months_that_are_kept(seconds: float, accepted: bool) -> None:
    request_id = dated(seconds)
    if accepted:
        assert check_new_request_id(request_id) == request_id
    else:
        with pytest.raises(InvalidRequest, match="dated"):
            check_new_request_id(request_id)
        assert check_request_id(request_id) == request_id  # after that its date is not looked at


def test_anything_can_be_shortened() -> None:
    endless: list[object] = []
    endless.append(endless)
    for value in ("x" * 1000, b"\xff" * 1000, 10**5000, endless, object(), {"k": "v" * 1000}):
        assert len(shorten(value)) <= 80
