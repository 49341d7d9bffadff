"""Findings: what must not be, and where it was found."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum


class Wrong(StrEnum):
    """What must not be, in the words of the report."""

    LOST = "lost"
    TWICE = "charged twice"
    LEAKED = "holds leaked"
    OVERSPENT = "overspent"
    STRANGE = "strange answers"


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that is wrong; `ids` are of requests, or of the top-up or account if there is no request."""

    wrong: Wrong
    quota: int
    ids: tuple[str, ...]
    sentence: str
    filed_ms: tuple[int, int] = (0, 0)  # an event that is gone: between when and when it was filed in Redis
    straight_ms: int = 0  # or when PostgreSQL itself told that it was booked

    def __str__(self) -> str:
        named = ", ".join(self.ids[:5]) + (f" and {len(self.ids) - 5} more" if len(self.ids) > 5 else "")
        return f"{self.wrong}, {self.quota:,} quota: {self.sentence} ({named})"
