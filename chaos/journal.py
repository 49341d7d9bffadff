"""Journal: what a gateway was about to do, and what it was told, a line per step.

The intent is written before the call and the answer after it, each by one
write() to a file opened for appending: what was written is in the kernel's hands,
so `kill -9` of the gateway loses none of it. Only a last line may be cut off.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from enum import StrEnum
from pathlib import Path

import msgspec

from chaos.clock import now_ns

SUFFIX = ".journal"


class Step(StrEnum):
    """What a line says. Intents first, answers behind them."""

    RESERVE = "reserve"  # quota: to be held
    HELD = "held"
    REFUSED = "refused"  # word: the error's code
    CLOSED = "closed"  # the reservation had ended before its answer came; word: how
    CONSUME = "consume"  # quota: used
    CONSUMED = "consumed"  # quota: charged; word: "late", "posted", "spooled" if so
    RELEASE = "release"  # word: "message" if it is left to Celery, and no answer comes
    RELEASED = "released"
    REFUND = "refund"  # word: refund_id; quota: how much, 0 for all of the charge
    REFUNDED = "refunded"  # word: refund_id
    TOP_UP = "top-up"  # id: the top-up's; token 0: for the user
    TOPPED_UP = "topped-up"

    REPEAT = "repeat"  # the call before was made once more, with the same id; word: which
    MESSAGE = "message"  # quota: how many Celery messages said the same; word: the task
    GAVE_UP = "gave-up"  # no answer, however often repeated; word: which call
    UNEXPECTED = "unexpected"  # an answer that no gateway should get; word: call and answer


#: Answers, as opposed to intents: they show that the gateways make progress.
TOLD = frozenset({Step.HELD, Step.REFUSED, Step.CONSUMED, Step.RELEASED, Step.REFUNDED, Step.TOPPED_UP})


class Line(msgspec.Struct, array_like=True):
    """One step. `id` is the request_id, or the top-up's own id."""

    step: Step
    at_ms: int
    id: str
    user: int = 0
    token: int = 0
    quota: int = 0
    word: str = ""


_encoder = msgspec.json.Encoder()
_decoder = msgspec.json.Decoder(Line)


class Journal:
    """Appends lines. For one process; its threads may share it."""

    def __init__(self, path: Path) -> None:
        self._file = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)

    def write(self, step: Step, id: str, *, user: int = 0, token: int = 0, quota: int = 0, word: str = "") -> None:  # noqa: A002
        """On return the line outlives this process."""
        line = _encoder.encode(Line(step, now_ns() // 1_000_000, id, user, token, quota, word)) + b"\n"
        if os.write(self._file, line) != len(line):
            raise OSError("a journal line was cut off; is the disk full?")

    def close(self) -> None:
        """No line after this."""
        os.close(self._file)


def encode(lines: list[Line]) -> bytes:
    """Lines as a journal has them."""
    return b"".join(_encoder.encode(line) + b"\n" for line in lines)


def read_journals(folder: Path) -> Iterator[Line]:
    """All lines of all journals in the folder, file by file. A last line that was cut off is left out."""
    for path in sorted(folder.glob(f"*{SUFFIX}")):
        with path.open("rb") as file:
            for line in file:
                if line.endswith(b"\n"):
                    yield _decoder.decode(line)


class Watch:
    """Counts along while journals grow: requests begun and answers told."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._read: dict[Path, int] = {}
        self.requests = 0
        self.answers = 0

    def look(self) -> None:
        """Count what came since the last look."""
        for path in self._folder.glob(f"*{SUFFIX}"):
            with path.open("rb") as file:
                file.seek(self._read.get(path, 0))
                whole, newline, _ = file.read().rpartition(b"\n")
            if not newline:
                continue
            self._read[path] = self._read.get(path, 0) + len(whole) + 1
            for line in whole.split(b"\n"):
                step = line[2 : line.index(b'"', 2)].decode()
                self.requests += step == Step.RESERVE
                self.answers += step in TOLD
