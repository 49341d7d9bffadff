"""Report: what a replay did, in figures and, for `--export`, request by request."""

from __future__ import annotations

import csv
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from billing_tasks.lab.replay.endings import Ending, Outcome
from billing_tasks.lab.replay.options import Options
from billing_tasks.lab.replay.problems import ReplayError
from billing_tasks.lab.replay.requests import PlannedRequest, Tally, Told

EXPORT_COLUMNS = (
    "request_id",
    "user_id",
    "token_id",
    "model",
    "prompt_tokens",
    "completion_tokens",
    "outcome",
    "quota",
)


@dataclass(frozen=True, slots=True)
class Latency:
    """Milliseconds as the gateway saw them, repetitions included."""

    p50: float
    p99: float

    @classmethod
    def of(cls, nanoseconds: Sequence[int]) -> Latency:
        """Of the measured ones; zeros were not measured."""
        measured = sorted(value for value in nanoseconds if value)
        if not measured:
            return cls(0.0, 0.0)
        return cls(*(round(measured[int(len(measured) * part)] / 1e6, 2) for part in (0.50, 0.99)))


@dataclass(frozen=True, slots=True)
class ReplayReport:
    """The figures. `ok`: every request ended exactly once, as the gateway was told."""

    options: Options
    requests: int
    consumed: int
    refused: dict[str, int]
    refunded: int
    expired: int
    late: int  # consumed after their hold had expired
    quota_charged: int
    seconds: float
    requests_per_second: float
    reserve_ms: Latency
    consume_ms: Latency
    behind_ms: Latency  # at a speed: how long after its time a request began
    outboxes_empty_seconds: float
    settled_seconds: float
    first_user_id: int
    last_user_id: int
    findings: list[str] = field(default_factory=list)
    not_ended: int = 0
    request_ids: frozenset[str] = field(default_factory=frozenset, repr=False)

    @property
    def refused_in_all(self) -> int:
        """Refusals for whatever reason."""
        return sum(self.refused.values())

    @property
    def ended(self) -> int:
        """Requests with an end; all of them, if all is well."""
        return self.consumed + self.refused_in_all + self.refunded + self.expired

    @property
    def ok(self) -> bool:
        """Nothing missing, nothing twice, nothing charged otherwise than told."""
        return not self.findings and self.ended == self.requests

    def as_dict(self) -> dict[str, Any]:
        """For `--json`. Latencies in ms, quota in units of quota."""
        options = self.options
        return {
            "ok": self.ok,
            "requests": self.requests,
            "consumed": self.consumed,
            "refused": self.refused_in_all,
            "refused_by_reason": self.refused,
            "refunded": self.refunded,
            "expired": self.expired,
            "consumed_late": self.late,
            "not_ended": self.not_ended,
            "quota_charged": self.quota_charged,
            "seconds": self.seconds,
            "requests_per_second": self.requests_per_second,
            "reserve_ms": {"p50": self.reserve_ms.p50, "p99": self.reserve_ms.p99},
            "consume_ms": {"p50": self.consume_ms.p50, "p99": self.consume_ms.p99},
            "behind_ms": {"p50": self.behind_ms.p50, "p99": self.behind_ms.p99} if options.speed else None,
            "outboxes_empty_seconds": self.outboxes_empty_seconds,
            "settled_seconds": self.settled_seconds,
            "users": {"first_id": self.first_user_id, "last_id": self.last_user_id},
            "options": {
                "users": options.users,
                "models": dict(options.models),
                "fail_rate": options.fail_rate,
                "abandon_rate": options.abandon_rate,
                "hold_ttl_seconds": options.hold_ttl_seconds,
                "concurrency": options.concurrency,
                "processes": options.processes,
                "speed": options.speed,
                "seed": options.seed,
            },
            "findings": self.findings,
        }


def make_report(
    requests: Sequence[PlannedRequest],
    tally: Tally,
    endings: Sequence[Ending],
    findings: list[str],
    *,
    options: Options,
    outboxes_empty_seconds: float,
    settled_seconds: float,
    first_user_id: int,
) -> ReplayReport:
    """Count what the ledger says."""
    outcomes = Counter(ending.outcome for ending in endings)
    refused = Counter(
        tally.reason_of(index) for index, ending in enumerate(endings) if ending.outcome is Outcome.REFUSED
    )
    seconds = (tally.ended_ns - tally.began_ns) / 1e9
    return ReplayReport(
        options=options,
        requests=len(requests),
        consumed=outcomes[Outcome.CONSUMED],
        refused=dict(sorted(refused.items())),
        refunded=outcomes[Outcome.REFUNDED],
        expired=outcomes[Outcome.EXPIRED],
        late=sum(late for late, told in zip(tally.late, tally.told, strict=True) if told == Told.CONSUMED),
        quota_charged=sum(ending.quota for ending in endings),
        seconds=round(seconds, 3),
        requests_per_second=round(len(requests) / max(seconds, 1e-9), 1),
        reserve_ms=Latency.of(tally.reserve_ns),
        consume_ms=Latency.of(tally.consume_ns),
        behind_ms=Latency.of(tally.behind_ns),
        outboxes_empty_seconds=round(outboxes_empty_seconds, 2),
        settled_seconds=round(settled_seconds, 2),
        first_user_id=first_user_id,
        last_user_id=first_user_id + options.users - 1,
        findings=findings,
        not_ended=outcomes[Outcome.OPEN],
        request_ids=frozenset(tally.request_ids),
    )


def check_export(path: Path) -> None:
    """Raise ReplayError now rather than after the traffic if the file can't be written."""
    try:
        path.open("a").close()
    except OSError as exc:
        raise ReplayError(f"{path} can't be written: {exc.strerror}. Nothing was sent.") from None


def export(path: Path, requests: Sequence[PlannedRequest], tally: Tally, endings: Sequence[Ending]) -> None:
    """One line per row of the trace, in its order."""
    with path.open("w", newline="", encoding="utf-8") as file:
        lines = csv.writer(file, lineterminator="\n")
        lines.writerow(EXPORT_COLUMNS)
        for request, request_id, ending in zip(requests, tally.request_ids, endings, strict=True):
            lines.writerow(
                (
                    request_id,
                    request.user_id,
                    request.token_id,
                    request.model,
                    request.prompt_tokens,
                    request.completion_tokens,
                    ending.outcome.value,
                    ending.quota,
                )
            )
