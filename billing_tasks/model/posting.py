"""What the ledger answers to events that were posted."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

from billing_tasks.model.account import TokenRow, UserRow


class PostOutcome(StrEnum):
    """What the ledger answers for one event."""

    POSTED = "posted"  # booked now
    DUPLICATE = "duplicate"  # booked before, with the same body
    CONFLICT = "conflict"  # booked before, with another body
    UNKNOWN_USER = "unknown_user"
    UNKNOWN_TOKEN = "unknown_token"  # noqa: S105 - no such token, or another user's
    NO_CHARGE = "no_charge"  # refund: nothing was charged under this request_id (yet)
    ABOVE_CHARGE = "above_charge"  # refund: more than is left of the charge

    @property
    def booked(self) -> bool:
        """True if the ledger now holds the event, from this call or an earlier one."""
        return self in (PostOutcome.POSTED, PostOutcome.DUPLICATE)


@dataclass(frozen=True, slots=True)
class OutboxPart:
    """Which events of which outbox a batch covers: ranges of sequence numbers, first and last, in order.

    Without an epoch: the events come from no outbox; the shard says where their channels' usage is counted.
    The numbers are accounted for if all of the batch's events are booked; what is refused has to be kept before.
    """

    shard: int
    epoch: int | None = None
    seqs: tuple[tuple[int, int], ...] = ()
    when_booked: bool = True
    later: bool = False  # they are accounted for by a call of its own, without events
    server: str | None = None  # of that call: the run of the server that booked them; another one accounts for nothing


@dataclass(frozen=True, slots=True)
class ServerRun:
    """Which run of a PostgreSQL server answered, and the last version that it had given to an account by then.

    Another run (a restart, a failover, a restore), or a last version below one that was seen before, means that what
    was read of accounts before may be newer than what the server has now.
    """

    name: str
    last_version: int

    @property
    def installation(self) -> str:
        """Which books these are, whatever server they are on."""
        return installation_in(self.name)


def installation_in(name: str) -> str:
    """The part of a run's name that stays through restarts, failovers and restores."""
    return name.partition(".")[0]


@dataclass(frozen=True, slots=True)
class PostedBatch:
    """The ledger's answer to a batch: one outcome per event, and every account named, as it is now."""

    outcomes: list[PostOutcome]
    users: list[UserRow]
    tokens: list[TokenRow]
    server: ServerRun
