"""Shots: the planned requests with everything a gateway needs to make them, and what came of them."""

from __future__ import annotations

from array import array
from collections.abc import Sequence
from dataclasses import dataclass, field
from enum import IntEnum

from billing_tasks.lab.replay.accounts import Ids
from billing_tasks.lab.replay.plan import Fate, Plan


@dataclass(frozen=True, slots=True)
class Shot:
    """One request, ready to be made."""

    row: int
    at_us: int
    user_id: int
    token_id: int
    channel_id: int
    group: str
    model: str
    fate: Fate
    prompt_tokens: int
    completion_tokens: int
    max_tokens: int
    is_stream: bool


class Told(IntEnum):
    """What the gateway was told last about a request."""

    NOTHING = 0  # never sent
    CONSUMED = 1
    REFUNDED = 2
    HELD = 3  # then the gateway "died"
    REFUSED = 4
    UNANSWERED = 5  # the reservation, however often repeated: perhaps held, and then it expires
    UNCLEAR = 6  # the usage or the refund: a server was away, or answered what this traffic should not get


@dataclass(slots=True)
class Tally:
    """What came of a list of shots, place by place. Compact, because it travels between processes."""

    told: array[int] = field(default_factory=lambda: array("B"))
    quota: array[int] = field(default_factory=lambda: array("q"))  # told: charged
    reason: array[int] = field(default_factory=lambda: array("H"))  # which of `reasons`
    reserve_ns: array[int] = field(default_factory=lambda: array("q"))  # 0: not measured
    consume_ns: array[int] = field(default_factory=lambda: array("q"))
    behind_ns: array[int] = field(default_factory=lambda: array("q"))  # begun so long after its time
    late: array[int] = field(default_factory=lambda: array("B"))  # consumed or refunded after it had expired
    request_ids: list[str] = field(default_factory=list)
    reasons: list[str] = field(default_factory=lambda: [""])
    began_ns: int = 0  # monotonic, the same clock in all processes of a machine
    ended_ns: int = 0

    @classmethod
    def of_size(cls, size: int) -> Tally:
        """All places still empty."""
        tally = cls(request_ids=[""] * size)
        for name in ("told", "quota", "reason", "reserve_ns", "consume_ns", "behind_ns", "late"):
            places = getattr(tally, name)
            places.extend(0 for _ in range(size))
        return tally

    def because(self, place: int, told: Told, reason: str) -> None:
        """Note a refusal, or why there is no clear answer."""
        self.told[place] = told
        if reason not in self.reasons:
            self.reasons.append(reason)
        self.reason[place] = self.reasons.index(reason)

    def reason_of(self, place: int) -> str:
        """Why it was refused or has no clear answer."""
        return self.reasons[self.reason[place]]


def make_shots(plan: Plan, ids: Ids) -> list[Shot]:
    """The plan's requests, with ids from the database."""
    return [
        Shot(
            row=request.row,
            at_us=request.at_us,
            user_id=ids.user + request.user,
            token_id=ids.token + request.token,
            channel_id=ids.channel + request.channel,
            group=plan.groups[request.user],
            model=plan.models[request.model],
            fate=request.fate,
            prompt_tokens=request.prompt_tokens,
            completion_tokens=request.completion_tokens,
            max_tokens=request.max_tokens,
            is_stream=request.is_stream,
        )
        for request in plan.requests
    ]


def share_out(shots: Sequence[Shot], processes: int) -> list[Sequence[Shot]]:
    """Deal the shots to the processes like cards, so that each has the trace's whole length."""
    return [shots[first::processes] for first in range(processes)]


def put_together(tallies: Sequence[Tally], size: int) -> Tally:
    """The tallies of `share_out`'s hands as one, in the trace's order."""
    whole = Tally.of_size(size)
    step = len(tallies)
    for first, tally in enumerate(tallies):
        for name in ("told", "quota", "reserve_ns", "consume_ns", "behind_ns", "late"):
            getattr(whole, name)[first::step] = getattr(tally, name)
        whole.request_ids[first::step] = tally.request_ids
        for place in range(len(tally.told)):
            if tally.reason[place]:
                told = Told(tally.told[place])
                whole.because(first + place * step, told, tally.reason_of(place))
    whole.began_ns = min(tally.began_ns for tally in tallies)
    whole.ended_ns = max(tally.ended_ns for tally in tallies)
    return whole
