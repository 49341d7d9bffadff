"""What the operator's API takes and answers with, for the doors that present it. Loads no server's library."""

from billing_tasks.admin.one_by_one import NOT_FOUND, Result
from billing_tasks.admin.paging import Page
from billing_tasks.flows.audit.answers import GUARANTEES, Behind, Finding, Report, SetupWarning, Watched
from billing_tasks.flows.dead_letters.answers import FOR_EVER, Attempted, Preview, Previews, Selected, Sent
from billing_tasks.ledger.rows import (
    OPEN,
    UNSET,
    ChannelRow,
    DeadLetter,
    DeadLetterFilter,
    DeadLetterState,
    EntryFilter,
    EntryRow,
    Erased,
    HistoryEntry,
    HistoryKind,
    Incident,
    Missing,
    OpenReason,
    Unset,
    UsageRow,
)
from billing_tasks.model.set_aside import SetAside

#: What usage can be summed up by.
USAGE_BY = ("model", "user", "token", "channel", "day")

__all__ = [
    "FOR_EVER",
    "GUARANTEES",
    "NOT_FOUND",
    "OPEN",
    "UNSET",
    "USAGE_BY",
    "Attempted",
    "Behind",
    "ChannelRow",
    "DeadLetter",
    "DeadLetterFilter",
    "DeadLetterState",
    "EntryFilter",
    "EntryRow",
    "Erased",
    "Finding",
    "HistoryEntry",
    "HistoryKind",
    "Incident",
    "Missing",
    "OpenReason",
    "Page",
    "Preview",
    "Previews",
    "Report",
    "Result",
    "Selected",
    "Sent",
    "SetAside",
    "SetupWarning",
    "Unset",
    "UsageRow",
    "Watched",
]
