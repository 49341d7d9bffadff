"""The Lua files as Redis gets them: includes filled in, named by their SHA-1."""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass
from functools import cache
from importlib import resources

_INCLUDE = re.compile(r"^--@include (\w+)$", re.MULTILINE)


@dataclass(frozen=True, slots=True)
class Script:
    """One atomic operation."""

    name: str
    body: str
    sha: str
    fenced: bool  # takes the run_id that its connection leads to as the last word (connection.py)


@cache
def script(name: str) -> Script:
    """The script of `lua/<name>.lua`."""
    folder = resources.files(__package__) / "lua"

    def included(match: re.Match[str]) -> str:
        return (folder / "include" / f"{match[1]}.lua").read_text().rstrip("\n")

    text = (folder / f"{name}.lua").read_text()
    body = _INCLUDE.sub(included, text)
    # Redis names a script by this digest; it protects nothing.
    return Script(
        name, body, hashlib.sha1(body.encode(), usedforsecurity=False).hexdigest(), "fence" in _INCLUDE.findall(text)
    )
