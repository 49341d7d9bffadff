"""PriceKeeper: has a gateway's prices follow PostgreSQL, and each list that it prices by stored there before its use.

One thread per Bookkeeper looks once a second whether a change was made; a request never waits for that. Only the first
one of a process reads the changes itself, because without them it could be priced wrongly. A list that can't be stored
just now goes along with each charge instead (`priced.py`).
"""

from __future__ import annotations

import logging
import os
import threading
import time
from dataclasses import replace

from billing_tasks.errors import BillingError, InvalidRequest, Unavailable
from billing_tasks.flows.effects import InLedger
from billing_tasks.holds.commands import Commands
from billing_tasks.ledger.store import Ledger
from billing_tasks.model.forks import in_child
from billing_tasks.pricing import Price, PriceBook, PriceList, remember, remembered
from billing_tasks.runtime import Runtime

log = logging.getLogger(__name__)

#: What the ledger has learned of answers is read so often.
LEARNED_EVERY_SECONDS = 60.0


class PriceKeeper:
    """Of one Bookkeeper."""

    def __init__(self, runtime: Runtime, book: PriceBook) -> None:
        self.book = book
        self._runtime = runtime
        self._every = runtime.settings.prices_every_seconds
        self._reset()
        in_child(self._reset)

    def _reset(self) -> None:
        """A fork copies no thread, and leaves a lock as it was."""
        self._pid = os.getpid()
        self._lock = threading.Lock()
        self._closing = threading.Event()
        self._thread: threading.Thread | None = None
        self._last_change: int | None = None  # None: never read, or not since PostgreSQL was another run
        self._server = ""
        self._stored: set[int] = set()  # in this run of PostgreSQL
        self._used: set[int] = set()  # that had to be
        self.learned: dict[str, int] = {}  # completion tokens of a request that names no maximum, by model
        self._learn_next = 0.0

    @property
    def known(self) -> bool:
        """Whether PostgreSQL's changes are read, or were found to be out of reach; from then on a thread looks."""
        return self._thread is not None

    async def know(self) -> None:
        """Before the first price: read the changes. Without PostgreSQL, as Redis has them; raises nothing."""
        if self.known or not self._every:
            return
        try:
            await self._read()
        except (Unavailable, InvalidRequest) as exc:
            log.warning("Prices that were set in PostgreSQL can't be read: %s The last that Redis knows count.", exc)
            await self._read_copy(self._runtime.commands)
        self._start()

    def know_now(self) -> None:
        """`know`, in the caller's thread."""
        self._runtime.run(self.know())

    async def _read(self) -> None:
        look = InLedger(Ledger.look_at_prices)
        look.needed = True
        found = await look
        if found.server.name != self._server:
            # It may be older than it was: what was stored may not be there any more.
            self._server, self._stored, self._last_change = found.server.name, set(), None
        if found.last_change != self._last_change:
            changes = await InLedger(Ledger.price_changes)
            if self.book.take_changes(changes) and self._last_change is not None:
                log.info("Prices were changed; new requests are priced by list %s.", self.book.prices.version)
            await self._write_copy(self._runtime.commands)
            self._last_change = found.last_change
        if self._runtime.settings.learn_estimates and time.monotonic() >= self._learn_next:
            self.learned = await InLedger(Ledger.learned)
            self._learn_next = time.monotonic() + LEARNED_EVERY_SECONDS

    async def _write_copy(self, commands: Commands) -> None:
        """For gateways that start while PostgreSQL is away."""
        try:
            await commands.write_price_changes(self.book.changes_as_text)
        except Unavailable:
            log.debug("Redis has no copy of the prices that were set.")

    async def _read_copy(self, commands: Commands) -> None:
        try:
            text = await commands.price_changes()
            if text:
                self.book.take_changes_as_text(text)
        except (Unavailable, InvalidRequest) as exc:
            log.warning("Redis has no copy of the prices that were set: %s", exc)

    async def stored(self, price: Price) -> Price:
        """The price, once its list is stored; if it can't be now, the price without a list."""
        version = price.version
        if version is None or version in self._stored:
            return price
        prices = remembered(version)
        if prices is None:  # of another process, which has stored it
            return price
        self._used.add(version)
        try:
            await self._store(prices)
        except Unavailable as exc:
            log.warning("Price list %s can't be stored now and goes along with the charge: %s", version, exc)
            return replace(price, version=None)
        except InvalidRequest:
            log.exception("Price list %s can't be stored and goes along with each charge.", version)
            return replace(price, version=None)
        return price

    async def _store(self, prices: PriceList) -> None:
        call = InLedger(Ledger.store_price_list, prices)
        call.needed = False  # not tried while PostgreSQL is away
        await call
        self._stored.add(prices.version)

    async def list_of(self, version: int) -> PriceList:
        """The list of this version, from this process or from PostgreSQL. Raises InvalidRequest, Unavailable."""
        found = remembered(version)
        if found is None and self.book.prices.version == version:
            found = self.book.prices
        if found is None:
            parts = await InLedger(Ledger.price_list_parts, version)
            if not parts:
                raise InvalidRequest(f"There is no price list {version}.")
            found = PriceList.of_parts(parts)
        remember(found)
        return found

    def _start(self) -> None:
        with self._lock:
            if self._thread is None and not self._closing.is_set():
                self._thread = threading.Thread(target=self._run, name="billing-prices", daemon=True)
                self._thread.start()

    def _run(self) -> None:
        complained = False
        while not self._closing.wait(self._every):
            try:
                self._runtime.run(self._read())
                # Requests under way may be of lists that a restored PostgreSQL lacks.
                for version in self._used - self._stored:
                    if (prices := remembered(version)) is not None:
                        self._runtime.run(self._store(prices))
            except BillingError as exc:
                if not complained:
                    log.warning("Prices stay as they are: it can't be told whether they were changed: %s", exc)
                complained = True
            except Exception:  # a bug of ours must not leave the prices of this moment for ever
                log.exception("Prices stay as they are.")
            else:
                complained = False

    def close(self) -> None:
        """Look no more."""
        self._closing.set()
        thread = self._thread
        if thread is not None and self._pid == os.getpid():
            thread.join(5)
