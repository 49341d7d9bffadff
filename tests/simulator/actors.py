"""An actor: a flow that is suspended between two effects, and how it is brought to the next one."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from billing_tasks.errors import BillingError, Unavailable
from billing_tasks.flows.effects import Effect, Flow
from tests.simulator.broker import Message
from tests.simulator.claims import Claim, Violation
from tests.simulator.stepping import Parked

Script = Flow[Any]


@dataclass(eq=False)
class Actor:
    """A gateway, worker, sweeper or operator. `waits_for` is None once it has ended."""

    name: str
    script: Script
    waits_for: Effect | None = None
    request: str = ""  # what its transaction is about, while it waits before COMMIT
    cut_off: bool = False  # Redis never answers it when it consumes or refunds
    message: Message | None = None  # a worker: what it acknowledges at its end
    parked: Parked | None = None
    answer: Callable[[], None] | None = None  # what it will be told next
    replies: list[Any] = field(default_factory=list)  # of a pipeline that is under way
    error: BillingError | None = None  # how it ended
    late_ms: int = 0  # how long ago it was last told the time, beyond what the clock says
    killable: bool = False  # a worker, which a time limit ends
    pace: float = 1.0  # how soon it takes its next step; others overtake one that is slow

    def start(self) -> None:
        """To its first effect."""
        self._go(lambda: self.script.send(None))

    def send(self, reply: Any) -> None:
        """The effect's answer."""
        self._go(lambda: self.script.send(reply))

    def throw(self, error: BillingError) -> None:
        """The effect's failure."""
        self._go(lambda: self.script.throw(error))

    def crash(self) -> None:
        """Its process is gone. An open transaction goes with it."""
        self.script.close()
        self.waits_for = None
        if self.parked is not None:
            self.parked.rollback()
            self.parked = None

    @property
    def gave_up(self) -> bool:
        """Ended because a server was away."""
        return isinstance(self.error, Unavailable)

    def _go(self, on: Callable[[], Effect]) -> None:
        self.replies, self.answer = [], None
        try:
            self.waits_for = on()
        except StopIteration:
            self.waits_for = None
        except BillingError as error:
            self.waits_for, self.error = None, error
        except Violation:
            raise
        except Exception as error:
            raise Violation(Claim.NO_CRASH, f"{self.name} ended with {type(error).__name__}: {error}") from error
