"""Replies of Redis, taken apart; what no script wrote, and what a later release wrote. No server."""

from __future__ import annotations

import pytest

from billing_tasks.holds.outcomes import Reserve
from billing_tasks.holds.replies import parse_entry, parse_hold, read_reserved

HEADER = b"consume r 1 2 40 50 1790000000000"


def entry(header: bytes, *more: bytes) -> tuple[bytes, list[bytes]]:
    return b"17-3", [b"event", header, b"payload", b"{}", *more]


def test_an_entry_is_its_header_and_its_payload() -> None:
    found = parse_entry(entry(HEADER))
    assert (found.kind, found.request_id, found.user_id, found.token_id) == ("consume", "r", 1, 2)
    assert (found.weight, found.held, found.filed_ms, found.payload) == (40, 50, 1790000000000, b"{}")
    assert (found.epoch, found.seq, found.event) == (17, 3, HEADER)


@pytest.mark.parametrize("raw", [entry(HEADER + b" new words\n2"), entry(HEADER, b"price", b"7")])
def test_words_and_fields_of_a_later_release_are_ignored(raw: tuple[bytes, list[bytes]]) -> None:
    assert (parse_entry(raw).weight, parse_entry(raw).kind) == (40, "consume")


@pytest.mark.parametrize(
    "header",
    [
        b"",
        b"consume r 1 2 40 50",
        HEADER + b"x",
        HEADER + b"\t",
        b"consume r 1 2 -4 50 1",
        b"c r 1 2 " + b"9" * 19 + b" 1 1",
    ],
)
def test_what_no_script_wrote_weighs_nothing(header: bytes) -> None:
    found = parse_entry(entry(header))
    assert (found.kind, found.weight, found.event) == ("", 0, b"")


@pytest.mark.parametrize("more", [b"", b" 03aa", b" a b c"])
def test_a_hold_has_five_words_and_perhaps_more(more: bytes) -> None:
    found = parse_hold(b"held 1 2 30 -" + more)
    assert found is not None
    assert (found.state, found.user_id, found.token_id, found.quota) == ("held", 1, 2, 30)


@pytest.mark.parametrize("packed", [None, b"", b"held", b"held 1 2 30", b"held 1 2 30 ", b"held 1 x 30 -", b"12"])
def test_other_strings_are_no_holds(packed: bytes | None) -> None:
    assert parse_hold(packed) is None


def test_a_reservations_reply_says_what_its_outcome_tells() -> None:
    held = read_reserved([b"HELD", 5000, 70, 100, b"9"])
    assert (held.outcome, held.expires_at_ms, held.available, held.now_ms, held.epoch) == (
        Reserve.HELD,
        5000,
        70,
        100,
        "9",
    )
    closed = read_reserved([b"HOLD_CLOSED", b"expired", 0, 100, b"9"])
    assert closed.closed_as == "expired"
    refused = read_reserved([b"INSUFFICIENT_USER_QUOTA", 3, 1200, 100, b"9"])
    assert (refused.available, refused.age_ms) == (3, 1200)
    assert read_reserved([b"BACKLOG_FULL", 12, 0, 100, b"9"]).backlog == 12
