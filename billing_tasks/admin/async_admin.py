"""AsyncAdmin: the operator's API for asyncio, for web apps. See Admin and its parts for what each method means.

PostgreSQL's and the broker's calls run in threads anyway, so here whole methods do.
"""

from __future__ import annotations

import asyncio
from types import TracebackType
from typing import Self

from billing_tasks.admin.accounts import Accounts
from billing_tasks.admin.admin import Admin
from billing_tasks.admin.audit import Audit
from billing_tasks.admin.dead_letters import DeadLetters
from billing_tasks.admin.entries import Entries
from billing_tasks.admin.imports import Imports
from billing_tasks.admin.in_threads import Awaited, Iterated, Twin
from billing_tasks.admin.incidents import Incidents
from billing_tasks.admin.neighbours import Neighbours
from billing_tasks.admin.prices import Prices
from billing_tasks.runtime import Runtime
from billing_tasks.settings import Settings, load_settings


class AsyncAccounts(Twin[Accounts]):
    """Accounts, awaited; for its entries see AsyncEntries."""

    create_user = Awaited(Accounts.create_user)
    set_user = Awaited(Accounts.set_user)
    erase_user = Awaited(Accounts.erase_user)
    top_up = Awaited(Accounts.top_up)
    adjust_user = Awaited(Accounts.adjust_user)
    user = Awaited(Accounts.user)
    users = Awaited(Accounts.users)
    page_of_users = Awaited(Accounts.page_of_users)
    balance = Awaited(Accounts.balance)
    create_token = Awaited(Accounts.create_token)
    set_token = Awaited(Accounts.set_token)
    set_token_quota = Awaited(Accounts.set_token_quota)
    adjust_token = Awaited(Accounts.adjust_token)
    token = Awaited(Accounts.token)
    tokens = Awaited(Accounts.tokens)
    page_of_tokens = Awaited(Accounts.page_of_tokens)
    create_channel = Awaited(Accounts.create_channel)
    channels = Awaited(Accounts.channels)
    page_of_channels = Awaited(Accounts.page_of_channels)


class AsyncEntries(Twin[Entries]):
    """Entries, awaited."""

    find = Awaited(Entries.find)
    of_request = Awaited(Entries.of_request)
    usage = Awaited(Entries.usage)


class AsyncDeadLetters(Twin[DeadLetters]):
    """DeadLetters, awaited; what is done with many is an async iterator."""

    find = Awaited(DeadLetters.find)
    get = Awaited(DeadLetters.get)
    show = Awaited(DeadLetters.show)
    choose = Awaited(DeadLetters.choose)
    count_reasons = Awaited(DeadLetters.count_reasons)
    preview = Awaited(DeadLetters.preview)
    preview_many = Iterated(DeadLetters.preview_many)
    preview_matching = Awaited(DeadLetters.preview_matching)
    retry = Awaited(DeadLetters.retry)
    retry_many = Iterated(DeadLetters.retry_many)
    send = Awaited(DeadLetters.send)
    send_due = Awaited(DeadLetters.send_due)
    discard = Awaited(DeadLetters.discard)
    discard_many = Iterated(DeadLetters.discard_many)
    reopen = Awaited(DeadLetters.reopen)
    reopen_many = Iterated(DeadLetters.reopen_many)


class AsyncIncidents(Twin[Incidents]):
    """Incidents, awaited."""

    find = Awaited(Incidents.find)
    causes = Awaited(Incidents.causes)
    close = Awaited(Incidents.close)


class AsyncNeighbours(Twin[Neighbours]):
    """Neighbours, awaited."""

    find = Awaited(Neighbours.find)
    hand_back = Awaited(Neighbours.hand_back)


class AsyncImports(Twin[Imports]):
    """Imports, awaited."""

    usage = Iterated(Imports.usage)


class AsyncPrices(Twin[Prices]):
    """Prices, awaited."""

    current = Awaited(Prices.current)
    show = Awaited(Prices.show)
    set = Awaited(Prices.set)
    take_back = Awaited(Prices.take_back)
    history = Awaited(Prices.history)
    import_toml = Iterated(Prices.import_toml)
    reprice = Iterated(Prices.reprice)
    learn_estimates = Awaited(Prices.learn_estimates)
    estimates = Awaited(Prices.estimates)
    check = Awaited(Prices.check)
    stored = Awaited(Prices.stored)
    list_of = Awaited(Prices.list_of)
    diff = Awaited(Prices.diff)


class AsyncAudit(Twin[Audit]):
    """Audit, awaited. It may take as long as reading the whole ledger does."""

    verify = Awaited(Audit.verify)
    reconcile = Awaited(Audit.reconcile)
    setup = Awaited(Audit.setup)


class AsyncAdmin(Twin[Admin]):
    """Admin's methods with `await`, in threads: a caller that is cancelled stops waiting, the call runs to its end."""

    status = Awaited(Admin.status)
    explain = Awaited(Admin.explain)
    backlog = Awaited(Admin.backlog)
    migrate = Awaited(Admin.migrate)
    installation = Awaited(Admin.installation)
    maintain_partitions = Awaited(Admin.maintain_partitions)

    def __init__(self, runtime: Runtime) -> None:
        admin = Admin(runtime)
        super().__init__(admin)
        self.accounts = AsyncAccounts(admin.accounts)
        self.entries = AsyncEntries(admin.entries)
        self.dead_letters = AsyncDeadLetters(admin.dead_letters)
        self.imports = AsyncImports(admin.imports)
        self.incidents = AsyncIncidents(admin.incidents)
        self.audit = AsyncAudit(admin.audit)
        self.neighbours = AsyncNeighbours(admin.neighbours)
        self.prices = AsyncPrices(admin.prices)

    @classmethod
    def from_settings(cls, settings: Settings | None = None) -> Self:
        """An AsyncAdmin as BILLING_* says, or as `settings` says. Raises BadSettings."""
        return cls(Runtime(settings or load_settings()))

    async def close(self) -> None:
        """Give connections back."""
        await asyncio.to_thread(self._twin.close)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self.close()
