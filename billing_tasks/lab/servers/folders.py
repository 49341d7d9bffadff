"""The folders of a lab: the state folder, and the short private ones for sockets.

The state folder (default `.billing/`) keeps data, logs and passwords, is 0700
and locked by the process that works in it. A killed process loses its lock;
what it remembered in the folder lets the next one clean up after it.

Sockets live elsewhere, because a socket's path is limited to about 100 bytes
(Redis cuts a longer one silently) and a state folder may be anywhere. No
permission of a folder we did not make is ever changed.
"""

from __future__ import annotations

import fcntl
import os
import pwd
import re
import stat
import tempfile
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from types import TracebackType

from billing_tasks.lab.problems import AlreadyRunning, FolderUnusable
from billing_tasks.lab.processes import Account

LOCK_NAME = "billing-tasks.lock"
SOCKET_PREFIX = "billing-"
SOCKET_PATH_LIMIT = 100  # bytes; Linux takes 107, macOS 103
PLAIN_PATH = re.compile(r"[A-Za-z0-9/._+-]+")  # PostgreSQL splits socket folders at commas


class StateFolder:
    """The folder of one lab, ours alone while it is open."""

    def __init__(self, path: Path | str) -> None:
        self.path = Path(path).resolve()
        self._lock: int | None = None

    def __enter__(self) -> StateFolder:
        self.open()
        return self

    def __exit__(self, kind: type[BaseException] | None, exc: BaseException | None, tb: TracebackType | None) -> None:
        self.close()

    def open(self) -> None:
        """Make the folder if it is not there, check that it is ours, and lock it."""
        try:
            self._make()
            self._check()
            self._lock = self._take_lock()
            self.path.chmod(0o700)  # it was empty or made by us, so no other program relies on its mode
        except OSError as exc:
            reason = os.strerror(exc.errno) if exc.errno else str(exc)
            raise FolderUnusable(f"{self.path} can't be used as state folder: {reason}.") from exc

    def close(self) -> None:
        """Give the lock back. The lock file stays: removing it would let two processes lock two files."""
        if self._lock is not None:
            os.ftruncate(self._lock, 0)
            os.close(self._lock)
            self._lock = None

    def folder(self, name: str) -> Path:
        """A folder inside, made if needed."""
        path = self.path / name
        path.mkdir(mode=0o700, exist_ok=True)
        return path

    def log_file(self, name: str) -> Path:
        return self.folder("logs") / f"{name}.log"

    def pid_file(self, name: str) -> Path:
        return self.folder("run") / f"{name}.pid"

    def recall(self, name: str) -> str | None:
        """What an earlier run remembered under this name."""
        try:
            return (self.folder("run") / name).read_text().strip() or None
        except FileNotFoundError:
            return None

    def remember(self, name: str, text: str) -> None:
        """Keep a line for the next run; a crash leaves the old line or the new one."""
        path = self.folder("run") / name
        draft = path.with_suffix(".draft")
        draft.write_text(text)
        draft.replace(path)

    def _make(self) -> None:
        if not self.path.exists():
            self.path.mkdir(mode=0o700, parents=True)

    def _check(self) -> None:
        found = self.path.stat()
        if not stat.S_ISDIR(found.st_mode):
            raise FolderUnusable(f"{self.path} can't be used as state folder: it is a file.")
        if found.st_uid != os.geteuid():
            owner, me = user_name(found.st_uid), user_name(os.geteuid())
            raise FolderUnusable(f"{self.path} can't be used as state folder: it belongs to {owner}, and you are {me}.")
        if not (self.path / LOCK_NAME).exists() and any(self.path.iterdir()):
            raise FolderUnusable(
                f"{self.path} can't be used as state folder: it holds files that billing-tasks did not make. "
                "Name an empty folder, or one that is not there yet."
            )

    def _take_lock(self) -> int:
        lock = os.open(self.path / LOCK_NAME, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o600)
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            holder = os.read(lock, 20).decode().strip() or "unknown"
            os.close(lock)
            raise AlreadyRunning(
                f"billing-tasks works in {self.path} already (pid {holder}). Stop it first, or name another folder."
            ) from None
        except OSError:
            os.close(lock)
            raise
        os.ftruncate(lock, 0)
        os.write(lock, f"{os.getpid()}\n".encode())
        return lock


class SocketFolder:
    """A private folder for one server's socket, removed when the server stops.

    The name is remembered in the state folder. The next start takes the same
    one, so that addresses stay; if another program has it by then, a new one.
    """

    def __init__(self, state: StateFolder, name: str, *, owner: Account | None, sockets: Sequence[str]) -> None:
        self.path: Path | None = None
        self._state = state
        self._memory = f"{name}-sockets"
        self._owner = owner
        self._sockets = sockets

    def open(self) -> Path:
        """The folder, empty, 0700 and owned by the server's user."""
        path = self._take_remembered() or self._make_new()
        if self._owner:
            os.chown(path, self._owner.uid, self._owner.gid, follow_symlinks=False)
        self._state.remember(self._memory, f"{self._state.path}\n{path}")
        self.path = path
        return path

    def close(self) -> None:
        """Remove the sockets we know and the folder; if another program put something there, both stay."""
        if self.path is not None and self._is_ours(self.path):
            self._empty(self.path)
            with suppress(OSError):
                self.path.rmdir()

    def _take_remembered(self) -> Path | None:
        state, _, remembered = (self._state.recall(self._memory) or "").partition("\n")
        path = Path(remembered)
        if state != str(self._state.path) or not path.name.startswith(SOCKET_PREFIX):
            return None  # of another state folder, which this one is a copy of and which may be in use
        try:
            path.mkdir(mode=0o700)
        except FileExistsError:  # a killed run left it, or it is another program's
            if not self._is_ours(path):
                return None
            self._empty(path)
        except OSError:
            return None
        return path

    def _make_new(self) -> Path:
        longest = max(map(len, self._sockets)) + len(SOCKET_PREFIX) + 10
        for base in dict.fromkeys([tempfile.gettempdir(), "/tmp", "/var/tmp"]):  # noqa: S108  mkdtemp inside it
            too_long = len(os.fsencode(base)) + longest > SOCKET_PATH_LIMIT
            if too_long or not PLAIN_PATH.fullmatch(base):
                continue
            if self._owner and not reachable_by_others(Path(base)):
                continue
            with suppress(OSError):
                return Path(tempfile.mkdtemp(prefix=SOCKET_PREFIX, dir=base))
        raise FolderUnusable("No temporary folder can hold a socket: neither $TMPDIR nor /tmp nor /var/tmp is usable.")

    def _is_ours(self, path: Path) -> bool:
        """Made by us: a real folder, closed to others, the server's user's (or still ours, after a crash)."""
        try:
            found = path.lstat()
        except OSError:
            return False
        owners = {os.geteuid(), self._owner.uid if self._owner else os.geteuid()}
        return stat.S_ISDIR(found.st_mode) and found.st_uid in owners and not found.st_mode & 0o077

    def _empty(self, path: Path) -> None:
        # By descriptor: the server's user could put a link in the folder's place while root works on it.
        folder = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
        try:
            for name in self._sockets:
                with suppress(FileNotFoundError):
                    os.unlink(name, dir_fd=folder)
        finally:
            os.close(folder)


def reachable_by_others(path: Path) -> bool:
    """Whether any user may pass through this folder and all above it."""
    real = path.resolve()
    return all(folder.stat().st_mode & stat.S_IXOTH for folder in (real, *real.parents))


def user_name(uid: int) -> str:
    """The user's name for people, the number if there is no name."""
    try:
        return pwd.getpwuid(uid).pw_name
    except KeyError:
        return f"uid {uid}"
