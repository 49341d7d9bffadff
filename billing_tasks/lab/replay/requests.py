"""Requests: the planned ones with everything a gateway needs to make them, and what came of them."""

from __future__ import annotations

from array import array
from collections.abc import Sequence
from dataclasses import dataclass, field
from enum import IntEnum
from typing import Any

from billing_tasks.lab.replay.accounts import Ids
from billing_tasks.lab.replay.mixed import answer_of
from billing_tasks.lab.replay.plan import Fate, Plan


@dataclass(frozen=True, slots=True)
class PlannedRequest:
    """One request with the ids of its accounts, ready to be made."""

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
    answer: dict[str, Any] | None = None  # what the upstream sends; None: its tokens alone are known


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
    """What came of a list of requests, each at its index. Compact, because it travels between processes."""

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
        """Nothing noted yet."""
        tally = cls(request_ids=[""] * size)
        for name in ("told", "quota", "reason", "reserve_ns", "consume_ns", "behind_ns", "late"):
            values = getattr(tally, name)
            values.extend(0 for _ in range(size))
        return tally

    def because(self, index: int, told: Told, reason: str) -> None:
        """Note a refusal, or why there is no clear answer."""
        self.told[index] = told
        if reason not in self.reasons:
            self.reasons.append(reason)
        self.reason[index] = self.reasons.index(reason)

    def reason_of(self, index: int) -> str:
        """Why it was refused or has no clear answer."""
        return self.reasons[self.reason[index]]


def make_requests(plan: Plan, ids: Ids, *, mix: int | None = None) -> list[PlannedRequest]:
    """The plan's requests, with ids from the database. `mix`: with answers as upstreams send them, of this seed."""
    return [
        PlannedRequest(
            row=row.row,
            at_us=row.at_us,
            user_id=ids.user + row.user,
            token_id=ids.token + row.token,
            channel_id=ids.channel + row.channel,
            group=plan.groups[row.user],
            model=plan.models[row.model],
            fate=row.fate,
            prompt_tokens=row.prompt_tokens,
            completion_tokens=row.completion_tokens,
            max_tokens=row.max_tokens,
            is_stream=row.is_stream,
            answer=None if mix is None else answer_of(row, plan.models[row.model], mix),
        )
        for row in plan.requests
    ]


def share_out(requests: Sequence[PlannedRequest], processes: int) -> list[Sequence[PlannedRequest]]:
    """Deal the requests out to the processes in turns, so that each has the trace's whole length."""
    return [requests[first::processes] for first in range(processes)]


def put_together(tallies: Sequence[Tally], size: int) -> Tally:
    """The tallies of `share_out`'s shares as one, in the trace's order."""
    whole = Tally.of_size(size)
    step = len(tallies)
    for first, tally in enumerate(tallies):
        for name in ("told", "quota", "reserve_ns", "consume_ns", "behind_ns", "late"):
            getattr(whole, name)[first::step] = getattr(tally, name)
        whole.request_ids[first::step] = tally.request_ids
        for index in range(len(tally.told)):
            if tally.reason[index]:
                told = Told(tally.told[index])
                whole.because(first + index * step, told, tally.reason_of(index))
    whole.began_ns = min(tally.began_ns for tally in tallies)
    whole.ended_ns = max(tally.ended_ns for tally in tallies)
    return whole
