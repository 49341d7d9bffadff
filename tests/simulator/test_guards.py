"""Each guard that `make mutants` removes stands in the product exactly once, as guards.py has it."""

from __future__ import annotations

import importlib
import inspect
import re
from importlib import resources
from pathlib import Path

import pytest

from billing_tasks.holds.scripts import script
from tests.simulator.cuts import Cut
from tests.simulator.guards import GUARDS
from tests.simulator.mutations import newest_sql


def _text(cut: Cut) -> str:
    kind, _, name = cut.where.partition(":")
    match kind:
        case "lua":
            return script("reserve" if name == "*" else name).body
        case "sql":
            return newest_sql(name)
        case _:
            return inspect.getsource(importlib.import_module(name))


_DEFINED = re.compile(r"^create (?:or replace )?function (billing\\.\\w+)", re.MULTILINE)


def test_no_later_revision_defines_anew_what_a_mutant_cuts() -> None:
    """The mutant would bring an older function back, and leave it."""
    versions = Path(str(resources.files("billing_tasks.ledger.migrations"))) / "versions"
    newest = {
        function: file for file in sorted(versions.glob("*/*.sql")) for function in _DEFINED.findall(file.read_text())
    }
    for where in {cut.where for guard in GUARDS for cut in guard[2] if cut.where.startswith("sql:")}:
        file = max(versions.glob(f"*/{where.removeprefix('sql:')}.sql"))
        assert {function: newest[function].parent.name for function in _DEFINED.findall(file.read_text())} == (
            dict.fromkeys(_DEFINED.findall(file.read_text()), file.parent.name)
        ), where


@pytest.mark.parametrize("guard", GUARDS, ids=lambda guard: guard[0])
def test_a_guard_stands_where_the_mutants_cut_it_out(guard: tuple[str, str, tuple[Cut, ...], str]) -> None:
    for cut in guard[2]:
        assert _text(cut).count(cut.old) == 1, cut.old
