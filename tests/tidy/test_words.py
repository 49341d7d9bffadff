"""One name for each thing: identifiers that were given up, and the names that replace them."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
FOLDERS = [ROOT / name for name in ("billing_tasks", "chaos", "benchmarks", "tests", "examples")]
#: Recorded and frozen: they say what a release was.
FROZEN = re.compile(r"tests/releases/\d|ledger/migrations/versions/0001_baseline")

#: identifier or name of a module that is not used any more -> the name to use
HOUSE = {
    # accounts in Redis
    "copies": "account_cache",
    "load_copies": "load_accounts",
    "push_copies": "push_accounts",
    "user_facts": "user_attributes",
    "token_facts": "token_attributes",
    # connections to Redis
    "places": "pool",
    "Places": "ConnectionPool",
    "NoPlace": "PoolTimeout",
    "wires": "connection, or redis_content for what a recording has of Redis",
    "Wire": "Connection",
    "AsyncWire": "AsyncConnection",
    "Life": "EpochState",
    "Lives": "ProcessReport",
    "Off": "Discrepancy",
    # dead letters
    "letters": "dead_letters",
    "letter_words": "dead_letter_text",
    "Letter": "NewDeadLetter, or DeadLetter for its row",
    "Letters": "DeadLetters",
    "LetterState": "DeadLetterState",
    "LetterFilter": "DeadLetterFilter",
    "LetterEvent": "HistoryEntry",
    "LetterHistory": "HistoryRecord",
    "Happened": "HistoryKind",
    "rehearse": "preview",
    "rehearse_all": "preview_all",
    "Rehearsed": "Preview",
    "Rehearsal": "Preview",
    "Rehearsals": "Previews",
    "choosing": "select",
    "Chosen": "Selected",
    "but_not": "excluded_reasons",
    "decide": "resolve",
    # requests and posting
    "give_back": "refund, or release for a hold",
    "given_back": "refunded, or released for a hold",
    "v_given_back": "v_unused",
    "GiveBack": "RefundRequest",
    "Posted": "PostedBatch",
    "Keep": "UNSET",
    # doors
    "Gateway": "BookkeeperBase",
    "Doorbell": "Publisher",
    "ask_all": "together",
    # replay
    "Cast": "PlannedAccounts",
    "make_cast": "plan_accounts",
    "shots": "requests",
    "make_shots": "make_requests",
    "run_shots": "run_requests",
    "Shot": "PlannedRequest",
    # chaos and benchmarks
    "strike": "inject",
    "Striker": "Injector",
    "mortals": "processes",
    "Mortal": "ManagedProcess",
    "Pulse": "Liveness",
    "Cashier": "TopUps",
    "Standing": "Pending",
    "People": "Population",
    "people.json": "population.json",
    "Ground": "Environment",
    "Grounds": "Environment",
    # simulator
    "mood": "profile",
    "Mood": "Profile",
    "playing": "runner",
    "reckoning": "final_check",
    "Played": "Outcome",
}


def name_of(path: Path) -> str:
    return str(path.relative_to(ROOT))


def files(*suffixes: str) -> list[Path]:
    found = [path for folder in FOLDERS for path in folder.rglob("*") if path.suffix in suffixes]
    return sorted(path for path in found if not FROZEN.search(path.as_posix()) and path != Path(__file__).resolve())


def names_in_python(text: str) -> Iterator[str]:
    """Every identifier, and every text that is the name of a file."""
    for node in ast.walk(ast.parse(text)):
        match node:
            case ast.FunctionDef(name=name) | ast.AsyncFunctionDef(name=name) | ast.ClassDef(name=name):
                yield name
            case ast.Name(id=name) | ast.Attribute(attr=name) | ast.arg(arg=name):
                yield name
            case ast.keyword(arg=str(name)) | ast.MatchAs(name=str(name)):
                yield name
            case ast.ImportFrom(module=str(module)):
                yield from module.split(".")
            case ast.alias(name=name, asname=asname):
                yield from [*name.split("."), asname or ""]
            case ast.Constant(value=str(word)) if "." in word:
                yield word.rpartition("/")[2]


def names_in_scripts(text: str) -> Iterator[str]:
    """Every word of Lua or SQL outside of comments and strings."""
    code = re.sub(r"--\[\[.*?\]\]|--[^\n]*|'[^'\n]*'", " ", text, flags=re.DOTALL)
    yield from re.findall(r"[A-Za-z_]\w*", code)


def gone(names: Iterator[str]) -> dict[str, str]:
    """Which of the names were given up, and what they are called now."""
    return {name: HOUSE[name] for name in names if name in HOUSE}


@pytest.mark.parametrize("path", files(".py"), ids=name_of)
def test_python_has_no_name_that_was_given_up(path: Path) -> None:
    assert gone(names_in_python(path.read_text())) == {}, "the name to use stands beside it"


@pytest.mark.parametrize("path", files(".lua", ".sql"), ids=name_of)
def test_lua_and_sql_have_no_name_that_was_given_up(path: Path) -> None:
    assert gone(names_in_scripts(path.read_text())) == {}, "the name to use stands beside it"


def test_no_file_or_folder_has_a_name_that_was_given_up() -> None:
    paths = files(".py", ".lua", ".sql", ".json", ".toml", ".conf")
    parts = (part for path in paths for part in [*path.relative_to(ROOT).parent.parts, path.stem, path.name])
    assert gone(parts) == {}, "the name to use stands beside it"


def test_a_name_that_was_given_up_is_found_wherever_it_stands() -> None:
    text = (
        "from a.wires import b as shots\nclass Mood: ...\ndef f(mortals): strike(decide=x.Pulse)\nopen('a/people.json')"
    )
    assert sorted(gone(names_in_python(text))) == sorted(
        ["wires", "shots", "Mood", "mortals", "strike", "decide", "Pulse", "people.json"]
    )
    assert gone(names_in_scripts("local give_back = 'Keep' -- mood\n--[[ Off\n]]")) == {"give_back": HOUSE["give_back"]}
