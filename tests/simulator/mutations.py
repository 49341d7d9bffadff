"""Applies a mutant: the product without one guard, in this process's memory and in its own database."""

from __future__ import annotations

import hashlib
import importlib
import inspect
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any

from billing_tasks.holds.commands import command
from billing_tasks.holds.scripts import Script
from tests.simulator.cuts import Cut
from tests.simulator.guards import GUARDS
from tests.simulator.world import World


@dataclass(frozen=True)
class Mutant:
    """The product without one guard."""

    name: str
    without: str  # what is removed, in words
    cuts: tuple[Cut, ...]
    survives: str = ""  # why it is equivalent, if it is

    @contextmanager
    def applied(self, world: World) -> Iterator[None]:
        """While the block lasts, in this process and in its database."""
        by_where: dict[str, list[Cut]] = {}
        for cut in self.cuts:
            by_where.setdefault(cut.where, []).append(cut)
        with ExitStack() as undo:
            for where, cuts in by_where.items():
                undo.enter_context(_applied(where, cuts, world))
            yield


def newest_sql(name: str) -> str:
    """The SQL file of that name, of the newest revision that has it; repeatable, as mutants need it."""
    versions = Path(str(resources.files("billing_tasks.ledger.migrations"))) / "versions"
    text = max(versions.glob(f"*/{name}.sql")).read_text()
    for kind in ("function", "trigger"):
        text = text.replace(f"create {kind}", f"create or replace {kind}")
    return text[text.index("create or replace") :]  # tables that the file makes are there


@contextmanager
def _applied(where: str, cuts: list[Cut], world: World) -> Iterator[None]:
    kind, _, name = where.partition(":")
    match kind:
        case "lua":
            with _mutated_scripts(None if name == "*" else name, cuts):
                yield
        case "sql":
            text = newest_sql(name)
            world.sql.execute(_cut(text, cuts).encode())
            try:
                yield
            finally:
                world.sql.execute(text.encode())
        case _:
            module = importlib.import_module(name)
            text = inspect.getsource(module)
            _run_in(module, _cut(text, cuts))
            try:
                yield
            finally:
                _run_in(module, text)


def _cut(text: str, cuts: list[Cut]) -> str:
    for cut in cuts:
        if text.count(cut.old) != 1:
            times = text.count(cut.old)
            raise SystemExit(f"{cut.where} has {times} times, not once:\n{cut.old}\nThe mutant needs care.")
        text = text.replace(cut.old, cut.new)
    return text


def _run_in(module: Any, source: str) -> None:
    """Other modules have imported its classes: those stay, with the methods of the new ones."""
    before = {
        name: one for name, one in vars(module).items() if isinstance(one, type) and one.__module__ == module.__name__
    }
    exec(compile(source, module.__file__, "exec"), module.__dict__)
    for name, known in before.items():
        for member, value in vars(vars(module)[name]).items():
            if inspect.isfunction(value):
                setattr(known, member, value)
        setattr(module, name, known)


@contextmanager
def _mutated_scripts(name: str | None, cuts: list[Cut]) -> Iterator[None]:
    """`command.call` looks scripts up by name; it finds the mutated one."""
    before = command.script

    def mutated(wanted: str) -> Script:
        found = before(wanted)
        if wanted != name and (name is not None or cuts[0].old not in found.body):
            return found
        body = _cut(found.body, cuts)
        return Script(wanted, body, hashlib.sha1(body.encode(), usedforsecurity=False).hexdigest(), found.fenced)

    command.script = mutated  # type: ignore[assignment]
    try:
        yield
    finally:
        command.script = before


MUTANTS: dict[str, Mutant] = {name: Mutant(name, without, cuts, survives) for name, without, cuts, survives in GUARDS}
