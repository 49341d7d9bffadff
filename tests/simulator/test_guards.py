"""Each guard that `make mutants` removes stands in the product exactly once, as guards.py has it."""

from __future__ import annotations

import importlib
import inspect

import pytest

from billing_tasks.holds.scripts import script
from tests.simulator.guards import GUARDS, Cut
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


@pytest.mark.parametrize("guard", GUARDS, ids=lambda guard: guard[0])
def test_a_guard_stands_where_the_mutants_cut_it_out(guard: tuple[str, str, tuple[Cut, ...], str]) -> None:
    for cut in guard[2]:
        assert _text(cut).count(cut.old) == 1, cut.old
