"""The ledger, watched: what PostgreSQL answers is compared at once, what it changes reaches the books at its commit."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import msgspec
import sqlalchemy as sa

from billing_tasks.errors import IdempotencyConflict
from billing_tasks.ledger import columns
from billing_tasks.ledger.failures import NO_PARTITION, LedgerRefusedData
from billing_tasks.ledger.models import Token, User
from billing_tasks.ledger.rows import DeadLetterState
from billing_tasks.ledger.store import Ledger
from billing_tasks.model.account import TokenRow, UserRow
from billing_tasks.model.events import Event, Kind
from billing_tasks.model.posting import OutboxPart, PostedBatch, ServerRun
from tests.simulator.books import Apply, Books, Key
from tests.simulator.claims import Claim, demand


class WatchedLedger(Ledger):
    """The product's Ledger, of which the oracle hears. `refused`: requests that PostgreSQL can't store just now."""

    books: Books
    refused: set[str]
    dead_letter_keys: dict[int, tuple[str, str, str]]
    about = ""  # the request that was booked last

    def begin(self, books: Books, refused: set[str], dead_letter_keys: dict[int, tuple[str, str, str]]) -> None:
        """A new history."""
        self.books, self.refused, self.dead_letter_keys = books, refused, dead_letter_keys
        self._staged: list[Apply] = []

    @property
    def database(self) -> Any:
        return self._db

    def take_staged(self) -> Apply | None:
        """What the effect that just ran changes when it commits; None if it only read."""
        staged, self._staged = self._staged, []
        if not staged:
            return None

        def apply() -> None:
            for change in staged:
                change()

        return apply

    # -- posting ------------------------------------------------------------------------------------------

    def post_outboxes(self, batch: list[Event], parts: Sequence[OutboxPart]) -> PostedBatch:
        self._refuse(batch)
        answer = super().post_outboxes(batch, parts)
        self._staged.append(self.books.post(parts[0].shard, batch, answer))
        return answer

    def post_refund(self, shard: int, event: Event) -> PostedBatch:
        self._refuse([event])
        answer = super().post_refund(shard, event)
        self._staged.append(self.books.refund(shard, event, answer))
        return answer

    def _refuse(self, batch: list[Event]) -> None:
        """As for a month whose partition is missing: the whole call fails, nothing is booked."""
        self.about = batch[-1].request_id if batch else ""
        if any(event.request_id in self.refused for event in batch):
            raise LedgerRefusedData("PostgreSQL can't store this: no partition", reason=NO_PARTITION)

    # -- reading ------------------------------------------------------------------------------------------

    def accounts(self, user_id: int, token_id: int | None) -> tuple[UserRow | None, TokenRow | None, ServerRun]:
        user, token, server = super().accounts(user_id, token_id)
        self.books.read([user], [token])
        return user, token, server

    def get_user(self, user_id: int) -> UserRow:
        user = super().get_user(user_id)
        self.books.read([user], [])
        return user

    # -- dead letters -------------------------------------------------------------------------------------

    def add_dead_letter(self, **dead_letter: Any) -> Any:
        kept, new = super().add_dead_letter(**dead_letter)
        key = kept.kind, kept.request_id, kept.fingerprint
        demand(new == (key not in self.books.dead_letters), Claim.ANSWERS, f"dead letter {key} is new: {new}")
        self.dead_letter_keys[kept.id] = key
        self._staged.append(self.books.keep(key, kept.state))
        return kept, new

    def mark_dead_letter(self, number: int, state: DeadLetterState, **more: Any) -> Any:
        dead_letter = super().mark_dead_letter(number, state, **more)
        if dead_letter is not None:
            self._staged.append(self.books.mark(self.dead_letter_keys[number], state))
        return dead_letter

    def claim_dead_letters(self, **more: Any) -> Any:
        dead_letters = super().claim_dead_letters(**more)
        for dead_letter in dead_letters:
            before = self.books.dead_letters[self.dead_letter_keys[dead_letter.id]]
            demand(
                before in (DeadLetterState.RETRYING, DeadLetterState.FAILED),
                Claim.ANSWERS,
                f"{dead_letter.id} was {before}",
            )
            self._staged.append(self.books.mark(self.dead_letter_keys[dead_letter.id], DeadLetterState.RETRYING))
        return dead_letters

    def give_up_lost_attempts(self, **more: Any) -> int:
        open_before = {number for number, key in self.dead_letter_keys.items() if self._retrying(key)}
        count = super().give_up_lost_attempts(**more)
        if count:
            failed = DeadLetterState.FAILED
            given_up = super().dead_letter_numbers(numbers=sorted(open_before), states=(failed,))
            self._staged += [self.books.mark(self.dead_letter_keys[number], failed) for number in given_up]
        return count

    def _retrying(self, key: tuple[str, str, str]) -> bool:
        return self.books.dead_letters.get(key) is DeadLetterState.RETRYING

    def book_dead_letter(self, number: int, shard: int, event: Event, verdict: Any) -> Any:
        self._refuse([event])
        found, batch = super().book_dead_letter(number, shard, event, verdict)
        if batch is not None:
            if event.kind is Kind.CONSUME:  # nothing was set aside for it any more
                event = msgspec.structs.replace(event, held_quota=0)
            post = self.books.refund if event.kind is Kind.REFUND else self.books.post_one
            self._staged.append(post(shard, event, batch))
            state = verdict(found, batch.outcomes[0]).state
            self._staged.append(self.books.mark(self.dead_letter_keys[number], state))
        return found, batch

    # -- operators ----------------------------------------------------------------------------------------

    def top_up(self, user_id: int, quota: int, top_up_id: str, *, note: str = "") -> tuple[UserRow, bool]:
        return self._changed(super().top_up, ("user", user_id), quota, top_up_id)

    def adjust_user(self, user_id: int, quota: int, adjust_id: str, *, note: str = "") -> tuple[UserRow, bool]:
        return self._changed(super().adjust_user, ("user", user_id), quota, adjust_id)

    def adjust_token(self, token_id: int, quota: int, adjust_id: str, *, note: str = "") -> tuple[TokenRow, bool]:
        return self._changed(super().adjust_token, ("token", token_id), quota, adjust_id)

    def _changed(self, change: Any, key: Key, quota: int, own_id: str) -> Any:
        try:
            row, new = change(key[1], quota, own_id)
        except IdempotencyConflict:
            before = self.books.own_ids.get(own_id)
            other = before is not None and before != (*key, quota)
            demand(other, Claim.ANSWERS, f"{own_id} conflicts with {before}")
            raise
        self._staged.append(self.books.change(key, quota, own_id, row, new))
        return row, new

    def edit_in_plain_sql(self, key: Key, change: int) -> Any:
        """Another program changes a quota and knows nothing of versions, entries or Redis."""
        which, account = key
        if which == "user":
            edit: Any = sa.update(User).where(User.id == account).values(quota=User.quota + change)
            row: Any = columns.user_row(self._db.statement(edit.returning(*columns.USER))[0])
        else:
            edit = sa.update(Token).where(Token.id == account).values(remain_quota=Token.remain_quota + change)
            row = columns.token_row(self._db.statement(edit.returning(*columns.TOKEN))[0])
        self._staged.append(self.books.change(key, change, None, row, new=True))
        return row

    def set_user(self, user_id: int, **changes: Any) -> UserRow:
        row = super().set_user(user_id, **changes)
        self._staged.append(self.books.set_status(("user", user_id), changes["status"], row))
        return row

    def set_token(self, token_id: int, **changes: Any) -> TokenRow:
        row = super().set_token(token_id, **changes)
        self._staged.append(self.books.set_status(("token", token_id), changes["status"], row))
        return row
