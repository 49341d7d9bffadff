"""Liveness: whether the workers answer while they run and the broker is there.

A worker that runs and does nothing is the fault that no supervisor sees. Asked
from a thread of its own, because asking waits for the broker.
"""

from __future__ import annotations

import threading
import time

from billing_tasks.runtime import Runtime
from chaos.environment import Environment

EVERY_SECONDS = 3.0
ANSWER_SECONDS = 2.0


class Liveness:
    """Asks the workers now and then; measures how long each was silent without a reason."""

    def __init__(self, environment: Environment, runtime: Runtime) -> None:
        self.longest_silence: dict[str, float] = {}  # by worker, in seconds
        self._environment = environment
        self._runtime = runtime
        self._heard: dict[str, float] = {}
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="chaos-liveness", daemon=True)

    def start(self) -> None:
        """Begin to ask."""
        self._thread.start()

    def close(self) -> None:
        """Ask no more."""
        self._stop.set()
        self._thread.join(30)

    def silent(self) -> dict[str, float]:
        """Seconds since each worker was last heard, or had its last reason to be silent."""
        broker = self._environment.processes["broker"]
        now = time.monotonic()
        silence = {}
        for worker in self._environment.some("worker"):
            excused = max(worker.since, broker.since)
            if worker.is_up and broker.is_up:
                silence[worker.name] = now - max(excused, self._heard.get(worker.name, 0.0))
        return silence

    def look(self) -> None:
        """Note how long they have been silent by now."""
        for name, seconds in self.silent().items():
            self.longest_silence[name] = max(seconds, self.longest_silence.get(name, 0.0))

    def all_answer(self, timeout_seconds: float) -> list[str]:
        """The workers that stay silent, although asked again and again."""
        asked = time.monotonic()
        while time.monotonic() < asked + timeout_seconds:
            silent = [w.name for w in self._environment.some("worker") if self._heard.get(w.name, 0.0) < asked]
            if not silent:
                return []
            time.sleep(0.1)
        return silent

    def _run(self) -> None:
        while not self._stop.wait(EVERY_SECONDS):
            names = self._runtime.doorbell.workers(ANSWER_SECONDS)
            for name in names:  # worker2@host answers for worker-2
                self._heard[name.partition("@")[0].replace("worker", "worker-")] = time.monotonic()
