"""Stories: the journals put together. What each request, refund and top-up was meant to be, and what was told."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from itertools import pairwise

from chaos.journal import TOLD, Line, Step


@dataclass(slots=True)
class Request:
    """One request. Quota that was not meant to be used is None."""

    user_id: int
    token_id: int
    held_quota: int
    told: str = ""  # of the reservation: held, refused, closed
    told_ms: int = 0  # when
    consume_quota: int | None = None
    consumed: bool = False  # told accepted
    late: bool = False  # told so
    told_quota: int = 0
    release: bool = False
    by_message: bool = False  # the release: no answer comes
    released: bool = False  # told accepted
    ended_ms: int = 0  # when it was told so
    posted: bool = False  # into PostgreSQL, past Redis
    spooled: bool = False  # into a file: it was filed in Redis at some time later

    @property
    def filed_ms(self) -> tuple[int, int]:
        """Between when and when its usage or release was filed in Redis, since 1970; zeros: it was told nothing."""
        return self.ended_ms, self.ended_ms and (2**62 if self.spooled else self.ended_ms)


@dataclass(slots=True)
class Refund:
    """One refund of a charge; quota 0 is all of it."""

    refund_id: str
    request_id: str
    quota: int
    told: bool = False
    told_ms: int = 0


@dataclass(slots=True)
class TopUp:
    """One top-up of a user, or of a token if there is one."""

    user_id: int
    token_id: int
    quota: int
    told: bool = False
    told_ms: int = 0


@dataclass(slots=True)
class Stories:
    """Everything that the gateways wrote down."""

    requests: dict[str, Request] = field(default_factory=dict)
    refunds: dict[str, Refund] = field(default_factory=dict)
    top_ups: dict[str, TopUp] = field(default_factory=dict)
    refused: Counter[str] = field(default_factory=Counter)  # by reason
    by_route: Counter[str] = field(default_factory=Counter)  # usage that was "posted" or "spooled" at once
    repeated: Counter[str] = field(default_factory=Counter)  # calls that were made again, by kind
    messages: Counter[str] = field(default_factory=Counter)  # Celery messages beside a call, by task
    gave_up: list[tuple[str, str]] = field(default_factory=list)  # id, reason
    unexpected: list[tuple[str, str]] = field(default_factory=list)  # id, answer
    answers: int = 0
    begun_ms: int = 0
    ended_ms: int = 0
    longest_pause_ms: int = 0  # between two answers of all gateways
    longest_pause_at_ms: int = 0


def read_stories(lines: Iterable[Line]) -> Stories:
    """Put the lines together; those of one request must come in their order, requests may be mixed."""
    stories = Stories()
    answered: list[int] = []
    for line in lines:
        _read(line, stories)
        if line.step in TOLD:
            answered.append(line.at_ms)
    _measure(sorted(answered), stories)
    return stories


def _read(line: Line, stories: Stories) -> None:
    match line.step:
        case Step.REFUND:
            stories.refunds[line.word] = Refund(line.word, line.id, line.quota)
        case Step.REFUNDED:
            refund = stories.refunds[line.word]
            refund.told, refund.told_ms = True, refund.told_ms or line.at_ms
        case Step.TOP_UP:
            stories.top_ups[line.id] = TopUp(line.user, line.token, line.quota)
        case Step.TOPPED_UP:
            stories.top_ups[line.id].told = True
            stories.top_ups[line.id].told_ms = line.at_ms
        case Step.REPEAT:
            stories.repeated[line.word] += 1
        case Step.MESSAGE:
            stories.messages[line.word] += line.quota
        case Step.GAVE_UP:
            stories.gave_up.append((line.id, line.word))
        case Step.UNEXPECTED:
            stories.unexpected.append((line.id, line.word))
        case Step.RESERVE:
            stories.requests[line.id] = Request(line.user, line.token, line.quota)
        case _:
            _read_request(line, stories.requests[line.id])
            stories.by_route.update(route for route in ("posted", "spooled") if route in line.word.split())
            if line.step == Step.REFUSED:
                stories.refused[line.word] += 1


def _read_request(line: Line, request: Request) -> None:
    match line.step:
        case Step.HELD | Step.REFUSED | Step.CLOSED:
            request.told, request.told_ms = line.step, line.at_ms
        case Step.CONSUME:
            request.consume_quota = line.quota
        case Step.CONSUMED:
            request.consumed, request.told_quota = True, line.quota
            request.ended_ms = request.ended_ms or line.at_ms
            request.posted = request.posted or "posted" in line.word
            request.spooled = request.spooled or "spooled" in line.word
            request.late = request.late or "late" in line.word
        case Step.RELEASE:
            request.release, request.by_message = True, line.word == "message"
        case Step.RELEASED:
            request.released = True
            request.ended_ms = request.ended_ms or line.at_ms


def _measure(answered: list[int], stories: Stories) -> None:
    stories.answers = len(answered)
    if answered:
        stories.begun_ms, stories.ended_ms = answered[0], answered[-1]
        pauses = ((later - sooner, sooner) for sooner, later in pairwise(answered))
        stories.longest_pause_ms, stories.longest_pause_at_ms = max(pauses, default=(0, 0))
