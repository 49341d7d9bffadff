"""The shape of the house: file lengths, docstrings, words that are not used, money without floats."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PACKAGE = ROOT / "billing_tasks"
#: Recorded and frozen: they say what a release was.
FROZEN = re.compile(r"tests/releases/\d|ledger/migrations/versions/0001_baseline")


def files(*folders: str, suffixes: tuple[str, ...] = (".py",)) -> list[Path]:
    found = [path for folder in folders for path in (ROOT / folder).rglob("*") if path.suffix in suffixes]
    return sorted(path for path in found if not FROZEN.search(path.as_posix()))


SOURCES = files("billing_tasks", "chaos", "benchmarks")
TEXTS = files("billing_tasks", "chaos", "benchmarks", "tests", suffixes=(".py", ".lua", ".sql"))
#: Modules of the package that lie in no room, and py.typed.
MOST_IN_THE_ROOT = 10


def name_of(path: Path) -> str:
    return str(path.relative_to(ROOT))


@pytest.mark.parametrize("path", TEXTS, ids=name_of)
def test_no_file_is_longer_than_400_lines(path: Path) -> None:
    assert len(path.read_text().splitlines()) <= 400


def test_what_lies_in_no_room_fits_a_glance() -> None:
    found = [path.name for path in PACKAGE.iterdir() if path.is_file()]
    assert len(found) <= MOST_IN_THE_ROOT, f"a new file belongs in a room, not beside {', '.join(sorted(found))}"


@pytest.mark.parametrize("path", SOURCES, ids=name_of)
def test_every_module_says_what_it_is(path: Path) -> None:
    assert ast.get_docstring(ast.parse(path.read_text())), "open the file with what lives here"


@pytest.mark.parametrize("path", SOURCES, ids=name_of)
def test_functions_fit_a_screen(path: Path) -> None:
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and node.end_lineno:
            length = node.end_lineno - node.body[0].lineno + 1  # a long signature is a table, not a story
            assert length <= 50, f"{node.name} has {length} lines; a screen has 50"


@pytest.mark.parametrize("path", SOURCES, ids=name_of)
def test_words_that_say_nothing_are_not_used_as_names(path: Path) -> None:
    banned = re.compile(r"(^|_)(utils?|helpers?|manager)($|_)", re.IGNORECASE)
    tree = ast.parse(path.read_text())
    names = [n.name for n in ast.walk(tree) if isinstance(n, ast.FunctionDef | ast.ClassDef)] + [path.stem]
    assert not [name for name in names if banned.search(name)]


#: Where quota and ratios are handled: floats may measure time elsewhere, here they may not appear.
MONEY = [
    *sorted((PACKAGE / "pricing").glob("*.py")),
    PACKAGE / "model" / "consume_log.py",
    PACKAGE / "model" / "events.py",
]


@pytest.mark.parametrize("path", MONEY, ids=name_of)
def test_no_float_comes_near_money(path: Path) -> None:
    tree = ast.parse(path.read_text())
    calls = [
        n
        for n in ast.walk(tree)
        if isinstance(n, ast.Call) and getattr(n.func, "id", "") in ("float", "Decimal", "round")
    ]
    assert not calls
    if path.name != "book.py":  # measures how long ago it looked at a file
        constants = [n.value for n in ast.walk(tree) if isinstance(n, ast.Constant) and isinstance(n.value, float)]
        assert not constants


def test_nothing_is_skipped_without_a_reason_and_nothing_is_a_stub() -> None:
    for path in SOURCES:
        assert "NotImplementedError" not in path.read_text(), path
