"""Prices that operators set, as a copy of what PostgreSQL has: for gateways that start while it is away."""

from __future__ import annotations

from billing_tasks.holds.commands.command import Command, Subject


class Prices(Subject):
    """One string for the whole installation."""

    def write_price_changes(self, changes: str) -> Command[bool]:
        """The copy becomes this. Each gateway that reads PostgreSQL writes it, so it is as new as the last look."""
        return Command(("SET", self.keys.prices, changes), bool)

    def price_changes(self) -> Command[str]:
        """The copy; empty: there is none."""
        return Command(
            ("GET", self.keys.prices), lambda reply: "" if reply is None else reply.decode("utf-8", "replace")
        )
