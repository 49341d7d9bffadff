"""What to replay and how: checked once, before anything runs."""

from __future__ import annotations

from dataclasses import dataclass

from billing_tasks.lab.defaults import AT_A_SPEED, DEFAULT_MIX, FLAT_OUT, MIXED_MODELS
from billing_tasks.lab.replay.problems import BadMix
from billing_tasks.model.ids import shorten
from billing_tasks.pricing import check_name

Mix = tuple[tuple[str, int], ...]


@dataclass(frozen=True, slots=True)
class Options:
    """Everything but the trace. The rates say how requests end; they decide no amount."""

    users: int = 50
    models: Mix = ()
    fail_rate: float = 0.03
    abandon_rate: float = 0.01
    hold_ttl_seconds: int = 5
    concurrency: int = 0  # requests in flight per process; 0: FLAT_OUT or AT_A_SPEED
    processes: int = 1
    speed: float = 0.0  # 1: as the trace's clock went; 0: as fast as possible
    seed: int = 1
    settle_timeout_seconds: float = 120.0
    mix: bool = False  # answers with caches, reasoning, searches, images and audio

    def __post_init__(self) -> None:
        if not self.models:
            object.__setattr__(self, "models", parse_mix(MIXED_MODELS if self.mix else DEFAULT_MIX))
        if not (self.fail_rate >= 0 and self.abandon_rate >= 0 and self.fail_rate + self.abandon_rate <= 1):
            raise BadMix("The fail rate and the abandon rate must not be negative, nor above 1 together.")
        if not self.speed >= 0:
            raise BadMix("The speed must not be negative; 0 is as fast as possible.")
        if not self.concurrency:
            object.__setattr__(self, "concurrency", AT_A_SPEED if self.speed else FLAT_OUT)
        for name in ("users", "concurrency", "processes", "hold_ttl_seconds"):
            if getattr(self, name) < 1:
                raise BadMix(f"{name} must be at least 1.")


def parse_mix(text: str) -> Mix:
    """`gpt-4o=5,gpt-4o-mini=3` as names and weights; a name alone weighs 1. Raises BadMix."""
    mix: dict[str, int] = {}
    for part in text.split(","):
        name, equals, weight = part.strip().rpartition("=")
        if not equals:
            name, weight = weight, "1"
        name, weight = name.strip(), weight.strip()
        if not name or not (weight.isascii() and weight.isdigit()) or int(weight) > 1_000_000:
            raise BadMix(f"In the mix of models, {shorten(part)} is no name=weight.")
        if name in mix:
            raise BadMix(f"The mix of models names {shorten(name)} twice.")
        check_name(name, field="model")
        mix[name] = int(weight)
    if not sum(mix.values()):
        raise BadMix("The mix of models has no weight above 0.")
    return tuple(mix.items())
