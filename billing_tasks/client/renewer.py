"""Keeps the holds of running `charge` blocks open: one thread per Bookkeeper, renewing at half of the ttl.

If a renewal fails the hold expires in time and the usage is charged late, which
the ledger shows; so nothing is raised here.
"""

from __future__ import annotations

import logging
import os
import threading
import time
from collections.abc import Callable

from billing_tasks.errors import BillingError, ReservationClosed
from billing_tasks.model.reservation import Reservation

log = logging.getLogger(__name__)


class Renewer:
    """Calls `renew(reservation)` every `every_seconds` for each reservation that was added."""

    def __init__(self, renew: Callable[[Reservation, int], object]) -> None:
        self._renew = renew
        self._reset()

    def _reset(self) -> None:
        self._pid = os.getpid()
        self._running: dict[str, tuple[Reservation, int, float]] = {}  # request_id -> reservation, ttl, next time
        self._wake = threading.Condition()
        self._thread: threading.Thread | None = None
        self._closing = False

    def add(self, reservation: Reservation, ttl_seconds: int) -> None:
        """Keep this hold open until it is removed."""
        if self._pid != os.getpid():
            self._reset()
        with self._wake:
            self._running[reservation.request_id] = (
                reservation,
                ttl_seconds,
                time.monotonic() + ttl_seconds / 2,
            )
            if self._thread is None:
                self._thread = threading.Thread(target=self._run, name="billing-renewer", daemon=True)
                self._thread.start()
            elif len(self._running) == 1:
                self._wake.notify()

    def remove(self, reservation: Reservation) -> None:
        """Let the hold alone from now on."""
        with self._wake:
            self._running.pop(reservation.request_id, None)

    def close(self) -> None:
        """Renew nothing any more and end the thread."""
        with self._wake:
            self._running.clear()
            self._closing = self._thread is not None
            self._wake.notify_all()

    def _run(self) -> None:
        while True:
            with self._wake:
                while not self._running and not self._closing:
                    self._wake.wait()
                if self._closing:
                    self._thread = None
                    self._closing = False
                    return
                soonest = min(next_time for _, _, next_time in list(self._running.values()))
                # A hold with a shorter ttl may be added meanwhile: look again at least every half second.
                self._wake.wait(max(0.0, min(0.5, soonest - time.monotonic())))
                due = [entry for entry in list(self._running.values()) if entry[2] <= time.monotonic()]
            for reservation, ttl_seconds, _ in due:
                self._renew_one(reservation, ttl_seconds)

    def _renew_one(self, reservation: Reservation, ttl_seconds: int) -> None:
        try:
            self._renew(reservation, ttl_seconds)
        except ReservationClosed:
            self.remove(reservation)
        except BillingError as exc:
            log.warning("hold of request %s was not renewed: %s", reservation.request_id, exc)
        with self._wake:  # or a request that ends right now would be renewed for ever
            if reservation.request_id in self._running:
                next_time = time.monotonic() + ttl_seconds / 2
                self._running[reservation.request_id] = (reservation, ttl_seconds, next_time)
