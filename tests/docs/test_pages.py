"""What the pages say can be followed: code runs, commands and links and tests exist."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest
import typer
from typer.main import get_command

from billing_tasks.cli import app
from tests.conftest import Billing
from tests.docs.conftest import PAGES, ROOT, Block, Run, blocks, prose

#: Pages whose Python a reader types in, one block after the other.
TUTORIALS = [ROOT / "README.md", ROOT / "docs" / "getting-started.md"]
#: Marks of blocks that are lines of another file; tests/acceptance/test_worked_example.py puts them there.
FRAGMENTS = {"field", "field-test"}
every_page = pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(ROOT).as_posix())


@pytest.mark.parametrize("page", TUTORIALS, ids=lambda page: page.name)
def test_the_python_of_a_tutorial_runs(page: Path, billing: Billing, run_python: Run, tmp_path: Path) -> None:
    billing.accounts.create_user(42, quota=1_000_000)
    billing.accounts.create_token(42, 7, quota=500_000, name="laptop")
    code = [block.body for block in blocks(page) if block.language == "python" and not block.flags]
    assert code
    program = tmp_path / "typed_in.py"
    program.write_text("\n".join(code), encoding="utf-8")
    run_python(program)
    billing.settle()
    assert billing.accounts.user(42).request_count > 0


@every_page
def test_every_python_block_compiles(page: Path) -> None:
    for block in blocks(page):
        if block.language == "python" and not FRAGMENTS.intersection(block.flags):
            compile(block.body, f"{page.name}:{block.line}", "exec", flags=0x2000)  # 0x2000: await at top level


def commands_in(page: Path) -> list[tuple[str, list[str]]]:
    """Every `billing-tasks ...` of a page: (where, words)."""
    found = []
    for block in blocks(page):
        if block.language not in ("sh", "console"):
            continue
        for number, line in enumerate(block.body.splitlines(), block.line):
            text = line.removeprefix("$ ")
            if text.startswith("billing-tasks "):
                found.append((f"{page.name}:{number}", shlex.split(text, comments=True)[1:]))
    inline = re.finditer(r"`billing-tasks ([^`]+)`", prose(page))
    return found + [(f"{page.name}: {match[0]}", shlex.split(match[1])) for match in inline]


def problem_with(words: list[str]) -> str | None:
    """What the command line would not understand; None if it understands all."""
    command = get_command(app)
    context = typer.Context(command)
    while hasattr(command, "get_command"):
        if not words or words[0].startswith("-"):
            break
        word, words = words[0], words[1:]
        below = command.get_command(context, word)
        if below is None:
            return f"there is no command {word}"
        command = below
    options = {name for parameter in command.params for name in (*parameter.opts, *parameter.secondary_opts)}
    unknown = [word for word in words if word.startswith("-") and word.split("=")[0] not in options | {"--help"}]
    return f"{command.name} has no {', '.join(unknown)}" if unknown else None


@every_page
def test_every_command_and_option_exists(page: Path) -> None:
    problems = [(where, problem) for where, words in commands_in(page) if (problem := problem_with(words))]
    assert problems == []


def test_a_command_or_option_that_does_not_exist_would_be_noticed() -> None:
    assert problem_with(["top-up", "42", "5", "--id", "x"]) is None
    assert problem_with(["top-down", "42"]) == "there is no command top-down"
    assert problem_with(["dead-letters", "retry", "--nothing"]) == "retry has no --nothing"


def test_the_command_line_page_has_every_command() -> None:
    page = (ROOT / "docs" / "reference" / "cli.md").read_text(encoding="utf-8")
    command = get_command(app)
    context = typer.Context(command)
    names = []
    for name in command.list_commands(context):
        below = command.get_command(context, name)
        inner = below.list_commands(context) if hasattr(below, "list_commands") else None
        names += [f"{name} {more}" for more in inner] if inner else [name]
    assert [name for name in names if f"`billing-tasks {name}" not in page] == []


def anchors(page: Path) -> set[str]:
    """The fragments that GitHub makes of a page's headings."""
    headings = re.findall(r"^#+ (.+)$", prose(page), re.MULTILINE)
    plain = [re.sub(r"[`*]|\[([^]]*)]\([^)]*\)", r"\1", heading).strip().lower() for heading in headings]
    return {re.sub(r"[^\w\- ]", "", heading).replace(" ", "-") for heading in plain}


@every_page
def test_every_link_leads_somewhere(page: Path) -> None:
    broken = []
    for target in re.findall(r"\]\(([^)\s]+)\)", prose(page)):
        if re.match(r"[a-z]+:", target):
            continue
        path, _, fragment = target.partition("#")
        there = (page.parent / path).resolve() if path else page
        if not there.exists() or (fragment and fragment not in anchors(there)):
            broken.append(target)
    assert broken == []


@every_page
def test_every_test_and_file_that_is_named_exists(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    missing = []
    for path, name in re.findall(r"`(?:tests/)?((?:\w+/)*test_\w+\.py)(?:::(\w+))?", text):
        file = ROOT / "tests" / path
        if not file.exists() or (name and f"def {name}(" not in file.read_text(encoding="utf-8")):
            missing.append(f"{path}::{name}")
    for name in re.findall(r"`((?:\w+/)+(?!test_)[\w.]+\.(?:md|py|sql|lua|conf|toml))`", text):
        beside = (ROOT, ROOT / "billing_tasks", ROOT / "tests", page.parent)
        if page.name != "CHANGELOG.md" and not any((folder / name).exists() for folder in beside):
            missing.append(name)
    assert missing == []


#: Who is meant has a name: the gateway, the worker, the operator, another program.
UNNAMED = re.compile(r"\b(?:(?:no|some|any|every)(?:body| ?one)|whoever|how-manieth)\b", re.IGNORECASE)


@every_page
def test_a_page_names_who_does_what(page: Path) -> None:
    # What is quoted, and where a link leads, keeps its name.
    quoted = re.compile(r"`[^`]*`|]\([^)]*\)")
    assert [line for line in prose(page).splitlines() if UNNAMED.search(quoted.sub("", line))] == []


def test_make_targets_that_are_named_exist() -> None:
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE))
    named = {
        word
        for page in PAGES
        for text in (page.read_text(encoding="utf-8"),)
        for word in re.findall(r"(?:^|`|\$ )make ([a-z-]+)", text, re.MULTILINE)
    }
    assert named - targets == set()


def test_pages_are_not_wider_than_a_screen_needs() -> None:
    """Prose only: tables and outputs are as wide as they are."""

    def too_wide(block: Block) -> bool:
        return block.language == "python" and any(len(line) > 120 for line in block.body.splitlines())

    assert [f"{b.page.name}:{b.line}" for page in PAGES for b in blocks(page) if too_wide(b)] == []
