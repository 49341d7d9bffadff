"""Processes: one gateway in this process, or several in processes of their own.

Each child connects, says that it is ready, waits for the word and ends with its
tally. Children are spawned, not forked: nothing of the parent's connections
goes with them, as with the workers of a real gateway. They end with us, however we end.
"""

from __future__ import annotations

import asyncio
import multiprocessing
import os
import signal
import threading
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from multiprocessing.context import SpawnProcess

from billing_tasks.lab.replay.gateway_process import Pace, Tick, run_requests
from billing_tasks.lab.replay.problems import ProcessDied
from billing_tasks.lab.replay.requests import PlannedRequest, Tally, put_together, share_out
from billing_tasks.settings import Settings


def run_traffic(
    requests: Sequence[PlannedRequest], *, processes: int, settings: Settings, pace: Pace, tick: Tick
) -> Tally:
    """All requests; the tally is in their order. `tick` hears how many are done. Raises ProcessDied."""
    if processes == 1:
        with _ctrl_c_for_asyncio():
            return asyncio.run(run_requests(requests, settings=settings, pace=pace, tick=tick))
    shares = share_out(requests, processes)
    with ExitStack() as cleanup:
        children = [_Child.start(number, settings, pace, cleanup) for number in range(processes)]
        # Over the pipe and not as an argument: all of them start before any has to read.
        for child, share in zip(children, shares, strict=True):
            child.pipe.send(share)
        for child in children:
            child.receive()  # ready
        for child in children:
            child.pipe.send("go")
        _listen(children, tick)
        return put_together([child.ended for child in children], len(requests))


@contextmanager
def _ctrl_c_for_asyncio() -> Iterator[None]:
    """asyncio cancels its tasks in good order on Ctrl-C, but only if the program has not taken the signal itself."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    taken = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, taken)


@dataclass(slots=True)
class _Child:
    """A gateway process, seen from here."""

    number: int
    process: SpawnProcess
    pipe: Connection[object, object]
    done: int = 0
    tally: Tally | None = None

    @classmethod
    def start(cls, number: int, settings: Settings, pace: Pace, cleanup: ExitStack) -> _Child:
        context = multiprocessing.get_context("spawn")
        ours, theirs = context.Pipe()
        process = context.Process(target=_gateway, args=(theirs, settings, pace), daemon=True)
        process.start()
        cleanup.callback(process.join, 5)
        cleanup.callback(process.terminate)
        cleanup.callback(ours.close)
        theirs.close()  # so that its death is our end of file
        return cls(number, process, ours)

    @property
    def ended(self) -> Tally:
        """The tally of a child that has ended as it should."""
        assert self.tally is not None, "_listen comes first"  # noqa: S101
        return self.tally

    def receive(self) -> None:
        """Take one message, or raise ProcessDied."""
        try:
            message = self.pipe.recv()
        except EOFError:
            self.process.join(5)
            raise ProcessDied(
                f"Gateway process {self.number + 1} ended with exit code {self.process.exitcode}; see above."
            ) from None
        if isinstance(message, int):
            self.done = message
        elif isinstance(message, Tally):
            self.tally = message


def _listen(children: Sequence[_Child], tick: Tick) -> None:
    open_pipes = {child.pipe: child for child in children}
    while open_pipes:
        for pipe in wait(list(open_pipes)):
            child = open_pipes[pipe]  # type: ignore[index]
            child.receive()
            if child.tally is not None:
                del open_pipes[child.pipe]
        tick(sum(child.done for child in children))


def _gateway(pipe: Connection[object, object], settings: Settings, pace: Pace) -> None:
    """What a child runs."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches us all; the parent decides
    requests = pipe.recv()
    pipe.send("ready")
    pipe.recv()
    assert isinstance(requests, list)  # noqa: S101

    def tick(done: int) -> None:
        try:
            pipe.send(done)
        except OSError:
            os._exit(1)  # the parent was killed; it can't read what comes of this

    pipe.send(asyncio.run(run_requests(requests, settings=settings, pace=pace, tick=tick)))
