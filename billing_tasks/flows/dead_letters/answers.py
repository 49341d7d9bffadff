"""What these stories answer with, and the reasons they know. Data: loads no server's library."""

from __future__ import annotations

from collections import Counter
from dataclasses import asdict, dataclass

from billing_tasks.errors import IdempotencyConflict, InvalidRequest
from billing_tasks.model.posting import PostOutcome

#: Why an event was not booked, for the person who reads the row.
WHY = {
    PostOutcome.CONFLICT: "The same request_id was booked before with another body; that one stands.",
    PostOutcome.UNKNOWN_USER: "There is no such user.",
    PostOutcome.UNKNOWN_TOKEN: "The user has no such token.",
    PostOutcome.NO_CHARGE: "Nothing is charged under this request_id yet.",
    PostOutcome.ABOVE_CHARGE: "The refunds would exceed the charge.",
}
MALFORMED = "malformed"
#: The month of the request takes no entries any more: a charge in it could be one that was booked before.
ARCHIVED = "archived"
#: What an upstream said of its usage can't be read or priced; something was charged all the same.
UNREAD_USAGE = "unreadable_usage"
WHY_ARCHIVED = "The month of this request_id is archived, or is from before this ledger began: nothing is booked in it."
#: Proven to be refused again unless a person changes something. Every other reason time may heal: the charge that
#: a refund is for may be on its way, a server come back, a bug be repaired.
FOR_EVER = frozenset(
    {
        *map(
            str, (PostOutcome.CONFLICT, PostOutcome.UNKNOWN_USER, PostOutcome.UNKNOWN_TOKEN, PostOutcome.ABOVE_CHARGE)
        ),
        *(MALFORMED, ARCHIVED, UNREAD_USAGE, InvalidRequest.code, IdempotencyConflict.code),
    }
)


@dataclass(frozen=True, slots=True)
class Selected:
    """Dead letters that were asked for."""

    numbers: list[int]  # at most as many as asked for, oldest first
    more: bool  # others match, too
    left_out: dict[str, int]  # refused for ever: how many, by reason


@dataclass(frozen=True, slots=True)
class Preview:
    """What a retry would find."""

    dead_letter: int
    request_id: str
    kind: str
    would: str  # posted, duplicate, the code of a refusal, or `already resolved`, `already discarded`
    message: str  # the same as a sentence
    left: int | None = None  # of the charge, what is not refunded; None: there is no charge

    @property
    def books(self) -> bool:
        """True if the dead letter would be settled by a retry now."""
        return self.would in (PostOutcome.POSTED, PostOutcome.DUPLICATE)

    @property
    def for_ever(self) -> bool:
        """True if it would be refused, and again the next time."""
        return self.would in FOR_EVER

    def as_dict(self) -> dict[str, object]:
        """What Flower and --json show."""
        fields = asdict(self)
        return {("says" if name == "message" else name): value for name, value in fields.items()}


@dataclass(frozen=True, slots=True)
class Previews:
    """What a retry of many dead letters would find."""

    dead_letters: list[Preview]
    more: bool  # others match, too
    left_out: dict[str, int]  # refused for ever: how many, by reason

    def as_dict(self) -> dict[str, object]:
        """What Flower shows: how many of each outcome, and the first 20 dead letters."""
        return {
            "dry_run": True,
            "would": dict(Counter(dead_letter.would for dead_letter in self.dead_letters)),
            "letters": [dead_letter.as_dict() for dead_letter in self.dead_letters[:20]],
            "more": self.more,
            "left_out": self.left_out,
        }


@dataclass(frozen=True, slots=True)
class Attempted:
    """What an attempt found: `posted`, `duplicate`, `already resolved` or `already discarded`."""

    dead_letter: int
    request_id: str
    outcome: str
    message: str

    def as_dict(self) -> dict[str, object]:
        """What Flower and --json show."""
        return {
            "dead_letter": self.dead_letter,
            "request_id": self.request_id,
            "outcome": self.outcome,
            "says": self.message,  # results keep the names that programs read them by
        }


@dataclass(frozen=True, slots=True)
class Sent:
    """What was sent to the workers, and what was not and why."""

    numbers: list[int]
    request_ids: list[str]
    left_out: dict[str, int]  # refused for ever: how many, by reason
    not_sent: list[int]  # asked for, but: under way in another process, above the limit, or not open

    def as_dict(self) -> dict[str, object]:
        """What Flower shows."""
        return {
            "sent": len(self.numbers),
            "numbers": self.numbers[:20],
            "request_ids": self.request_ids[:20],
            "left_out": self.left_out,
            "not_sent": self.not_sent[:20],
        }
