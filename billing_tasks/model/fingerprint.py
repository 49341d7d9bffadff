"""Fingerprints: what makes two events under one id the same, as hex digits that carry their formula's number.

A fingerprint by formula 1 has 16 bytes; a later one has the number of its formula in front of them. Two fingerprints
by different formulas are not compared: the ledger compares what the older formula covers (`billing.is_same_body`), so
a new formula never turns a repetition into a conflict.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping

#: The formula of a consume: who, where, what and how much, and since 2 the quantities of other meters. No timings and
#: no remarks. Releases and refunds are still by formula 1.
CONSUME_FORMULA = 2
_PREFIX = f"{CONSUME_FORMULA:02x}"
_LATER = re.compile(r"[0-9a-fA-F]{2}.{32}")
#: What formula 1 covers.
FORMULA_1 = ("user_id", "token_id", "channel_id", "model_name", "prompt_tokens", "completion_tokens", "quota")


def consume_fingerprint(
    *,
    user_id: int,
    token_id: int,
    channel_id: int,
    model_name: str,
    prompt_tokens: int,
    completion_tokens: int,
    quota: int,
    usage: Mapping[str, object] | None = None,
    formula: int = CONSUME_FORMULA,
) -> str:
    """34 hex digits. `usage` counts as sorted by name, and a quantity of zero as not there. 32 digits by formula 1."""
    covered = (user_id, token_id, channel_id, model_name, prompt_tokens, completion_tokens, quota)
    if formula == 1:
        return fingerprint("consume", *covered)
    meters = usage and {name: amount for name, amount in sorted(usage.items()) if amount}
    more = (json.dumps(meters, separators=(",", ":")),) if meters else ()
    return _PREFIX + fingerprint("consume", *covered, *more)


def fingerprint(*parts: object) -> str:
    """32 hex digits over the parts. The separator can't occur in a number and is refused in names."""
    return hashlib.blake2b("\x1f".join(map(str, parts)).encode("utf-8", "surrogatepass"), digest_size=16).hexdigest()


def formula_of(hex_digits: str) -> int:
    """The number of the formula that made this fingerprint; 1 if it is none, as of a top-up.

    Of what is no hex digits as well: it may come from anywhere, and the ledger refuses it.
    """
    return int(hex_digits[:2], 16) if _LATER.match(hex_digits) else 1
