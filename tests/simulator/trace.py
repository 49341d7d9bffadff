"""What happened, step by step, put into words only when they are printed."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from billing_tasks.flows.effects import Effect, Enqueue, InLedger, IntoSpool, Ring
from billing_tasks.holds.commands import Command, Pipeline
from billing_tasks.holds.replies import Closed, OutboxEntry, Reserved
from billing_tasks.ledger.rows import DeadLetter
from billing_tasks.model.account import TokenRow, UserRow
from billing_tasks.model.events import Event
from billing_tasks.model.posting import PostedBatch


@dataclass
class Trace:
    """Remembers tuples; ids of requests are replaced by their short names when it is read."""

    lines: list[tuple[Any, ...]] = field(default_factory=list)
    names: dict[str, str] = field(default_factory=dict)
    live: bool = False

    def note(self, words: str, *values: Any) -> None:
        self._add(words, *values)

    def effect(self, actor: str, effect: Effect, note: str, reply: Any = None) -> None:
        self._add("%s %s %s -> %s", actor, effect, note, _Reply(reply))

    def name(self, request_id: str, name: str) -> None:
        self.names[request_id] = name

    def _add(self, *line: Any) -> None:
        self.lines.append(line)
        if self.live:
            print(f"{len(self.lines):4} {self._text(line)}")

    def last(self, count: int) -> str:
        """The last lines, numbered."""
        first = max(0, len(self.lines) - count)
        return "\n".join(f"{at + 1:4} {self._text(line)}" for at, line in enumerate(self.lines[first:], first))

    def _text(self, line: tuple[Any, ...]) -> str:
        words, *values = line
        return self.named(str(words % tuple(_said(value) for value in values)))[:600]

    def named(self, text: str) -> str:
        """The text with short names instead of request ids."""
        for request_id, name in self.names.items():
            text = text.replace(request_id, name)
        return text


@dataclass(frozen=True)
class _Reply:
    """Marks a value as an answer."""

    value: Any


def _said(value: Any) -> str:
    match value:
        case _Reply():
            return _reply(value.value)
        case Command():
            if value.script is None:
                return " ".join(map(str, value.words))
            arguments = value.words[3 + int(value.words[2]) :]
            return f"{value.script.name}({', '.join(_short(argument) for argument in arguments)})"
        case Pipeline():
            return " + ".join(_said(command) for command in value.commands)
        case InLedger():
            return f"ledger: {_call(value)}"
        case Ring():
            return f"ring shard {value.shard}"
        case Enqueue():
            return f"enqueue {value.task} {value.kwargs}"
        case IntoSpool():
            return f"spool {value.event.kind} of {value.event.request_id}"
    return str(value)


def _short(argument: Any) -> str:
    text = argument.decode(errors="replace") if isinstance(argument, bytes) else str(argument)
    return "{...}" if text.startswith("{") else text


def _call(effect: InLedger[Any]) -> str:
    said = [text for value in [*effect.args, *effect.kwargs.values()] if (text := _value(value))]
    return f"{effect.name}({', '.join(said)})"


def _value(value: Any) -> str:
    match value:
        case Event():
            amount = f"{value.quota}" + (f" of {value.held_quota} held" if value.held_quota else "")
            return f"{value.kind} of {value.request_id}: {value.refund_id} {amount}"
        case list():
            return "[" + ", ".join(map(_value, value)) + "]"
        case DeadLetter():
            return f"dead letter {value.id}: {value.kind} of {value.request_id}, {value.reason}, {value.state}"
        case str() | int() | dict() | tuple() | None:
            return str(value)
    return ""


def _reply(value: Any) -> str:
    match value:
        case None:
            return ""
        case UserRow():
            return f"user {value.id}: {value.quota}, {value.status}, version {value.version}"
        case TokenRow():
            return f"token {value.id}: {value.remain_quota}, {value.status}, version {value.version}"
        case PostedBatch():
            return f"{[str(outcome) for outcome in value.outcomes]} {_reply([*value.users, *value.tokens])}"
        case Reserved():
            return f"{value.outcome} {value.available}"
        case Closed():
            return f"{value.outcome} {value.held}{', ring' if value.ring else ''}"
        case OutboxEntry():
            return f"{value.entry_id[-9:]} {value.kind} of {value.request_id}: weight {value.weight}, held {value.held}"
        case list() | tuple():
            return "[" + ", ".join(map(_reply, value)) + "]"
        case DeadLetter():
            return _value(value)
    return str(value)
