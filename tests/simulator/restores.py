"""PostgreSQL restored to an earlier time: what it forgets, and what Redis still has of it."""

from __future__ import annotations

from dataclasses import dataclass

from billing_tasks.model.events import Event
from tests.simulator.accidents import Accidents, number_of
from tests.simulator.books import Books
from tests.simulator.claims import Claim, demand
from tests.simulator.oracle import Oracle, identity
from tests.simulator.shard import Filed
from tests.simulator.world import SHARDS, World


@dataclass
class Backup:
    """What PostgreSQL had, and what the oracle knew of it."""

    books: Books
    to_be_reported: set[tuple[int, int]]
    left: int  # how many events had left an outbox


@dataclass
class Restores:
    """The backups of one history."""

    world: World
    oracle: Oracle
    accidents: Accidents
    backup: Backup | None = None
    count: int = 0
    #: how many of the events that had left an outbox each restore knew of
    known: int | None = None

    def postgresql_is_saved(self) -> str:
        self.world.save_postgresql()
        self.backup = Backup(self.oracle.books.copy(), set(self.accidents.to_be_reported), len(self.oracle.left))
        return "PostgreSQL is backed up"

    def postgresql_is_restored(self, accepted: list[tuple[Event, bool]]) -> str:
        """No transaction is open. Everything after the backup is forgotten, incidents and cursors too."""
        assert self.backup is not None
        oracle, books = self.oracle, self.oracle.books
        self.accidents.read_outboxes()
        before = [event for event, sent in accepted if oracle.accounted_for(event, sent=sent)]
        self.world.restore_postgresql()
        # Calls that are under way were not told yes, and may have been booked: past Redis, or settled while they ring.
        booked_before = books.copy()
        books.restore(self.backup.books)
        self.count += 1
        self.known = min(self.backup.left, self.backup.left if self.known is None else self.known)
        self.accidents.to_be_reported = set(self.backup.to_be_reported)
        oracle.forgotten = True
        oracle.unknown.clear()  # every account is loaded again
        oracle.newest.clear()
        oracle.versions_of = {r: v for r, v in oracle.versions_of.items() if r in books.charges}
        waiting = {(f.event.request_id, f.event.fingerprint) for shard in oracle.shards for f in shard.outbox}
        oracle.forgotten_books.append((booked_before, waiting))
        gone = [event for event in before if (event.request_id, event.fingerprint) not in waiting]
        oracle.destroyed |= {identity(event) for event in gone}
        return f"PostgreSQL is restored; Redis saw booked: {[filed.what for _, filed in self.lacking()]}"

    def lacking(self) -> list[tuple[int, Filed]]:
        """What left an outbox because it was booked or kept, and is neither now."""
        return [(at, filed) for at, filed in self.oracle.left if not self.oracle.is_recorded(filed)]

    def check(self) -> None:
        """Each number that is gone is named by an incident, and no other is.

        Of two kinds of accidents one hides how much the other took.
        """
        demand(not self.unaware(), Claim.CACHE, "Redis has not heard that PostgreSQL was restored")
        told, accounted = self.world.lost_numbers(), self.world.accounted_numbers()
        lacking = {number_of(at, filed) for at, filed in self.lacking()}
        gone, is_recorded = self.accidents.gone, self.oracle.is_recorded
        lost = {number for number, one in gone.items() if not is_recorded(one.filed)}
        silent = (lacking | lost) & accounted
        demand(not silent, Claim.LOSS_IS_RECORDED, f"{silent} are accounted for, and neither booked nor kept")
        if self.count and self.oracle.accidents:
            return
        known = {number for number in lost if gone[number].known}
        untold = (known | lacking) - told
        demand(not untold, Claim.LOSS_IS_RECORDED, f"{untold} are gone; told {told}")
        forgotten = [] if self.known is None else self.oracle.left[self.known :]
        false = told - gone.keys() - {number_of(at, filed) for at, filed in forgotten}
        demand(not false, Claim.NO_FALSE_ALARM, f"{false} are told to be gone")

    def unaware(self) -> bool:
        """Whether some shard of Redis has not heard of the restore."""
        world = self.world
        return bool(self.count) and not all(world.is_aware(at) or world.saw_nothing(at) for at in range(SHARDS))
