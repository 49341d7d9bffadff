"""Population: the accounts that pay for the traffic of a run, and what they ask for.

The plan is a replay's: which user, token, model and channel, how long prompt and
answer. It is walked round and round, by every gateway from another start. Most
users can pay for all of it. Some are poor: they depend on top-ups, are refused most
of the time, and any overspending shows with them first. Some tokens of rich users
are limited in the same way.
"""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

from billing_tasks.admin.accounts import Accounts
from billing_tasks.lab.replay.accounts import Ids, PlannedAccounts, PlannedToken, PlannedUser, create_accounts
from billing_tasks.lab.replay.options import Options as PlanOptions
from billing_tasks.lab.replay.plan import CHANNELS_PER_MODEL, Plan, make_plan
from billing_tasks.lab.replay.requests import PlannedRequest, make_requests
from billing_tasks.lab.trace import generate
from billing_tasks.pricing import Price, PriceBook

USERS = 48
REQUESTS = 12_000
POOR_USERS = 12
TIGHT_TOKENS = 10
UNLIMITED_RATE = 0.5
#: In typical requests: what the poor begin with, and what rich accounts have, which no run can use up.
POOR_QUOTA = 20
RICH_QUOTA = 100_000_000

PriceOf = Callable[[str, str], Price]


@dataclass(frozen=True, slots=True)
class Population:
    """Ids of the accounts, and which are poor. Small enough for a file: gateways make the plan anew from the seed."""

    seed: int
    user: int  # what to add to a number of the plan to get the id
    token: int
    channel: int
    typical_quota: int  # what an ordinary request holds
    poor_users: tuple[int, ...]
    tight_tokens: tuple[int, ...]

    @property
    def ids(self) -> Ids:
        """As a replay has them."""
        return Ids(self.user, self.token, self.channel)

    def save(self, path: Path) -> None:
        """For the gateways."""
        path.write_text(json.dumps(asdict(self)))

    @classmethod
    def load(cls, path: Path) -> Population:
        """What `save` wrote."""
        fields = json.loads(path.read_text())
        poor_users, tight_tokens = tuple(fields.pop("poor_users")), tuple(fields.pop("tight_tokens"))
        return cls(**fields, poor_users=poor_users, tight_tokens=tight_tokens)

    def requests(self) -> list[PlannedRequest]:
        """What is asked for."""
        return make_requests(plan_of(self.seed), self.ids)


def plan_of(seed: int) -> Plan:
    """The same seed, the same plan."""
    return make_plan(generate(REQUESTS, seed=seed), PlanOptions(users=USERS, seed=seed))


def create_population(seed: int, accounts: Accounts, *, connections: int) -> Population:
    """Make all accounts, under ids that no account has. Raises Unavailable."""
    plan = plan_of(seed)
    typical = typical_quota(plan, PriceBook())
    dice = random.Random(f"people:{seed}")  # the word is part of the seed
    poor = set(dice.sample(range(USERS), POOR_USERS))
    limited = [
        token
        for user, owned in enumerate(plan.tokens)
        for token in owned
        if user not in poor and dice.random() >= UNLIMITED_RATE
    ]
    tight = set(dice.sample(limited, min(TIGHT_TOKENS, len(limited))))
    planned = PlannedAccounts(
        users=tuple(
            PlannedUser(group, typical * (POOR_QUOTA if user in poor else RICH_QUOTA))
            for user, group in enumerate(plan.groups)
        ),
        tokens=tuple(
            PlannedToken(
                user=user,
                name=f"key-{index + 1}",
                quota=typical * POOR_QUOTA if token in tight else typical * RICH_QUOTA if token in limited else 0,
                unlimited=token not in limited,
            )
            for user, owned in enumerate(plan.tokens)
            for index, token in enumerate(owned)
        ),
        channels=tuple(f"{model} {index}" for model in plan.models for index in range(CHANNELS_PER_MODEL)),
    )
    ids = create_accounts(planned, accounts=accounts, connections=connections)
    return Population(
        seed,
        *(ids.user, ids.token, ids.channel, typical),
        tuple(sorted(ids.user + user for user in poor)),
        tuple(sorted(ids.token + token for token in tight)),
    )


def typical_quota(plan: Plan, ratios: PriceBook) -> int:
    """What the middle one of the plan's requests holds."""
    estimates = sorted(
        ratios.price(group=plan.groups[request.user], model=plan.models[request.model]).estimate(
            request.prompt_tokens, request.max_tokens
        )
        for request in plan.requests[:1000]
    )
    return estimates[len(estimates) // 2]
