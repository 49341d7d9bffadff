"""Report: what was done to the stack, and what came of it. As tables for a terminal, as a document for machines."""

from __future__ import annotations

import os
import platform
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from itertools import pairwise
from typing import Any

from billing_tasks.flows.audit.answers import Report
from chaos.books import Books
from chaos.faults import (
    FAILOVERS,
    KILLS,
    LOSSES_OF_BROKER,
    LOSSES_OF_POSTGRES,
    LOSSES_OF_REDIS,
    RESTORES,
    Fault,
)
from chaos.findings import Wrong
from chaos.judge import Verdict
from chaos.options import Options
from chaos.settling import Settled
from chaos.stories import Stories

Table = tuple[str, tuple[str, ...], list[tuple[object, ...]]]
"""Title, heads of the columns, rows."""

#: More findings than these are only counted in the tables; `--json` has all.
SHOWN = 20


def machine() -> str:
    """Its size, as far as it matters here."""
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // 2**30
    return f"{os.cpu_count()} cores, {memory} GB, {platform.system()} {platform.machine()}"


@dataclass(frozen=True, slots=True)
class ProcessReport:
    """What became of one process: how often it was started again, how it died unasked, how long it was mute."""

    restarts: int
    died_by_itself: tuple[str, ...] = ()
    longest_silence_seconds: float = 0.0


@dataclass(slots=True)
class ChaosReport:
    """One run."""

    options: Options
    faults: Counter[Fault]
    faults_left: int
    stories: Stories
    books: Books
    verdict: Verdict
    verified: Report
    settled: Settled
    processes: dict[str, ProcessReport]
    silent_workers: list[str]
    left_in_spools: int
    versions: dict[str, str]
    command: str
    state_dir: str
    machine: str = field(default_factory=machine)

    @property
    def ok(self) -> bool:
        """Everything is zero that has to be, everything came to rest, every worker answers."""
        return (
            self.verdict.ok
            and self.verified.ok
            and self.settled.in_time
            and not self.silent_workers
            and not self.left_in_spools
        )

    @property
    def traffic_seconds(self) -> float:
        """From the first answer to the last."""
        return max(0.001, (self.stories.ended_ms - self.stories.begun_ms) / 1000)

    @property
    def longest_booking_pause_seconds(self) -> float:
        """While the traffic ran, between two bookings of whatever shard."""
        begin, end = self.stories.begun_ms * 1000, self.stories.ended_ms * 1000
        moments = [begin, *(e.booked_us for e in self.books.entries if begin < e.booked_us < end), end]
        return max((later - sooner) / 1e6 for sooner, later in pairwise(moments))

    def as_dict(self) -> dict[str, Any]:
        """For `--json`."""
        verdict = self.verdict
        return {
            "ok": self.ok,
            "command": self.command,
            "machine": self.machine,
            "versions": self.versions,
            "minutes": self.options.minutes,
            "seed": self.options.seed,
            "state_dir": self.state_dir,
            "wrong": {w.value: {"requests": verdict.count(w), "quota": verdict.quota(w)} for w in Wrong},
            "findings": [
                {"wrong": f.wrong.value, "quota": f.quota, "ids": list(f.ids), "sentence": f.sentence}
                for f in verdict.findings
            ],
            "faults": {fault.value: self.faults[fault] for fault in Fault},
            "faults_left": self.faults_left,
            **self._requests_as_dict(),
            "longest_pause_seconds": self.stories.longest_pause_ms / 1000,
            "longest_booking_pause_seconds": round(self.longest_booking_pause_seconds, 1),
            "settled_seconds": round(self.settled.seconds, 1),
            "settled_in_time": self.settled.in_time,
            "left_open": str(self.settled.pending),
            "left_in_spools": self.left_in_spools,
            "dead_letters": {
                "open": dict(verdict.dead_letters_still_open),
                "accepted_and_open": verdict.told_and_in_dead_letters,
                "resolved": self.books.dead_letters_resolved,
                "tried_by_hand": self.settled.by_hand,
            },
            "incidents": self.books.incidents,
            "gone_as_incidents_say": {
                "events": len(verdict.known_lost),
                "quota": sum(one.quota for one in verdict.known_lost),
                "ids": sorted({name for one in verdict.known_lost for name in one.ids}),
            },
            "processes": {
                name: {
                    "restarts": process.restarts,
                    "died_by_itself": list(process.died_by_itself),
                    "longest_silence_seconds": round(process.longest_silence_seconds, 1),
                }
                for name, process in self.processes.items()
            },
            "silent_workers": self.silent_workers,
            "verify": self.verified.as_dict(),
        }

    def _requests_as_dict(self) -> dict[str, Any]:
        stories, verdict = self.stories, self.verdict
        return {
            "requests": len(stories.requests),
            "requests_per_second": round(len(stories.requests) / self.traffic_seconds, 1),
            "charged_requests": verdict.charged_requests,
            "charged_quota": verdict.charged_quota,
            "late": {"requests": verdict.late_requests, "quota": verdict.late_quota},
            "posted_at_once": stories.by_route["posted"],
            "spooled": stories.by_route["spooled"],
            "refused": dict(stories.refused),
            "unclear": {name: {"calls": u.calls, "booked": u.booked} for name, u in verdict.unclear.items()},
            "gave_up": len(stories.gave_up),
            "repeated_calls": dict(stories.repeated),
            "messages": dict(stories.messages),
        }

    def tables(self) -> list[Table]:
        """For a terminal and the page, the most important first."""
        return [self._wrong(), self._faults(), self._requests(), self._figures(), self._processes()]

    def _wrong(self) -> Table:
        verdict = self.verdict
        rows: list[tuple[object, ...]] = [(w.value, verdict.count(w), verdict.quota(w)) for w in Wrong]
        return "Verdict", ("", "requests", "quota"), rows

    def _faults(self) -> Table:
        rows: list[tuple[object, ...]] = [(fault.value, self.faults[fault]) for fault in Fault]
        rows += [(f"{task} sent again", count) for task, count in sorted(self.stories.messages.items())]
        rows += [(f"{call} called again", count) for call, count in sorted(self.stories.repeated.items())]
        rows += [
            (f"in all: {name}", sum(self.faults[fault] for fault in faults))
            for name, faults in (
                ("kill -9 of workers, children, beat, gateways", KILLS),
                ("Redis killed and restarted", LOSSES_OF_REDIS),
                ("Redis failed over", FAILOVERS),
                ("PostgreSQL killed and restarted", LOSSES_OF_POSTGRES),
                ("PostgreSQL came back older", RESTORES),
                ("broker lost", LOSSES_OF_BROKER),
            )
        ]
        return "Faults", ("fault", "times"), rows

    def _requests(self) -> Table:
        stories, verdict = self.stories, self.verdict
        ended = verdict.charged_requests
        rows: list[tuple[object, ...]] = [
            ("sent", len(stories.requests), f"{len(stories.requests) / self.traffic_seconds:,.0f}/s on average"),
            ("charged", ended, f"{verdict.charged_quota:,} quota"),
            ("consumed past Redis", stories.by_route["posted"], "Redis was away, posted into PostgreSQL at once"),
            ("consumed into the spool", stories.by_route["spooled"], "both were away, relayed later"),
            ("refused", sum(stories.refused.values()), _counted(stories.refused)),
            ("refunds of charges booked", len(self.books.refunds), ""),
            ("top-ups booked", len(self.books.top_ups), ""),
            ("charged late", verdict.late_requests, f"{verdict.late_quota:,} quota, after the hold had expired"),
        ]
        rows += [
            (f"unclear: {name}", unclear.calls, f"no answer; {unclear.booked:,} of them booked")
            for name, unclear in verdict.unclear.items()
        ]
        return "Requests", ("", "requests", "notes"), rows

    def _figures(self) -> Table:
        verdict, stories = self.verdict, self.stories
        in_time = "" if self.settled.in_time else f", NOT settled: {self.settled.pending}"
        rows: list[tuple[object, ...]] = [
            ("longest time without an answer", f"{stories.longest_pause_ms / 1000:.1f} s{_clock(stories)}"),
            ("longest time without a booking", f"{self.longest_booking_pause_seconds:.1f} s"),
            ("settled after the traffic", f"{self.settled.seconds:.1f} s{in_time}"),
            ("incidents", _counted(self.books.incidents) or "none"),
            ("gone, as they say", self._gone()),
            ("dead letters, open", _counted(verdict.dead_letters_still_open) or "none"),
            ("dead letters, booked since", str(self.books.dead_letters_resolved)),
            ("accepted, in an open dead letter", str(verdict.told_and_in_dead_letters)),
            ("verify", "all guarantees hold" if self.verified.ok else f"{len(self.verified.findings)} findings"),
        ]
        if self.faults_left:
            rows.append(("faults that found no time", str(self.faults_left)))
        if self.left_in_spools:
            rows.append(("left in the spools", str(self.left_in_spools)))
        if self.silent_workers:
            rows.append(("workers that do not answer", ", ".join(self.silent_workers)))
        return "Figures", ("", "figure"), rows

    def _gone(self) -> str:
        lost, losses = self.verdict.known_lost, self.books.losses
        if not lost:
            return "nothing that a gateway was told"
        unseen = sum(bool(loss.to_ms) for loss in losses)
        said = f"{sum(loss.events for loss in losses):,} events counted, {unseen} spans of time that no look saw"
        return f"{len(lost):,} events, {sum(one.quota for one in lost):,} quota; said: {said}"

    def _processes(self) -> Table:
        rows: list[tuple[object, ...]] = [
            (
                name,
                process.restarts,
                len(process.died_by_itself),
                f"{process.longest_silence_seconds:.1f} s" if "worker" in name else "",
            )
            for name, process in self.processes.items()
        ]
        return "Processes", ("process", "restarts", "unasked", "longest silence"), rows

    def findings(self) -> list[str]:
        """Sentences, those of `verify` behind the judge's; a long list is cut."""
        said = [str(finding) for finding in self.verdict.findings] + [str(f) for f in self.verified.findings]
        return (
            said if len(said) <= SHOWN else [*said[:SHOWN], f"and {len(said) - SHOWN} more (all of them with --json)"]
        )

    def deaths(self) -> list[str]:
        """How processes ended that no fault had killed."""
        return [f"{name}: {death}" for name, process in self.processes.items() for death in process.died_by_itself]

    def as_markdown(self) -> str:
        """The same as one page."""
        versions = ", ".join(f"{name} {version}" for name, version in self.versions.items())
        parts = [
            "# Chaos run",
            f"`{self.command}`",
            f"Seed {self.options.seed}, {self.options.minutes:g} minutes of traffic, {self.machine}.\n{versions}.",
            f"**{self.conclusion()}**",
        ]
        for title, heads, rows in self.tables():
            parts.append(f"## {title}")
            parts.append("\n".join(_markdown(heads, rows)))
        if self.findings():
            parts += ["## Findings", "\n".join(f"- {finding}" for finding in self.findings())]
        if self.deaths():
            parts += ["## Processes that ended by themselves", "\n\n".join(f"```\n{d}\n```" for d in self.deaths())]
        return "\n\n".join(parts) + "\n"

    def _but(self) -> str:
        gone = len(self.verdict.known_lost)
        return f" but {gone:,} events that incidents name" if gone else ""

    def conclusion(self) -> str:
        """One sentence."""
        if self.ok:
            return (
                f"{len(self.stories.requests):,} requests, {sum(self.faults.values()):,} faults: "
                f"nothing lost{self._but()}, nothing charged twice, no hold leaked, nothing overspent."
            )
        return f"Not everything is as it should be. Journals and data are in {self.state_dir}."


def _clock(stories: Stories) -> str:
    """When the longest pause began, by the clock of logs/faults.log."""
    if not stories.longest_pause_at_ms:
        return ""
    return f", from {datetime.fromtimestamp(stories.longest_pause_at_ms / 1000, UTC):%H:%M:%S} UTC on"


def _counted(counts: Counter[str] | dict[str, int]) -> str:
    return ", ".join(f"{count:,} {name}" for name, count in sorted(counts.items()))


def _markdown(heads: Sequence[str], rows: Sequence[Sequence[object]]) -> list[str]:
    shown = [[f"{cell:,}" if isinstance(cell, int) else str(cell) for cell in row] for row in rows]
    return [f"| {' | '.join(line)} |" for line in (list(heads), ["---"] * len(heads), *shown)]
