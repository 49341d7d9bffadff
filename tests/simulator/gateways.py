"""What applications do: requests, each a short script of calls. All of them repeat after Unavailable."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from random import Random
from typing import Any

from billing_tasks import ConsumeLog
from billing_tasks.errors import Refused, Unavailable
from billing_tasks.flows.effects import Flow
from billing_tasks.model import events
from billing_tasks.model.events import Event
from billing_tasks.model.refund import RefundRequest
from billing_tasks.model.reservation import Reservation
from tests.simulator.actors import Script
from tests.simulator.books import Key
from tests.simulator.world import TOKENS, World

CHANNELS = (0, 3, 4)
#: Ids carry a time that the ledger's partitions take; which day it is changes nothing in a history.
_BASE_MS = int(time.time()) // 86_400 * 86_400_000


def request_id(number: int, dice: Random) -> str:
    """A UUIDv7 from the seed."""
    value = (_BASE_MS + number) << 80 | dice.getrandbits(80)
    value = value & ~(0xF000 << 64) | (0x7000 << 64)
    value = value & ~(0xC000 << 48) | (0x8000 << 48)
    h = f"{value:032x}"
    return f"{h[:8]}-{h[8:12]}-{h[12:16]}-{h[16:20]}-{h[20:]}"


@dataclass(eq=False)
class Request:
    """One request of a user."""

    id: str
    name: str
    user: int
    token: int
    amount: int
    quota: int  # what it really uses
    channel: int

    def log(self, *, more: int = 0, token: int | None = None) -> ConsumeLog:
        """Its usage; `more` or another token makes it another body."""
        return ConsumeLog(
            user_id=self.user,
            token_id=token or self.token,
            channel_id=self.channel,
            quota=self.quota + more,
            request_id=self.id,
        )


@dataclass
class Applications:
    """All gateways of one history."""

    world: World
    dice: Random
    users: list[int]
    available: Callable[[Key], int]  # as the oracle knows it
    is_open: Callable[[int, str], bool]  # whether a user's request has a hold
    is_due: Callable[[int, str], bool]  # and its time has come
    requests: list[Request] = field(default_factory=list)
    #: what was accepted: it must end in the ledger, as a dead letter, or in an accident
    accepted: list[tuple[Event, bool]] = field(default_factory=list)  # True: as a message

    def new_request(self) -> Request:
        """By any user, now and then with another user's token."""
        user = self.dice.choice(self.users)
        own = [token for token, (owner, _, _) in TOKENS.items() if owner == user]
        token = self.dice.choice(own) if self.dice.random() < 0.96 else self.dice.choice(list(TOKENS))
        amount = self.dice.choice((0, 1, 2, 4, 7, 12, 20))
        if self.dice.random() < 0.3:  # the last unit, or the first that is not there
            free = self.available(("user", user)) if self.dice.random() < 0.6 else self.available(("token", token))
            amount = max(0, free + self.dice.choice((0, 0, 1)))
        quota = amount if self.dice.random() < 0.3 else self.dice.choice((0, 1, 3, 6, 12, 16))
        number = len(self.requests) + 1
        name = f"r{number}"
        made = Request(request_id(number, self.dice), name, user, token, amount, quota, self.dice.choice(CHANNELS))
        self.requests.append(made)
        return made

    def at_the_same_time(self, contested: list[str]) -> tuple[Request, str, Script]:
        """Another call for a request of which a transaction waits before COMMIT."""
        wanted = self.dice.choice(contested)
        request = next(request for request in self.requests if request.id == wanted)
        story = self.dice.choice(("refund all", "refund all", "refund", "consume", "other body", "release"))
        return request, f"at the same time, {story}", self._story(request, (story,))

    def script(self) -> tuple[Request, str, Script]:
        """What a gateway does next: a request from its beginning, or another call for one that exists."""
        if self.requests and self.dice.random() < 0.35:
            held = [request for request in self.requests if self.is_open(request.user, request.id)]
            request = self.dice.choice(held if held and self.dice.random() < 0.5 else self.requests)
            return self.again(request)
        due = [request for request in self.requests if self.is_due(request.user, request.id)]
        if due and self.dice.random() < 0.5:  # a sweeper is about to let it expire
            request, story = self.dice.choice(due), self.dice.choice(("renew", "renew", "consume", "release"))
            return request, f"just in time, {story}", self._story(request, (story,))
        story = self.dice.choices(list(STORIES), list(STORIES.values()))[0]
        return (request := self.new_request()), ", ".join(story), self._story(request, story)

    def again(self, request: Request) -> tuple[Request, str, Script]:
        """Another call for a request that exists."""
        story = self.dice.choice(AGAIN)
        return request, f"again, {story}", self._story(request, (story,))

    # -- stories ------------------------------------------------------------------------------------------

    async def _story(self, request: Request, steps: tuple[str, ...]) -> None:
        reserved: Reservation | None = None
        patience = self.dice.choice((1, 2, 4))
        for step in steps:
            try:
                done = await self._repeated(self._step(step, request, reserved), patience)
            except Unavailable:
                if step == "reserve":
                    return  # the caller got an error; what it holds expires
                continue
            except Refused:
                if step == "reserve":
                    return
                continue
            if isinstance(done, Reservation):
                reserved = done

    async def _repeated(self, make: Callable[[], Flow[Any]], tries: int) -> Any:
        for left in reversed(range(tries)):
            try:
                return await make()
            except Unavailable:
                if not left:
                    raise
        raise AssertionError

    def _step(self, step: str, request: Request, reserved: Reservation | None) -> Callable[[], Flow[Any]]:
        gateway, r = self.world.gateway, request
        match step:
            case "reserve":
                return lambda: gateway._reserve(r.amount, r.user, r.token, None, r.id, None, "")
            case "reserve more":
                return lambda: gateway._reserve(r.amount + 1, r.user, r.token, None, r.id, None, "")
            case "renew":
                known = reserved or Reservation(r.id, r.user, r.token, r.amount, 0)
                return lambda: gateway._renew(known, None)
            case "extend":
                known = reserved or Reservation(r.id, r.user, r.token, r.amount, 0)
                total = max(0, r.amount + self.dice.choice((-2, 0, 1, 3, 8, 20)))
                return lambda: gateway._extend(known, total, None)
            case "consume":
                return lambda: self._consume(r.log())
            case "other body":
                more = self.dice.choice((1, -1)) if r.quota else 1
                return lambda: self._consume(r.log(more=more))
            case "other token":
                others = [token for token, (owner, _, _) in TOKENS.items() if owner == r.user and token != r.token]
                return lambda: self._consume(r.log(token=others[0] if others else None))
            case "consume by message":
                return lambda: self._consume(r.log(), gateway=self.world.enqueueing)
            case "release":
                held = reserved if self.dice.random() < 0.5 else None
                named = (None, None) if held else (r.user, r.id)
                return lambda: gateway._refund_quota(held, *named, "upstream 502")
            case "give back":
                return lambda: self._refund_request(r)
            case "refund":
                which, amount = self.dice.choice(("a", "b")), self.dice.choice((None, None, 1, 2, 5))
                return lambda: self._refund(r, f"{r.name}:{which}", amount)
            case "refund all":
                which = self.dice.choice(("c", "d"))
                return lambda: self._refund(r, f"{r.name}:{which}", None)
        return _nothing

    async def _consume(self, log: ConsumeLog, gateway: Any = None) -> Any:
        receipt = await (gateway or self.world.gateway)._consume(log)
        self.accepted.append((events.of_log(log), gateway is not None))
        return receipt

    async def _refund(self, request: Request, refund_id: str, amount: int | None) -> Any:
        receipt = await self.world.gateway._refund_charge(request.user, request.id, refund_id, amount, "")
        self.accepted.append((RefundRequest(request.user, request.id, "", amount, refund_id).event, False))
        return receipt

    async def _refund_request(self, request: Request) -> Any:
        """By a message of billing.refund: whatever there is to give back, a hold or a charge."""
        return await self.world.enqueueing._refund_quota(None, request.user, request.id, "")


async def _nothing() -> None:
    return


#: another call for a request that exists
AGAIN = (
    *("consume", "consume", "consume", "release", "refund", "refund"),
    *("reserve", "renew", "renew", "extend", "extend", "other body", "give back"),
)
#: what a request does -> how often
STORIES: dict[tuple[str, ...], int] = {
    ("reserve", "consume"): 10,
    ("reserve", "renew", "renew", "renew", "consume"): 4,
    ("reserve", "extend", "consume"): 4,
    ("reserve", "extend", "reserve", "extend", "release"): 2,
    ("reserve", "extend", "extend", "release", "extend"): 1,
    ("reserve", "release"): 4,
    ("reserve",): 3,
    ("reserve", "consume", "consume"): 2,
    ("reserve", "consume", "other body"): 2,
    ("reserve", "reserve", "reserve more", "consume"): 1,
    ("reserve", "other token", "consume"): 1,
    ("reserve", "release", "consume"): 4,
    ("reserve", "consume", "release"): 1,
    ("reserve", "consume", "refund"): 3,
    ("reserve", "consume", "refund", "refund", "refund"): 2,
    ("reserve", "refund", "consume"): 1,
    ("consume",): 2,
    ("reserve", "consume by message"): 3,
    ("reserve", "consume by message", "give back"): 1,
    ("reserve", "give back"): 2,
    ("reserve", "consume", "give back"): 2,
    ("reserve", "give back", "consume"): 2,
}
