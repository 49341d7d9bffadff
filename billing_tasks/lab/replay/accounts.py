"""Accounts: the users, tokens and channels of a plan, and what each may spend.

Most have more than their requests could ever hold. A few users and a few
tokens are poor, so that some requests are refused; which ones follows from the
seed. The accounts are new ones, above every id in use, so a replay can be
run again on the same database.
"""

from __future__ import annotations

import random
from collections import defaultdict
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Protocol

from billing_tasks.admin.accounts import Accounts
from billing_tasks.lab.replay.options import Options
from billing_tasks.lab.replay.plan import CHANNELS_PER_MODEL, Plan
from billing_tasks.pricing import Price

#: One in so many users, and one in so many limited tokens, is poor.
POOR_USERS = 10
POOR_TOKENS = 8
UNLIMITED_RATE = 0.5
#: Rich accounts get whole dollars, at least one more than they could need.
ROUND_QUOTA = 500_000

PriceOf = Callable[[str, str], Price]


class HasId(Protocol):
    """Any row of an account."""

    @property
    def id(self) -> int: ...


@dataclass(frozen=True, slots=True)
class PlannedUser:
    """A user to be made."""

    group: str
    quota: int


@dataclass(frozen=True, slots=True)
class PlannedToken:
    """A token to be made."""

    user: int
    name: str
    quota: int
    unlimited: bool


@dataclass(frozen=True, slots=True)
class PlannedAccounts:
    """All accounts of a plan, by number."""

    users: tuple[PlannedUser, ...]
    tokens: tuple[PlannedToken, ...]
    channels: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Ids:
    """What to add to a number of the plan to get the id in the database."""

    user: int
    token: int
    channel: int


def plan_accounts(plan: Plan, options: Options, price_of: PriceOf) -> PlannedAccounts:
    """Which accounts a plan needs, and how rich each is. `price_of(group, model)` as the traffic will be priced."""
    user_needs, token_needs = _needs(plan, price_of)
    dice = random.Random(f"quota:{options.seed}")
    poor_users = _some(dice, [user for user, need in user_needs.items() if need], POOR_USERS, len(plan.groups))
    unlimited = {token for owned in plan.tokens for token in owned if dice.random() < UNLIMITED_RATE}
    limited = [
        token
        for user, owned in enumerate(plan.tokens)
        for token in owned
        if user not in poor_users and token not in unlimited and token_needs[token]
    ]
    poor_tokens = _some(dice, limited, POOR_TOKENS, len(limited))
    users = tuple(
        PlannedUser(group, user_needs[user] // 3 if user in poor_users else _plenty(user_needs[user]))
        for user, group in enumerate(plan.groups)
    )
    tokens = tuple(
        PlannedToken(
            user=user,
            name=f"key-{index + 1}",
            quota=_token_quota(token_needs[token], poor=token in poor_tokens, unlimited=token in unlimited),
            unlimited=token in unlimited,
        )
        for user, owned in enumerate(plan.tokens)
        for index, token in enumerate(owned)
    )
    return PlannedAccounts(users, tokens, tuple(_channel_names(plan.models)))


def _needs(plan: Plan, price_of: PriceOf) -> tuple[dict[int, int], dict[int, int]]:
    """What all requests of each user and token would hold together, in quota."""
    prices = {
        (group, number): price_of(group, model)
        for group in set(plan.groups)
        for number, model in enumerate(plan.models)
    }
    users: dict[int, int] = defaultdict(int)
    tokens: dict[int, int] = defaultdict(int)
    for request in plan.requests:
        price = prices[plan.groups[request.user], request.model]
        # Usage above a hold counts too: a user who is meant to be rich must be.
        most = max(request.max_tokens, request.completion_tokens)
        held = price.estimate(request.prompt_tokens, most)
        users[request.user] += held
        tokens[request.token] += held
    return users, tokens


def _some(dice: random.Random, numbers: Sequence[int], one_in: int, of: int) -> frozenset[int]:
    """One in `one_in`, at least one if there are two; `numbers` in any order gives the same."""
    if len(numbers) < 2:
        return frozenset()
    return frozenset(dice.sample(sorted(numbers), min(len(numbers) - 1, max(1, of // one_in))))


def _plenty(need: int) -> int:
    return (need // ROUND_QUOTA + 2) * ROUND_QUOTA


def _token_quota(need: int, *, poor: bool, unlimited: bool) -> int:
    if unlimited:
        return 0
    return need // 2 if poor else _plenty(need)


def _channel_names(models: Sequence[str]) -> list[str]:
    return [f"{model} {chr(ord('A') + index)}" for model in models for index in range(CHANNELS_PER_MODEL)]


# -- in the database --------------------------------------------------------------------------------------


def create_accounts(planned: PlannedAccounts, *, accounts: Accounts, connections: int) -> Ids:
    """Make all accounts, several at a time, under ids that no account has. Raises IdempotencyConflict if raced."""
    ids = Ids(
        user=next_free_id(lambda after_id: accounts.users(after_id=after_id, limit=1)),
        token=next_free_id(lambda after_id: accounts.tokens(after_id=after_id, limit=1)),
        channel=next_free_id(lambda after_id: accounts.channels(after_id=after_id, limit=1)),
    )

    def make_user(number: int) -> None:
        user = planned.users[number]
        accounts.create_user(ids.user + number, quota=user.quota, group=user.group)

    def make_token(number: int) -> None:
        token = planned.tokens[number]
        accounts.create_token(
            ids.user + token.user,
            ids.token + number,
            name=token.name,
            quota=token.quota,
            unlimited=token.unlimited,
        )

    def make_channel(number: int) -> None:
        accounts.create_channel(ids.channel + number, name=planned.channels[number])

    with ThreadPoolExecutor(connections) as pool:
        list(pool.map(make_channel, range(len(planned.channels))))
        list(pool.map(make_user, range(len(planned.users))))  # before their tokens
        list(pool.map(make_token, range(len(planned.tokens))))
    return ids


def next_free_id(above: Callable[[int], Sequence[HasId]]) -> int:
    """The id after the highest in use. `above(id)` answers with any row whose id is higher.

    By doubling and halving: some forty short questions however many accounts there are.
    """
    low, high = 0, 1
    while found := above(high):
        low = found[0].id
        high = max(high, low) * 2
    while low < high:
        middle = (low + high) // 2
        if found := above(middle):
            low = found[0].id
        else:
            high = middle
    return low + 1
