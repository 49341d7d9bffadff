"""Commands for Redis, by subject. `Commands` has them all.

command.py   what a command is      requests.py  a request's scripts     accounts.py  the account cache
draining.py  settling an outbox     watching.py  what is due, what waits
prices.py    a copy of what operators set
"""

from billing_tasks.holds.commands.accounts import Accounts, token_attributes, user_attributes
from billing_tasks.holds.commands.command import Command, Layout, Pipeline, call, together
from billing_tasks.holds.commands.draining import QUIET_AFTER_FAILURE_MS, SETTLED_AT_ONCE, Draining
from billing_tasks.holds.commands.prices import Prices
from billing_tasks.holds.commands.requests import Requests
from billing_tasks.holds.commands.watching import Watching

__all__ = [
    "QUIET_AFTER_FAILURE_MS",
    "SETTLED_AT_ONCE",
    "Command",
    "Commands",
    "Layout",
    "Pipeline",
    "call",
    "together",
    "token_attributes",
    "user_attributes",
]


class Commands(Requests, Accounts, Draining, Watching, Prices):
    """Builds commands for one layout of keys."""
