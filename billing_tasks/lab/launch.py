"""Become another program that dies with its parent. Run as a script, never imported.

    python launch.py PARENT_PID DEATH_SIGNAL UID GID PROGRAM [ARGUMENT ...]

UID and GID are "-" to stay who we are. A script, and not Popen's preexec_fn,
because code between fork and exec can deadlock when the parent has threads.

On Linux the kernel sends DEATH_SIGNAL when the *thread* that started us ends,
so children must be started from a thread that lives as long as they should.
Elsewhere an orphan survives a SIGKILL of its parent; the next start stops it.
"""

from __future__ import annotations

import ctypes
import os
import signal
import sys

PR_SET_PDEATHSIG = 1
NOT_STARTED = 127


def become_user(uid: str, gid: str) -> None:
    """Drop root for good. Order matters: after setuid the groups could not be changed any more."""
    if uid != "-":
        os.setgroups([])
        os.setgid(int(gid))
        os.setuid(int(uid))


def die_with_parent(parent_pid: int, death_signal: int) -> None:
    """After setuid, because a change of user clears the death signal."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, death_signal, 0, 0, 0)
    if os.getppid() != parent_pid:
        sys.exit(NOT_STARTED)  # the parent died before we asked to be told


def forget_inherited_signals() -> None:
    """Ignored and blocked signals survive exec (nohup, `cmd &`, Python's SIGPIPE); undo that."""
    for number in (
        signal.SIGINT,
        signal.SIGTERM,
        signal.SIGQUIT,
        signal.SIGHUP,
        signal.SIGPIPE,
        signal.SIGXFSZ,
    ):
        signal.signal(number, signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_SETMASK, ())


def main(arguments: list[str]) -> None:
    """Change user, ask to die with the parent, then run the program in our place."""
    parent_pid, death_signal, uid, gid, *command = arguments
    try:
        become_user(uid, gid)
        die_with_parent(int(parent_pid), int(death_signal))
        forget_inherited_signals()
        os.execv(command[0], command)  # noqa: S606  becoming that program is the point
    except OSError as exc:
        print(f"{command[0]} could not be started as user {uid}: {exc}", file=sys.stderr, flush=True)
        sys.exit(NOT_STARTED)


if __name__ == "__main__":
    main(sys.argv[1:])
