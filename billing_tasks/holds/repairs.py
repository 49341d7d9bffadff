"""Repairs: what may be set right in Redis without asking an operator, because PostgreSQL or Redis itself knows better.

Each is one script that looks again before it writes, so a repair of something that is
right by now, or one that is made twice, changes nothing.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypeAlias

from billing_tasks.holds.commands import Command, Commands, call
from billing_tasks.holds.outcomes import Forget
from billing_tasks.holds.replies import text
from billing_tasks.settings import Settings

#: Holds and events that one script may add up: about 10 ms in which no other client is served.
MOST_IN_A_SHARD = 5000


@dataclass(frozen=True, slots=True)
class RecountAccount:
    """Set `held` and `unposted` to the sums of the open holds and of the waiting events."""

    shard: int
    which: str  # user | token
    id: int

    def command(self, commands: Commands, settings: Settings) -> Command[bool]:
        """recount.lua; True: something was changed"""
        k = commands.keys
        return call(
            "recount",
            (k.account(self.shard, self.which, self.id), k.due(self.shard), k.outbox(self.shard)),
            (k.shard(self.shard), self.which, self.id, settings.idle_seconds, MOST_IN_A_SHARD),
            lambda r: bool(r) and (int(r[4]) >= 0 or (int(r[0]), int(r[1])) != (int(r[2]), int(r[3]))),
        )

    def __str__(self) -> str:
        return f"count held and unposted of {self.which} {self.id} anew"


@dataclass(frozen=True, slots=True)
class ForgetAccount:
    """Have a cached row that PostgreSQL contradicts loaded again."""

    shard: int
    which: str  # user | token
    id: int
    version: int

    def command(self, commands: Commands, settings: Settings) -> Command[bool]:  # noqa: ARG002 - all repairs alike
        """forget.lua; True: the cached row is gone"""
        key = commands.keys.account(self.shard, self.which, self.id)
        return call("forget", (key,), (self.version,), lambda reply: text(reply[0]) == Forget.FORGOTTEN)

    def __str__(self) -> str:
        return f"load {self.which} {self.id} from PostgreSQL again"


@dataclass(frozen=True, slots=True)
class RescheduleHold:
    """Have a hold that no sweep would find in time expire after the usual ttl."""

    shard: int
    request_id: str

    def command(self, commands: Commands, settings: Settings) -> Command[bool]:  # noqa: ARG002 - all repairs alike
        """reschedule.lua; True: it expires after the ttl now"""
        return commands.reschedule(self.shard, self.request_id)

    def __str__(self) -> str:
        return f"let the hold of request {self.request_id} expire after its ttl"


Repair: TypeAlias = RecountAccount | ForgetAccount | RescheduleHold
