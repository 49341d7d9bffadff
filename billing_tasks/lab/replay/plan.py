"""Plan: which user asks for what, through which channel, and how it ends.

All of it follows from the trace, the seed and the rates. How many processes
run it, and how fast, changes nothing here; that is what makes two replays comparable.
Every request takes the same number of throws of the dice, so a changed rate
moves no other decision.
"""

from __future__ import annotations

import random
from bisect import bisect
from collections.abc import Sequence
from dataclasses import dataclass
from enum import IntEnum
from itertools import accumulate

from billing_tasks.lab.replay.options import Options
from billing_tasks.lab.trace import TraceRow

GROUPS = (("default", 80), ("vip", 15), ("svip", 5))
MAX_TOKENS_PER_USER = 3
#: Each model has a main channel and one it is sometimes sent through instead.
CHANNELS_PER_MODEL = 2
SECOND_CHANNEL_RATE = 0.2
#: Clients now and then ask for less than the model then writes: usage above its own hold.
TIGHT_RATE = 0.005
STREAM_RATE = 0.7
SMALLEST_MAX_TOKENS = 16


class Fate(IntEnum):
    """How a request will end, if its reservation is not refused."""

    USED = 0  # the upstream answers, the usage is consumed
    FAILS = 1  # the upstream answers 502, the hold is given back
    ABANDONED = 2  # the gateway dies, the hold expires


@dataclass(frozen=True, slots=True)
class PlanRow:
    """One request. Users, tokens, models and channels are numbers from 0; the database gives them ids."""

    row: int  # of the trace
    at_us: int
    user: int
    token: int
    model: int
    channel: int
    fate: Fate
    prompt_tokens: int
    completion_tokens: int
    max_tokens: int
    is_stream: bool


@dataclass(frozen=True, slots=True)
class Plan:
    """All requests, and the users who make them."""

    models: tuple[str, ...]
    groups: tuple[str, ...]  # per user
    tokens: tuple[tuple[int, ...], ...]  # per user: the numbers of the user's tokens
    requests: tuple[PlanRow, ...]


def make_plan(trace: Sequence[TraceRow], options: Options) -> Plan:
    """The plan of a trace: same trace, seed, users, mix and rates, same plan."""
    dice = random.Random(f"people:{options.seed}")  # the word is part of the seed: with another, other plans
    tokens: list[tuple[int, ...]] = []
    first = 0
    for _ in range(options.users):
        count = 1 + int(dice.random() * MAX_TOKENS_PER_USER)
        tokens.append(tuple(range(first, first + count)))
        first += count
    groups = tuple(GROUPS[_pick(dice, [weight for _, weight in GROUPS])][0] for _ in range(options.users))
    return Plan(
        models=tuple(name for name, _ in options.models),
        groups=groups,
        tokens=tuple(tokens),
        requests=tuple(_requests(trace, tokens, options)),
    )


def _requests(trace: Sequence[TraceRow], tokens: Sequence[tuple[int, ...]], options: Options) -> list[PlanRow]:
    dice = random.Random(f"traffic:{options.seed}")
    # A few users make most of the traffic, as everywhere.
    busy = list(accumulate(1 / (index + 1) ** 0.7 for index in range(options.users)))
    mix = list(accumulate(weight for _, weight in options.models))
    planned = []
    for row, line in enumerate(trace):
        user = bisect(busy, dice.random() * busy[-1], hi=len(busy) - 1)
        owned = tokens[user]
        token = owned[int(dice.random() * len(owned))]
        model = bisect(mix, dice.random() * mix[-1], hi=len(mix) - 1)
        channel = model * CHANNELS_PER_MODEL + (dice.random() < SECOND_CHANNEL_RATE)
        fate = _fate(dice.random(), options)
        tight = dice.random() < TIGHT_RATE
        planned.append(
            PlanRow(
                row=row,
                at_us=max(0, line.at_us - trace[0].at_us),
                user=user,
                token=token,
                model=model,
                channel=channel,
                fate=fate,
                prompt_tokens=line.context_tokens,
                completion_tokens=line.generated_tokens,
                max_tokens=asked_for(line.generated_tokens, tight=tight),
                is_stream=dice.random() < STREAM_RATE,
            )
        )
    return planned


def asked_for(generated_tokens: int, *, tight: bool) -> int:
    """The max_tokens a client would have named: a round figure above the answer, or (`tight`) half of the answer."""
    if tight:
        return max(1, generated_tokens // 2)
    return max(SMALLEST_MAX_TOKENS, 1 << max(0, generated_tokens - 1).bit_length())


def _fate(point: float, options: Options) -> Fate:
    if point < options.fail_rate:
        return Fate.FAILS
    return Fate.ABANDONED if point < options.fail_rate + options.abandon_rate else Fate.USED


def _pick(dice: random.Random, weights: Sequence[int]) -> int:
    bounds = list(accumulate(weights))
    return bisect(bounds, dice.random() * bounds[-1], hi=len(bounds) - 1)
