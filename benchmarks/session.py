"""Session: what every measure is handed: the servers, how much to measure, and the book to write into."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from benchmarks.environment import Environment
from benchmarks.figures import Book
from benchmarks.population import populate
from benchmarks.sizes import Size
from billing_tasks.lab.servers import Servers


@dataclass
class Session:
    """One run. `tell` hears a sentence whenever something begins."""

    servers: Servers
    size: Size
    book: Book = field(default_factory=Book)
    tell: Callable[[str], None] = lambda _sentence: None
    findings: list[str] = field(default_factory=list)  # broken guarantees of the measure that runs

    @contextmanager
    def environment(
        self,
        name: str = "bench",
        *,
        users: int | None = None,
        entries: int = 0,
        servers: Servers | None = None,
        **settings: Any,
    ) -> Iterator[Environment]:
        """A fresh environment with `users` accounts (the size's) and `entries` booked consumes. Checked at the end."""
        environment = Environment(servers or self.servers, name, **settings)
        try:
            environment.empty()
            populate(environment, self.size.users if users is None else users, entries=entries)
            yield environment
            self.findings += environment.verify()
        finally:
            environment.close()

    def rounds(self) -> Iterator[int]:
        """The rounds, each told."""
        for number in range(self.size.rounds):
            self.tell(f"  round {number + 1} of {self.size.rounds}")
            yield number
