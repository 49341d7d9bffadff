"""Demo: the whole of it on one machine. Servers, worker, beat and Flower; traffic; the guarantees checked.

Runs in the same state folder as `billing-tasks up`, so that its data can be
looked at afterwards. A demo that is killed leaves what a killed gateway leaves:
holds, which expire when the servers run again.
"""

from __future__ import annotations

import os
import time
from collections.abc import Sequence
from contextlib import closing
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from billing_tasks.flows.audit import verify
from billing_tasks.flows.audit.answers import Report
from billing_tasks.lab.flower import FlowerSeen, ask_flower
from billing_tasks.lab.parts import Part, celery_parts
from billing_tasks.lab.replay.options import Options
from billing_tasks.lab.replay.report import ReplayReport
from billing_tasks.lab.replay.run import Audience
from billing_tasks.lab.replay.run import replay as run_replay
from billing_tasks.lab.stack import Stack
from billing_tasks.lab.trace import TraceRow
from billing_tasks.runtime import Runtime
from billing_tasks.settings import Settings

#: An operator watches a demo: holds that are due are released at once, not within the usual five seconds.
BEAT = {"BILLING_EXPIRE_EVERY_SECONDS": "1", "BILLING_RING_EVERY_SECONDS": "2"}


@dataclass(frozen=True, slots=True)
class DemoReport:
    """What was run and what came of it."""

    replay: ReplayReport
    verified: Report
    verify_seconds: float
    flower: FlowerSeen | None

    @property
    def ok(self) -> bool:
        """Every request ended exactly once, and every guarantee holds."""
        return self.replay.ok and self.verified.ok

    def as_dict(self) -> dict[str, Any]:
        """For `--json`."""
        return {
            "ok": self.ok,
            "replay": self.replay.as_dict(),
            "verify": self.verified.as_dict(),
            "flower": asdict(self.flower) if self.flower else None,
        }


def demo_parts(state_dir: Path, *, workers: int, flower_port: int | None, with_flower: bool) -> Sequence[Part]:
    """Worker, beat and Flower, with a beat that does not let the operator wait."""
    parts = celery_parts(state_dir, concurrency=workers, flower_port=flower_port, with_flower=with_flower)
    return [replace(part, environ={**BEAT, **part.environ}) for part in parts]


def settings_of(stack: Stack) -> Settings:
    """Settings that name the stack's servers; everything else as BILLING_* says, as its processes read it."""
    named = {name.removeprefix("BILLING_").lower(): value for name, value in stack.environment.items()}
    return Settings(_env_file=os.environ.get("BILLING_ENV_FILE"), **named)  # type: ignore[arg-type]


def run_demo(
    stack: Stack,
    trace: Sequence[TraceRow],
    options: Options,
    *,
    audience: Audience,
    export_to: Path | None = None,
) -> DemoReport:
    """Replay the trace against a stack that runs, then check the guarantees. Raises as replay does."""
    settings = settings_of(stack)
    replayed = run_replay(trace, options, settings=settings, audience=audience, export_to=export_to)
    audience.step("Checking the guarantees")
    began = time.monotonic()
    with closing(Runtime(settings)) as runtime:
        verified = verify.check(holds=runtime.holds, ledger=runtime.ledger)
    seconds = time.monotonic() - began
    notes = next((part.notes for part in stack.describe().parts if part.name == "flower"), None)
    if notes is None:
        return DemoReport(replayed, verified, seconds, None)
    audience.step("Asking Flower what it has seen")
    return DemoReport(replayed, verified, seconds, ask_flower(notes, replayed.request_ids))
