"""Names in place of what differs from one playing to the next: ids, times, epochs, and fingerprints made of ids.

    <id NAME>                      a UUIDv7 whose random bits come from its name and whose time is now
    <uuid N>, <uuid>               an id that a server or a library made
    <time N>, <time N +10 s>       the N-th moment; ten seconds after it
    <ms>, <ms later>               milliseconds of Redis's clock: past, or to come
    <epoch s10 1>                  the first epoch of shard 10's outbox
    <run_id>, <replid>             what the running server calls its run, and the history of its data
    <server run>                   PostgreSQL's run; stays as it is, for it is another one that goes on
    <fingerprint a|b|c>            the digest over its parts, which may hold ids
    <fingerprint of the message>   the digest over the payload of the same row

`Names.within` writes them, `Names.filled` puts values back. Uses nothing of the package: it must read old releases.
"""

from __future__ import annotations

import hashlib
import re
import time
from collections.abc import Callable, Iterable
from datetime import UTC, datetime, timedelta
from uuid import UUID, uuid5

_UUID = re.compile(r"[0-9a-fA-F]{8}-[0-9a-fA-F]{4}-[0-9a-fA-F]{4}-[0-9a-fA-F]{4}-[0-9a-fA-F]{12}")
_FINGERPRINT = re.compile(r"(?<![0-9a-f])[0-9a-f]{32}(?![0-9a-f])")
_MICROSECONDS = re.compile(r"(?<![0-9])1[6-9][0-9]{14}(?![0-9])")
_MILLISECONDS = re.compile(r"(?<![0-9])1[6-9][0-9]{11}(?![0-9])")
_PAYLOAD = re.compile(r"convert_to\('((?:[^']|'')*)', 'UTF8'\)")
_SPACE = UUID("01890000-0000-7000-8000-000000000000")


def fingerprint(*parts: object) -> str:
    """32 hex digits over the parts, as release 0.1.0 makes them."""
    return hashlib.blake2b("\x1f".join(map(str, parts)).encode(), digest_size=16).hexdigest()


def mint(name: str, *, at_ms: int | None = None) -> str:
    """A UUIDv7 of now (or `at_ms`) whose other bits are the name's."""
    now = time.time_ns() // 1_000_000 if at_ms is None else at_ms
    value = now << 80 | int.from_bytes(hashlib.sha256(name.encode()).digest()[:10], "big")
    value = value & ~(0xF000 << 64) | (0x7000 << 64)
    value = value & ~(0xC000 << 48) | (0x8000 << 48)
    return str(UUID(int=value))


class Names:
    """What is called how, in one playing or one loading."""

    def __init__(self, ids: dict[str, str] | None = None) -> None:
        self.ids = dict(ids or {})  # name -> id
        self._by_id = {value: name for name, value in self.ids.items()}
        self._words: dict[str, str] = {}
        self._fingerprints: dict[str, str] = {}
        self._epochs: dict[str, str] = {}
        self._epochs_of: dict[int, set[int]] = {}
        self._numbered: dict[str, int] | None = None

    def id(self, name: str, *, at_ms: int | None = None) -> str:
        """The id of this name, the same one at every call."""
        if name not in self.ids:
            self.know_id(name, mint(name, at_ms=at_ms))
        return self.ids[name]

    def know_id(self, name: str, value: str) -> None:
        """Write this id by that name."""
        self.ids[name] = value
        self._by_id[value] = name

    def call(self, text: str, name: str) -> None:
        """From now on write this text (a server's address, say) as `<name>`."""
        self._words[text] = f"<{name}>"

    def number_unknown_ids(self) -> None:
        """From now on write ids that have no name as <uuid 1>, <uuid 2> ... in the order in which they are met."""
        self._numbered = {}

    def know_fingerprint(self, *parts: object) -> None:
        """Write the digest over these parts as the parts."""
        self._fingerprints[fingerprint(*parts)] = "<fingerprint " + "|".join(map(str, parts)) + ">"

    def know_epochs(self, shard: int, epochs: Iterable[int]) -> None:
        """Write the epochs of a shard's outbox by their order."""
        known = self._epochs_of.setdefault(shard, set())
        known.update(epochs)
        for number, epoch in enumerate(sorted(known), 1):
            self._epochs[str(epoch)] = f"<epoch s{shard:02d} {number}>"

    def within(self, text: str, *, clocks: bool = False) -> str:
        """The text with names in it; `clocks`: also for moments of Redis's clock."""
        for word, name in self._words.items():
            text = text.replace(word, name)
        text = _FINGERPRINT.sub(lambda found: self._fingerprints.get(found[0], found[0]), text)
        text = _UUID.sub(lambda found: self._name_of(found[0]), text)
        if not clocks:
            return text
        text = _MICROSECONDS.sub(lambda found: self._epochs.get(found[0], "<us>"), text)
        now_ms = time.time_ns() // 1_000_000
        return _MILLISECONDS.sub(lambda found: "<ms later>" if int(found[0]) > now_ms else "<ms>", text)

    def _name_of(self, uuid: str) -> str:
        if name := self._by_id.get(uuid):
            return f"<id {name}>"
        if name := self._by_id.get(uuid.lower()):
            return f"<id {name} in capitals>"
        if self._numbered is None:
            return "<uuid>"
        return f"<uuid {self._numbered.setdefault(uuid, len(self._numbered) + 1)}>"

    def filled(self, text: str, *, now: datetime, run_id: str = "-") -> str:
        """The text with values in place of the names."""
        base_ms = int(now.timestamp() * 1000)

        def moment(found: re.Match[str]) -> str:
            return str(now + timedelta(milliseconds=int(found[1]), seconds=int(found[2] or 0)))

        def epoch(found: re.Match[str]) -> str:
            return str((base_ms - 3_600_000) * 1000 + int(found[1]) + 1_000_000 * int(found[2]))

        fillers: list[tuple[str, Callable[[re.Match[str]], str]]] = [
            (r"<id ([^<>]*)>", lambda found: self.id(found[1])),
            (r"<uuid (\d+)>", lambda found: str(uuid5(_SPACE, found[1]))),
            (r"<uuid>", lambda _: str(uuid5(_SPACE, ""))),
            (r"<time (\d+)(?: \+(\d+) s)?>", moment),
            (r"<ms>", lambda _: str(base_ms)),
            (r"<ms later>", lambda _: str(base_ms + 600_000)),
            (r"<epoch s(\d+) (\d+)>", epoch),
            (r"<run_id>", lambda _: run_id),
            (r"<fingerprint ([^<>]*\|[^<>]*)>", lambda found: fingerprint(*found[1].split("|"))),
        ]
        for pattern, fill in fillers:
            text = re.sub(pattern, fill, text)
        return "\n".join(map(_with_fingerprint_of_message, text.split("\n")))


def _with_fingerprint_of_message(line: str) -> str:
    place = "<fingerprint of the message>"
    if place not in line:
        return line
    payload = _PAYLOAD.search(line)
    assert payload, line
    return line.replace(place, message_fingerprint(payload[1].replace("''", "'").encode()))


def message_fingerprint(payload: bytes) -> str:
    """Of a Celery message that was kept as it came."""
    return fingerprint("message", payload.hex())


def iso(microseconds: int) -> str:
    """A fixed moment as PostgreSQL reads it."""
    return str(datetime.fromtimestamp(microseconds / 1_000_000, UTC))
