"""The spool: events that neither Redis nor PostgreSQL took, in files that outlive process and power.

Off unless BILLING_SPOOL_FOLDER names a folder, which has to be on a disk that is kept. One file
per event, named after what makes the event itself, so that keeping it again is one file. A file is
whole or not there: it is written and synced under another name first. It leaves after the event is
booked or filed, never before; a crash in between relays it twice, which books it once.
"""

from __future__ import annotations

import fcntl
import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import msgspec

from billing_tasks.errors import Unavailable
from billing_tasks.model import events
from billing_tasks.model.events import Event, Kind
from billing_tasks.model.ids import is_request_id

SUFFIX = ".json"
#: What could not be read or is refused for ever; a person has to look.
SET_ASIDE = ".refused"


class Spool:
    """One folder of events."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def keep(self, event: Event) -> None:
        """Have the event on disk when this returns. Raises Unavailable if the disk does not take it."""
        name = f"{event.request_id}.{event.kind}.{event.fingerprint}{SUFFIX}"
        draft = self.folder / f".{secrets.token_hex(8)}"
        try:
            self.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            with draft.open("wb") as file:
                file.write(events.encode(event))
                file.flush()
                os.fsync(file.fileno())
            draft.rename(self.folder / name)
            self._sync_folder()
        except OSError as exc:
            with suppress(OSError):
                draft.unlink(missing_ok=True)
            raise Unavailable(f"The spool {self.folder} did not take the event: {exc.strerror or exc}.") from exc

    def waiting(self) -> list[Path]:
        """Files that wait, oldest first."""
        if not self.folder.is_dir():
            return []
        found = []
        for path in self.folder.glob(f"*{SUFFIX}"):
            with suppress(FileNotFoundError):  # another process has just relayed it
                found.append((path.stat().st_mtime_ns, path))
        return [path for _, path in sorted(found)]

    def set_aside(self) -> list[Path]:
        """Files that a person has to look at."""
        return sorted(self.folder.glob(f"*{SET_ASIDE}")) if self.folder.is_dir() else []

    def read(self, path: Path) -> Event | None:
        """The event of a file; None if it is none."""
        try:
            event = events.decode(path.read_bytes())
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
            return None
        ours = event.kind in (Kind.CONSUME, Kind.REFUND) and event.user_id > 0 and is_request_id(event.request_id)
        return event if ours else None

    def done(self, path: Path) -> None:
        """The event is booked or filed: forget it."""
        path.unlink(missing_ok=True)
        self._sync_folder()

    def refuse(self, path: Path) -> None:
        """The event can never be booked: keep the file under a name that is not relayed again."""
        path.rename(path.with_name(path.name.removesuffix(SUFFIX) + SET_ASIDE))
        self._sync_folder()

    @contextmanager
    def alone(self) -> Iterator[bool]:
        """True while no other process relays this folder."""
        with (self.folder / ".lock").open("a") as lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                yield False
                return
            yield True

    def _sync_folder(self) -> None:
        handle = os.open(self.folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)
