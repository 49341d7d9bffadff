"""PriceBook: the current price list of a process, made anew when the operator's file or a change in PostgreSQL says so.

A file that turns bad, or away, while running changes no price: the last good
tables stay and the log says once what is wrong.
"""

from __future__ import annotations

import json
import logging
import math
import os
import threading
import time
import weakref
from collections.abc import Mapping, Sequence
from dataclasses import astuple, replace
from fractions import Fraction
from pathlib import Path
from typing import Any

from billing_tasks.errors import BadRatios, InvalidRequest
from billing_tasks.pricing.changes import Change
from billing_tasks.pricing.exact import parse_ratio
from billing_tasks.pricing.price import Price
from billing_tasks.pricing.price_list import CatalogueName, PriceList
from billing_tasks.pricing.ratios import Unpriced
from billing_tasks.pricing.tables import BadEntry, RatioTables, check_tables, load_overrides

logger = logging.getLogger(__name__)

CHECK_EVERY_SECONDS = 1.0
#: A file written to so recently is perhaps half written, and a second write may leave the same time stamp.
SETTLED_AFTER_SECONDS = 0.05

#: What `stat` says of a file's content: time of the last write and change, size, inode.
Signature = tuple[int, int, int, int]
MISSING: Signature = (0, 0, 0, 0)

#: An override as a program gives it: no float, which is binary.
Override = str | int | Fraction


class PriceBook:
    """A catalogue, the ratios file over it, PostgreSQL's changes over that, and over all what the process itself set.

    `unknown`: "refuse", or the ratio of a model that has no price. Thread- and fork-safe. Raises BadRatios if `path`
    or `unknown` can't be used when the book is made.
    """

    def __init__(
        self,
        path: Path | None = None,
        *,
        catalogue: CatalogueName = "list",
        unknown: str = "refuse",
        check_every_seconds: float = CHECK_EVERY_SECONDS,
    ) -> None:
        self._catalogue: CatalogueName = catalogue
        self._unknown = _ratio_of_unknown(unknown)
        self._changes: tuple[Change, ...] = ()
        self._next_start: float = math.inf  # ms since 1970: when the next of them begins
        self._path = path
        self._check_every_seconds = check_every_seconds
        self._unpriced = Unpriced()
        self._lock = threading.Lock()
        self._seen: Signature | None = None  # None: read again at the next look
        self._from_file = RatioTables()
        self._at_run_time = RatioTables()
        if path is not None:
            signature, settled = _look(path)
            self._from_file = load_overrides(path)
            self._seen = signature if settled else None
        self._prices = self._lay_tables()
        self._next_check = time.monotonic() + check_every_seconds
        _books.add(self)

    @property
    def prices(self) -> PriceList:
        """The prices as they are now. Looks at the file at most once a second; raises nothing."""
        # A caller that finds another thread looking goes on with the prices at hand.
        if self._path is not None and time.monotonic() >= self._next_check and self._lock.acquire(blocking=False):
            try:
                self._check(self._path)
            finally:
                self._lock.release()
        if time.time() * 1000 >= self._next_start:
            with self._lock:
                try:
                    self._prices = self._lay_tables()
                except BadEntry as bad:  # together with what is there already
                    logger.error("Prices that begin now can't be used, the last good ones stay: %s", bad.reason)  # noqa: TRY400
                    self._next_start = math.inf
        return self._prices

    def price(self, *, model: str, group: str = "default", **more: Any) -> Price:
        """The price of a model for a group, as of now; see PriceList.price, which it raises as."""
        return self.prices.price(model=model, group=group, **more)

    def take_changes(self, changes: Sequence[Change]) -> bool:
        """Lay PostgreSQL's changes over the file. False: they are those that are there already.

        Raises InvalidRequest for what can't be used, as of a later release; the prices stay as they were.
        """
        ordered = tuple(
            sorted(changes, key=lambda change: change.from_ms)
        )  # stable: of one moment the later one counts
        with self._lock:
            if ordered == self._changes:
                return False
            before, self._changes = self._changes, ordered
            try:
                self._prices = self._lay_tables()
            except BadEntry as bad:
                self._changes = before
                raise InvalidRequest(f"Prices set in PostgreSQL can't be used: {bad.reason}.") from None
        return True

    def set_overrides(
        self,
        *,
        model: Mapping[str, Override] | None = None,
        completion: Mapping[str, Override] | None = None,
        group: Mapping[str, Override] | None = None,
    ) -> None:
        """Set ratios for this process, above file and defaults; each table given replaces the one set before.

        An empty table takes its overrides back. Raises BadRatios with table, name
        and reason, and then changes nothing.
        """
        given = {"model": model, "completion": completion, "group": group}
        checked = check_tables(**{name: table for name, table in given.items() if table is not None})
        with self._lock:
            changes = {name: getattr(checked, name) for name, table in given.items() if table is not None}
            self._at_run_time = replace(self._at_run_time, **changes)
            self._prices = self._lay_tables()

    @property
    def changes_as_text(self) -> str:
        """The changes as JSON."""
        return json.dumps([astuple(change) for change in self._changes])

    def take_changes_as_text(self, text: str) -> bool:
        """`take_changes` of what `changes_as_text` wrote. Raises InvalidRequest for what is none."""
        try:
            changes = [Change(*row) for row in json.loads(text)]
        except (ValueError, TypeError) as exc:
            raise InvalidRequest(f"Changes of prices can't be read: {exc}") from None
        return self.take_changes(changes)

    def _lay_tables(self) -> PriceList:
        now_ms = time.time() * 1000
        # What counted at once has begun, and so has all that began before it, whatever the clock here says.
        begun = max((number for number, one in enumerate(self._changes, 1) if one.at_once or one.from_ms <= now_ms),
                    default=0)  # fmt: skip
        later = self._changes[begun:]
        self._next_start = later[0].from_ms if later else math.inf
        return PriceList(
            file=self._from_file,
            catalogue=self._catalogue,
            unknown=self._unknown,
            changes=self._changes[:begun],
            at_run_time=self._at_run_time,
            unpriced=self._unpriced,
        )

    def _check(self, path: Path) -> None:
        """Re-read the file if it changed. The caller holds the lock."""
        signature, settled = _look(path)
        self._next_check = time.monotonic() + (self._check_every_seconds if settled else SETTLED_AFTER_SECONDS)
        if not settled or signature == self._seen:
            return
        problem = self._reload(path)
        # Seen even if bad, so that one change makes one line in the log.
        self._seen = signature
        if problem is not None:
            logger.error("Ratios file not taken over, the last good ratios stay: %s", problem)

    def _reload(self, path: Path) -> BadRatios | None:
        try:
            tables = load_overrides(path)
        except BadRatios as exc:
            return exc
        if tables != self._from_file:
            self._from_file = tables
            self._prices = self._lay_tables()
            logger.info("Ratios file %s read again; new requests are priced by it.", path)
        return None

    def _renew_lock(self) -> None:
        self._lock = threading.Lock()


def _ratio_of_unknown(text: str) -> Fraction | None:
    if text == "refuse":
        return None
    try:
        return parse_ratio(text)
    except ValueError as exc:
        reason = f"BILLING_UNKNOWN_MODEL is `refuse` or a ratio: {exc}"
        raise BadRatios(reason, reason=str(exc)) from None


def _look(path: Path) -> tuple[Signature, bool]:
    """The file's signature, and whether its last write is long enough ago to trust what it holds."""
    try:
        stat = path.stat()
    except OSError:
        return MISSING, True
    age_seconds = time.time() - stat.st_mtime
    # Time stamps from ahead (another machine's clock) say nothing about age; don't wait for them.
    settled = not 0 <= age_seconds < SETTLED_AFTER_SECONDS
    return (stat.st_mtime_ns, stat.st_ctime_ns, stat.st_size, stat.st_ino), settled


# A fork while another thread looks at the file would leave the child a lock that is never released.
_books: weakref.WeakSet[PriceBook] = weakref.WeakSet()


def _renew_locks() -> None:
    for book in list(_books):
        book._renew_lock()


if hasattr(os, "register_at_fork"):  # not on Windows
    os.register_at_fork(after_in_child=_renew_locks)
