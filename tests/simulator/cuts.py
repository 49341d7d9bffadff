"""How a guard is written down."""

from __future__ import annotations

from typing import NamedTuple


class Cut(NamedTuple):
    """`old` must be there exactly once. where: lua:<script> (lua:* each that has it), sql:<file>, py:<module>"""

    where: str
    old: str
    new: str = ""


Guard = tuple[str, str, tuple[Cut, ...], str]


def guard(name: str, without: str, *cuts: Cut, survives: str = "") -> Guard:
    return name, without, cuts, survives
