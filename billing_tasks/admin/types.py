"""What the operator's API takes and answers with, in one place for those who present it."""

from billing_tasks.flows.audit.backlog import Watched
from billing_tasks.flows.audit.verify import GUARANTEES, Finding, Report
from billing_tasks.flows.dead_letters.preview import Preview, Previews
from billing_tasks.flows.dead_letters.record import FOR_EVER, event_of
from billing_tasks.flows.dead_letters.retry import Attempted, Sent
from billing_tasks.flows.dead_letters.select import Selected, filter_from
from billing_tasks.holds.repairs import Repair
from billing_tasks.ledger.accounts import Keep
from billing_tasks.ledger.comparisons import Missing
from billing_tasks.ledger.rows import (
    OPEN,
    ChannelRow,
    DeadLetter,
    DeadLetterFilter,
    DeadLetterState,
    EntryFilter,
    EntryRow,
    HistoryEntry,
    HistoryKind,
    Incident,
)

__all__ = [
    "FOR_EVER",
    "GUARANTEES",
    "OPEN",
    "Attempted",
    "ChannelRow",
    "DeadLetter",
    "DeadLetterFilter",
    "DeadLetterState",
    "EntryFilter",
    "EntryRow",
    "Finding",
    "HistoryEntry",
    "HistoryKind",
    "Incident",
    "Keep",
    "Missing",
    "Preview",
    "Previews",
    "Repair",
    "Report",
    "Selected",
    "Sent",
    "Watched",
    "event_of",
    "filter_from",
]
