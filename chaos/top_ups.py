"""Top-ups of the poor while the traffic runs, each under an id of its own, some of them paid in twice."""

from __future__ import annotations

import asyncio
import random
import secrets
import time
from collections.abc import Callable
from dataclasses import dataclass

from billing_tasks.admin.accounts import Accounts
from billing_tasks.errors import Unavailable
from chaos.journal import Journal, Step
from chaos.population import Population

#: By one gateway.
EVERY_SECONDS = 1.2
PATIENCE_SECONDS = 20.0


@dataclass(slots=True)
class TopUps:
    """The top-ups that one gateway makes."""

    accounts: Accounts
    population: Population
    journal: Journal
    dice: random.Random

    async def work(self, stop: asyncio.Event) -> None:
        """Top up a poor user or a tight token now and then, until the stop."""
        while not stop.is_set():
            await asyncio.sleep(self.dice.expovariate(1 / EVERY_SECONDS))
            account = self.dice.choice(
                (*self.population.poor_users, *(-token for token in self.population.tight_tokens))
            )
            quota = self.population.typical_quota * self.dice.randint(3, 12)
            await asyncio.to_thread(self._pay_in, max(0, account), max(0, -account), quota)

    def _pay_in(self, user_id: int, token_id: int, quota: int) -> None:
        """To a user, or to a token if there is one."""
        own_id = f"payment-{secrets.token_hex(8)}"
        self.journal.write(Step.TOP_UP, own_id, user=user_id, token=token_id, quota=quota)
        try:
            for again in (False, True)[: 1 + (self.dice.random() < 0.25)]:
                if again:
                    self.journal.write(Step.REPEAT, own_id, word=Step.TOP_UP)
                if token_id:
                    patiently(lambda: self.accounts.adjust_token(token_id, quota, own_id))
                else:
                    patiently(lambda: self.accounts.top_up(user_id, quota, own_id))
                self.journal.write(Step.TOPPED_UP, own_id, quota=quota)
        except Unavailable as exc:
            self.journal.write(Step.GAVE_UP, own_id, word=exc.code)
        except Exception as exc:  # what it was is the finding
            self.journal.write(Step.UNEXPECTED, own_id, word=f"{type(exc).__name__}: {exc}")


def patiently(call: Callable[[], object]) -> None:
    """Repeat, with the same id, while a server is away."""
    deadline = time.monotonic() + PATIENCE_SECONDS
    while True:
        try:
            call()
        except Unavailable:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.3)
        else:
            return
