"""The project's pages, and how their code is found and run."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.conftest import Billing
from tests.worker.conftest import processes

__all__ = ["processes"]

ROOT = Path(__file__).resolve().parents[2]
PAGES = sorted(
    [*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md"), *(ROOT / "examples").rglob("*.md")],
    key=lambda page: page.relative_to(ROOT).as_posix(),
)
_FENCE = re.compile(r"^```(?P<info>[^\n`]*)\n(?P<body>.*?)^```\s*$", re.MULTILINE | re.DOTALL)


@dataclass(frozen=True)
class Block:
    """A fenced block: ```<language> <flags>."""

    page: Path
    line: int
    language: str
    flags: tuple[str, ...]
    body: str


def blocks(page: Path) -> list[Block]:
    """Every fenced block of a page."""
    text = page.read_text(encoding="utf-8")
    found = []
    for match in _FENCE.finditer(text):
        language, *flags = match["info"].split() or [""]
        found.append(Block(page, text.count("\n", 0, match.start()) + 2, language, tuple(flags), match["body"]))
    return found


def prose(page: Path) -> str:
    """A page without its fenced blocks."""
    return _FENCE.sub("", page.read_text(encoding="utf-8"))


Run = Callable[..., str]


@pytest.fixture(autouse=True)
def _as_it_is_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    """A reader has list prices; other tests have amounts that no list changes."""
    monkeypatch.delenv("BILLING_CATALOGUE", raising=False)
    monkeypatch.delenv("BILLING_UNKNOWN_MODEL", raising=False)


@pytest.fixture
def run_python(billing: Billing) -> Run:
    """Runs a Python program as a reader would, with the servers in its environment; returns what it printed."""

    def run(*arguments: object) -> str:
        done = subprocess.run(
            [sys.executable, "-W", "error", *map(str, arguments)],
            env={**os.environ, **billing.environment},
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
        assert done.returncode == 0, f"{arguments} ended with {done.returncode}:\n{done.stdout}\n{done.stderr}"
        assert done.stderr == ""
        return done.stdout

    return run
