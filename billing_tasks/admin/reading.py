"""What is inside a dead letter, and inside a message that asks for some, read for the doors that present them."""

from billing_tasks.flows.dead_letters.record import event_of
from billing_tasks.flows.dead_letters.select import filter_from

__all__ = ["event_of", "filter_from"]
