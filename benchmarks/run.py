"""Run: the chosen measures one after the other, each followed by the check of the guarantees."""

from __future__ import annotations

import logging
import time
from collections.abc import Sequence

from benchmarks.measures import MEASURES
from benchmarks.session import Session

log = logging.getLogger(__name__)


def run(session: Session, names: Sequence[str]) -> list[str]:
    """Measure into the session's book; returns the measures that failed, whose figures don't count.

    Nor do those of a measure after which a guarantee is broken. The others go on: a run takes its time.
    """
    failed = []
    for name in names:
        began = time.monotonic()
        session.findings.clear()
        before = {series.key for series in session.book.all()}
        try:
            MEASURES[name](session)
        except Exception as exc:
            log.exception("the measure %s failed", name)
            session.findings.append(f"the measure failed: {exc}")
            failed.append(name)
        for series in session.book.all():
            if series.key not in before:
                series.broken = list(session.findings)
        session.tell(f"{name}: {time.monotonic() - began:.0f} s")
    return failed
