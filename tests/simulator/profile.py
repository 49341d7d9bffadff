"""How rough a history is: drawn once per seed."""

from __future__ import annotations

from dataclasses import dataclass
from random import Random


@dataclass(frozen=True)
class Profile:
    """How rough this history is. Most histories are rough in a few ways only: what is everywhere hides the rest."""

    steps: int
    rush: float  # how often gateways come
    faults: float  # of single effects: lost requests, lost answers, crashes
    stalls: float  # of an actor that just took a step
    flaky: float  # Redis does not answer a gateway that consumes or refunds
    parking: float  # transactions that wait before COMMIT
    time: float
    accidents: float
    operators: float
    lossy: float  # broker
    poison: float
    damage: float  # by hand, in Redis
    outages: float
    restores: float  # PostgreSQL to an earlier time
    spool: bool
    users: list[int]

    @classmethod
    def of(cls, dice: Random) -> Profile:
        def some(*values: float) -> float:
            return dice.choice(values)

        users = dice.choice(([1], [1], [1, 3], [1, 2], [1, 2, 3]))
        return cls(
            steps=dice.choice((80, 140, 220)),
            rush=some(1, 3),
            faults=some(0, 0.02, 0.06, 0.15),
            stalls=some(0, 0.1, 0.25),
            flaky=some(0, 0, 0, 0.3, 0.7),
            parking=some(0, 0, 0.2, 0.6),
            time=some(0, 0.5, 1, 2),
            accidents=some(0, 0, 0.2, 0.5),
            operators=some(0, 0.3, 0.8),
            lossy=some(0, 0.1, 0.4),
            poison=some(0, 0, 0, 0.3),
            damage=some(0, 0, 0, 0, 0.2),
            outages=some(0, 0, 0.15),
            restores=some(0, 0, 0, 0.1, 0.3),
            spool=dice.random() < 0.5,
            users=users,
        )
