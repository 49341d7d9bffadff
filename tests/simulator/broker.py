"""The broker: messages that may be late, twice, in another order, or gone."""

from __future__ import annotations

from dataclasses import dataclass, field
from random import Random
from typing import Any

from billing_tasks.broker.names import SETTLE


@dataclass(frozen=True)
class Message:
    """A task that was sent."""

    task: str
    kwargs: dict[str, Any]
    task_id: str = ""


@dataclass
class Broker:
    """A bag: a worker takes any message."""

    dice: Random
    lossy: float
    messages: list[Message] = field(default_factory=list)

    def ring(self, shard: int, request_id: str) -> None:
        """Never fails; the message may still be lost."""
        if self.dice.random() >= self.lossy:
            self.messages.append(Message(SETTLE, {"shard": shard, "request_id": request_id}))

    def enqueue(self, task: str, task_id: str, kwargs: dict[str, Any]) -> None:
        """Confirmed: lost only with the whole broker."""
        self.messages.append(Message(task, kwargs, task_id))

    def take(self) -> Message:
        """Any of them; now and then it stays and is delivered once more."""
        at = self.dice.randrange(len(self.messages))
        message = self.messages[at]
        if self.dice.random() >= self.lossy:
            self.messages[at] = self.messages[-1]
            self.messages.pop()
        return message

    def put_back(self, message: Message) -> None:
        """Not acknowledged, or retried."""
        self.messages.append(message)
