"""What another program put where scripts keep their own: set aside as soon as a command fails on it, and said.

A key of another type, or a number that is none, would fail every command that meets it: an outbox those of all its
users, and in a look at all shards the look. So the store that gets such an error has `mend.lua` see to the command's
keys, and sends it once more.
"""

from __future__ import annotations

import logging
import re
from typing import Any

import redis

from billing_tasks.holds.commands import Command, Commands, call
from billing_tasks.holds.repairs import RecountAccount
from billing_tasks.holds.replies import text
from billing_tasks.settings import Settings

log = logging.getLogger(__name__)

#: Errors that say so: of a key's type, of a field that is to be counted up, of a word that is no number.
_STRANGE = re.compile(r"WRONGTYPE|not an integer|attempt to (?:perform arithmetic|compare)")
_ACCOUNT = re.compile(r"\{([^}]*)\}:(user|token):(\d{1,18})")


def mending(command: Command[Any], error: redis.ResponseError, commands: Commands) -> Command[list[str]] | None:
    """mend.lua for the keys of a command that failed on one of them; None if it failed for another reason."""
    if not _STRANGE.search(str(error)):
        return None
    first, last = (3, 3 + command.words[2]) if command.script is not None else (1, 2)
    keys = tuple(key for key in map(text, command.words[first:last]) if key.startswith(f"{commands.keys.prefix}:{{"))
    return call("mend", keys, (), lambda reply: [text(key) for key in reply]) if keys else None


def recounts(mended: list[str], commands: Commands, settings: Settings) -> list[Command[bool]]:
    """What follows for accounts: their counters were lost with the key. Says what was set aside."""
    found = []
    for key in mended:
        log.error("%s was not written by billing and is set aside; `billing-tasks verify` names it", key)
        account = _ACCOUNT.search(key)
        if account is not None:
            shard = commands.keys.tags.index(account[1])
            found.append(RecountAccount(shard, account[2], int(account[3])).command(commands, settings))
    return found
