"""Faults: what is going to happen to which process, and when. Follows from the seed and the length of the run alone.

Each kind is spread over the whole run. Some are moved beside another one, because
what breaks is often the second blow: PostgreSQL goes while Redis is coming back.
"""

from __future__ import annotations

import math
import random
from dataclasses import dataclass
from enum import StrEnum

from chaos.options import FULL_MINUTES


class Fault(StrEnum):
    """What is done, in the words of the report."""

    CHILD = "worker child killed"
    WORKER = "worker killed"
    ORPHANS = "worker killed, its children left alone"
    BEAT = "beat killed"
    GATEWAY = "gateway killed"
    REDIS = "Redis killed"
    REDIS_FROZEN = "Redis frozen"
    REDIS_SLOW = "Redis slow"
    REDIS_CUT = "Redis connections cut"
    FAILOVER = "Redis failed over to its replica"
    FAILOVER_LATE = "Redis failed over to a replica that lagged"
    POSTGRES = "PostgreSQL killed"
    POSTGRES_QUIT = "PostgreSQL stopped at once"
    POSTGRES_BACKEND = "PostgreSQL backend killed"
    POSTGRES_RESTORED = "PostgreSQL restored to an earlier time"
    POSTGRES_LATE = "PostgreSQL failed over to a standby that lagged"
    POSTGRES_FROZEN = "PostgreSQL frozen"
    POSTGRES_SLOW = "PostgreSQL slow"
    POSTGRES_CUT = "PostgreSQL connections cut"
    BROKER = "broker killed, came back empty"
    BROKER_FLUSHED = "broker emptied"
    BROKER_FROZEN = "broker frozen"
    BROKER_SLOW = "broker slow"
    SETTLE_TWICE = "settle messages multiplied"
    CLOCK = "clock of a worker or gateway set"
    STRANGER = "another program wrote into a shard"


#: How many of each in FULL_MINUTES.
AMOUNTS = {
    Fault.CHILD: 90,
    Fault.WORKER: 34,
    Fault.ORPHANS: 24,
    Fault.BEAT: 24,
    Fault.GATEWAY: 56,
    Fault.REDIS: 24,
    Fault.REDIS_FROZEN: 12,
    Fault.REDIS_SLOW: 8,
    Fault.REDIS_CUT: 16,
    Fault.FAILOVER: 12,
    Fault.FAILOVER_LATE: 8,
    Fault.POSTGRES: 15,
    Fault.POSTGRES_QUIT: 9,
    Fault.POSTGRES_BACKEND: 6,
    Fault.POSTGRES_RESTORED: 6,
    Fault.POSTGRES_LATE: 6,
    Fault.POSTGRES_FROZEN: 12,
    Fault.POSTGRES_SLOW: 8,
    Fault.POSTGRES_CUT: 16,
    Fault.BROKER: 15,
    Fault.BROKER_FLUSHED: 10,
    Fault.BROKER_FROZEN: 6,
    Fault.BROKER_SLOW: 6,
    Fault.SETTLE_TWICE: 60,
    Fault.CLOCK: 30,
    Fault.STRANGER: 30,
}
#: kill -9 of a process of ours, as opposed to a server's.
KILLS = (Fault.CHILD, Fault.WORKER, Fault.ORPHANS, Fault.BEAT, Fault.GATEWAY)
LOSSES_OF_REDIS = (Fault.REDIS,)
FAILOVERS = (Fault.FAILOVER, Fault.FAILOVER_LATE)
LOSSES_OF_POSTGRES = (Fault.POSTGRES, Fault.POSTGRES_QUIT, Fault.POSTGRES_BACKEND)
RESTORES = (Fault.POSTGRES_RESTORED, Fault.POSTGRES_LATE)
LOSSES_OF_BROKER = (Fault.BROKER, Fault.BROKER_FLUSHED)

FROZEN = (Fault.REDIS_FROZEN, Fault.POSTGRES_FROZEN, Fault.BROKER_FROZEN)
SLOW = (Fault.REDIS_SLOW, Fault.POSTGRES_SLOW, Fault.BROKER_SLOW)
#: Seconds by which a clock is wrong from then on: less and more than an id may be dated ahead (300 s).
CLOCK_STEPS = (-86_400.0, -3_600.0, -400.0, -30.0, 0.0, 45.0, 400.0, 3_600.0, 172_800.0)
#: Those that make the second blow.
SERVERS = (
    Fault.REDIS,
    Fault.REDIS_FROZEN,
    Fault.FAILOVER,
    Fault.POSTGRES,
    Fault.POSTGRES_QUIT,
    Fault.POSTGRES_FROZEN,
    Fault.BROKER,
)
PAIRED = 0.25
#: Nothing in the first seconds (processes are still starting), nor in the last ones (it has to come back).
FIRST_SECONDS = 4.0
LAST_SECONDS = 4.0


@dataclass(frozen=True, slots=True)
class Planned:
    """One fault to come. `seconds` is how long its victim is away or frozen, how old what comes back is, or by how much
    its clock is wrong; `pick` from 0 to 1 says which victim."""

    at_seconds: float
    fault: Fault
    seconds: float
    pick: float


def schedule(minutes: float, seed: int, *, density: float = 1.0) -> list[Planned]:
    """All faults of a run in their order: at least one of each kind, for a run of FULL_MINUTES the AMOUNTS."""
    begin, end = FIRST_SECONDS, max(FIRST_SECONDS + 1, minutes * 60 - LAST_SECONDS)
    planned: list[Planned] = []
    for fault, amount in AMOUNTS.items():
        dice = random.Random(f"fault:{fault}:{seed}")
        count = max(1, math.ceil(amount * density * minutes / FULL_MINUTES))
        for index in range(count):
            at = begin + (end - begin) * (index + dice.random()) / count
            planned.append(Planned(at, fault, _away(fault, dice), dice.random()))
    planned = _paired(planned, random.Random(f"pairs:{seed}"), end)
    return sorted(planned, key=lambda p: p.at_seconds)


def _away(fault: Fault, dice: random.Random) -> float:
    """Seconds until the victim is started again or goes on."""
    if fault in FROZEN or fault in SLOW:
        return dice.uniform(1.0, 4.0)
    if fault in FAILOVERS:
        return dice.uniform(0.05, 0.8)  # how long a replica that lags is left behind
    if fault is Fault.POSTGRES_RESTORED:
        return dice.uniform(3.0, 10.0)  # how old the backup is
    if fault is Fault.POSTGRES_LATE:
        return dice.uniform(0.05, 1.0)  # how much the standby lacks
    if fault is Fault.CLOCK:
        return dice.choice(CLOCK_STEPS)
    if fault in KILLS:
        return dice.uniform(0.0, 0.5)  # a supervisor brings it back at once
    return float(0.1 * 50 ** dice.random())  # 0.1 to 5 seconds, mostly short


def _paired(planned: list[Planned], dice: random.Random, end: float) -> list[Planned]:
    anchors = [p for p in planned if p.fault in SERVERS]
    together = []
    for one in planned:
        anchor = anchors[int(dice.random() * len(anchors))]
        beside = min(end, anchor.at_seconds + dice.uniform(0.0, 2.0))
        moves = dice.random() < PAIRED and one.fault is not anchor.fault
        together.append(Planned(beside, one.fault, one.seconds, one.pick) if moves else one)
    return together
