"""Relays what lies in the spool as soon as a server is back: at the next start, and while this process runs.

One thread per Bookkeeper that has something to relay; it ends when the folder is empty.
"""

from __future__ import annotations

import logging
import os
import threading
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

from billing_tasks.errors import BillingError, InvalidRequest, Refused, Unavailable
from billing_tasks.flows.requests import consume, refund
from billing_tasks.model.events import Kind
from billing_tasks.runtime import Runtime
from billing_tasks.settings import Settings
from billing_tasks.spool.folder import Spool

log = logging.getLogger(__name__)

#: Between two looks whether the servers are back; doubles up to the longest.
FIRST_WAIT_SECONDS = 0.5
LONGEST_WAIT_SECONDS = 15.0


@dataclass(slots=True)
class Relayed:
    """What one pass over the spool did."""

    relayed: int = 0
    refused: int = 0  # kept as dead letters, or set aside in the folder
    left: int = 0


def relay(runtime: Runtime) -> Relayed:
    """Relay every event that waits in this process's spool, oldest first; stop at the first server that is away."""
    done = Relayed()
    spool = runtime.spool
    if spool is None or not spool.waiting():
        return done
    with spool.alone() as alone:
        waiting = spool.waiting()
        for path in waiting if alone else []:
            if not _relay_one(runtime, spool, path, done):
                break
        done.left = len(waiting) - done.relayed - done.refused
    return done


def _relay_one(runtime: Runtime, spool: Spool, path: Path, done: Relayed) -> bool:
    """False: the servers are still away; the file stays."""
    event = spool.read(path)
    if event is None:
        log.error("%s is no event and is set aside", path)
        spool.refuse(path)
        done.refused += 1
        return True
    flow = refund.file if event.kind is Kind.REFUND else consume.file
    try:
        receipt = runtime.run(flow(event, commands=runtime.commands))
    except Unavailable:
        return False
    except InvalidRequest as exc:
        log.error("%s can't be booked and is set aside: %s", path, exc)  # noqa: TRY400 - no bug of ours
        spool.refuse(path)
        done.refused += 1
    except Refused as exc:  # the flow has kept it as a dead letter
        log.warning("spooled event of request %s was refused: %s", event.request_id, exc)
        spool.done(path)
        done.refused += 1
    else:
        if receipt.spooled:  # no server took it: it lies where it lay
            return False
        spool.done(path)
        done.relayed += 1
    return True


class Relayer:
    """Calls `relay` from a thread of its own until nothing is left."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._lock = threading.Lock()
        self._pid = os.getpid()
        self._thread: threading.Thread | None = None
        self._closing = threading.Event()

    def wake(self) -> None:
        """There is something in the spool, or perhaps. Returns at once."""
        with self._lock:
            if self._pid != os.getpid():  # a fork copies no thread
                self._pid, self._thread, self._closing = os.getpid(), None, threading.Event()
            if self._thread is None and not self._closing.is_set():
                self._thread = threading.Thread(target=self._run, name="billing-relayer", daemon=True)
                self._thread.start()

    def _run(self) -> None:
        wait = FIRST_WAIT_SECONDS
        # A runtime of its own: the gateway's may belong to an event loop, or be closed first.
        with closing(Runtime(self._settings)) as runtime:
            while not self._closing.is_set():
                try:
                    done = relay(runtime)
                except (OSError, BillingError):
                    log.exception("the spool %s can't be relayed", self._settings.spool_folder)
                    done = Relayed(left=1)
                with self._lock:
                    # Under the lock: a call that keeps an event from now on starts another thread.
                    if not done.left and not (runtime.spool and runtime.spool.waiting()):
                        self._thread = None
                        return
                wait = FIRST_WAIT_SECONDS if done.relayed else min(wait * 2, LONGEST_WAIT_SECONDS)
                self._closing.wait(wait)

    def close(self) -> None:
        """Stop relaying; what is left waits for the next start."""
        self._closing.set()
        thread = self._thread
        if thread is not None and self._pid == os.getpid():
            thread.join(5)


def relay_from_now_on(runtime: Runtime) -> Relayer:
    """A relayer that is woken by every event this runtime spools, and now, for what an earlier process left."""
    relayer = Relayer(runtime.settings)
    runtime.when_spooled = relayer.wake
    if runtime.spool is not None and runtime.spool.waiting():
        relayer.wake()
    return relayer
