"""How long a run is, how fast, and by which seed."""

from __future__ import annotations

from dataclasses import dataclass

from billing_tasks.errors import InvalidRequest

#: What the amounts of faults are given for; a run of another length has its share of each.
FULL_MINUTES = 20.0
#: Requests per second: what two cores keep up with while processes start again and again.
RATE = 240.0


@dataclass(frozen=True, slots=True)
class Options:
    """Everything a run can be told. `rate` is what all gateways together try to send per second,
    `density` 2 means twice as many faults in the same time.
    """

    minutes: float = FULL_MINUTES
    seed: int = 1
    rate: float = RATE
    density: float = 1.0
    gateways: int = 3
    workers: int = 2
    worker_children: int = 2
    settle_timeout_seconds: float = 240.0

    def __post_init__(self) -> None:
        if not self.minutes > 0 or not self.rate > 0 or not self.density > 0:
            raise InvalidRequest("minutes, rate and density must be above 0.")
        if self.gateways < 1 or self.workers < 1 or self.worker_children < 1:
            raise InvalidRequest("A run needs at least one gateway, one worker and one child per worker.")

    @property
    def seconds(self) -> float:
        """How long the traffic lasts."""
        return self.minutes * 60
