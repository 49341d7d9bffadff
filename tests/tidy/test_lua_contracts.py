"""Each Lua file keeps its contract: header, body and the Python enum say the same."""

from __future__ import annotations

import re
from enum import StrEnum
from importlib import resources

import pytest

from billing_tasks.holds import outcomes
from billing_tasks.holds.scripts import script

LUA = resources.files("billing_tasks.holds") / "lua"
NAMES = sorted(file.name.removesuffix(".lua") for file in LUA.iterdir() if file.name.endswith(".lua"))
ENUMS = {
    re.sub(r"(?<!^)(?=[A-Z])", "_", name).lower(): enum
    for name, enum in vars(outcomes).items()
    if isinstance(enum, type) and issubclass(enum, StrEnum) and enum is not StrEnum
}
#: These answer with numbers.
WITHOUT_WORDS = {"settled", "audit", "recount", "drop", "mend"}
#: Scripts that only ever free memory or must run when it is full.
WHEN_MEMORY_IS_FULL = {
    *("consume", "release", "expire", "renew", "refund", "settled", "lease", "leave", "hand_over", "ring"),
    "new_ledger",
    *("recount", "forget", "reschedule", "drop", "mend"),
}


def parts(name: str) -> tuple[str, str]:
    text = (LUA / f"{name}.lua").read_text()
    header, body = text.split("]]\n", 1)
    return header, body


@pytest.mark.parametrize("name", NAMES)
def test_a_script_opens_with_its_name_its_keys_and_its_answers(name: str) -> None:
    header, body = parts(name)
    assert header.startswith("#!lua")
    assert f"--[[\n{name}: " in header
    for number in range(1, 1 + len(set(re.findall(r"\bKEYS\[(\d+)\]", body)))):
        assert f"KEYS[{number}]" in header
    arguments = {int(number) for number in re.findall(r"\bARGV\[(\d+)\]", body)}
    assert all(f"ARGV[{number}]" in header for number in arguments)
    assert "Returns" in header


@pytest.mark.parametrize("name", [name for name in NAMES if name not in WITHOUT_WORDS])
def test_a_scripts_words_are_those_of_its_header_and_of_its_enum(name: str) -> None:
    header, body = parts(name)
    promised = set(re.findall(r"^  ([A-Z][A-Z_]+)\b", header.split("Returns")[1], re.MULTILINE))
    if "--@include payer" in body:
        body += (LUA / "include" / "payer.lua").read_text()
    said = set(re.findall(r"'([A-Z][A-Z_]+)'", body)) - set(re.findall(r"redis\.call\('([A-Z]+)'", body))
    said -= {"NX", "PX", "GT", "EX", "ZADD", "ZREM"}  # words of commands
    assert promised == {str(word) for word in ENUMS[name]}
    assert said == promised


@pytest.mark.parametrize("name", NAMES)
def test_what_frees_memory_runs_when_memory_is_full_and_nothing_else_does(name: str) -> None:
    header, _ = parts(name)
    assert ("flags=allow-oom" in header.splitlines()[0]) == (name in WHEN_MEMORY_IS_FULL)


@pytest.mark.parametrize("name", NAMES)
def test_includes_are_filled_in(name: str) -> None:
    assert "@include" not in script(name).body
