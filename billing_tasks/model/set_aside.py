"""What is set aside beside our queue, as data: loads no broker's library."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

#: Tasks of other applications, and what nobody could read: the queues' names end so.
FOREIGN: Final = "foreign"
UNREADABLE: Final = "unreadable"

#: Messages that are looked at or handed back in one call.
MOST: Final = 1000


@dataclass(frozen=True, slots=True)
class SetAside:
    """One message. `task`: as its header says; "" if it says nothing."""

    task: str
    task_id: str
    content_type: str
    body: str  # its beginning


def name(queue: str, where: str) -> str:
    """The queue in which messages of `queue` are set aside."""
    return f"{queue}.{where}"
