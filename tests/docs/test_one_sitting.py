"""README, Getting started and the how-tos, read in order, in one sitting, on one machine, and typed as they stand.

What stays to the reader is filled in: the id of a request is the last one's that was charged. Left out are blocks
marked `norun`, which need what only the reader has, and long runs that have targets of their own.
"""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from tests.docs.conftest import ROOT, Block, blocks

BIN = Path(sys.executable).parent
_UUID = re.compile(r"\b[0-9a-f]{8}-[0-9a-f]{4}-7[0-9a-f]{3}-[0-9a-f]{4}-[0-9a-f]{12}\b")
#: Commands that are run elsewhere: the servers are up already, and the others take minutes.
ELSEWHERE = (
    "make",
    "python -m chaos",
    "python -m tests",
    "celery",
    ". .venv",
    "docker",
    "FLOWER_BASIC_AUTH",
    "grep",
    "less",
)
#: Pages about another machine: a production site, another release.
NOT_HERE = {"production.md", "upgrade.md", "simulate.md", "chaos.md"}
#: What a command may say of a reader who had no failure to look at: it must still be understood.
MAY_REFUSE = re.compile(r"billing-tasks dead-letters (retry|discard|reopen)")
#: A program that runs what it is given, block by block, as a reader's console would.
CONSOLE = """
import json, sys, traceback
names = {"__name__": "__main__"}
for line in sys.stdin:
    try:
        exec(compile(json.loads(line), "typed", "exec"), names)
        print("\\nDONE", flush=True)
    except BaseException:
        traceback.print_exc(file=sys.stdout)
        print("\\nFAILED", flush=True)
"""


def in_order() -> list[Path]:
    """The README, Getting started, then the how-tos as docs/README.md lists them."""
    index = (ROOT / "docs" / "README.md").read_text(encoding="utf-8")
    how_tos = re.findall(r"\((how-to/[\w-]+\.md)\)", index)
    return [ROOT / "README.md", ROOT / "docs" / "getting-started.md", *(ROOT / "docs" / page for page in how_tos)]


@dataclass
class Sitting:
    """One reader's terminals."""

    folder: Path
    environment: dict[str, str]
    flower: dict[str, str]  # its url, and where its password is
    typed: list[str] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)
    _console: subprocess.Popen[str] | None = None

    def read(self, page: Path) -> None:
        """Type all that a page has, top to bottom."""
        if page.name in NOT_HERE:
            return
        for block in blocks(page):
            if "norun" in block.flags:
                continue
            if block.language == "python":
                self._type_python(block)
            elif block.language in ("sh", "console"):
                self._type_commands(block)
            elif block.language == "toml":
                (self.folder / "my-ratios.toml").write_text(block.body, encoding="utf-8")
        self.close()

    def _type_python(self, block: Block) -> None:
        if block.page.name == "README.md":  # "Save this as first.py"
            (self.folder / "first.py").write_text(block.body, encoding="utf-8")
            return
        if self._console is None:
            pipe = subprocess.PIPE
            self._console = subprocess.Popen(
                [sys.executable, "-c", CONSOLE],
                stdin=pipe,
                stdout=pipe,
                text=True,
                cwd=self.folder,
                env=self.environment,
            )
        assert self._console.stdin is not None
        assert self._console.stdout is not None
        self._console.stdin.write(json.dumps(block.body) + "\n")
        self._console.stdin.flush()
        said = ""
        for line in self._console.stdout:
            said += line
            if line in ("DONE\n", "FAILED\n"):
                break
        if not said.endswith("DONE\n"):
            self.problems.append(f"{block.page.name}:{block.line}: {said}")

    def _type_commands(self, block: Block) -> None:
        text = block.body.replace("\\\n", " ")
        lines = text.splitlines()
        if block.language == "console":
            lines = [line.removeprefix("$ ") for line in lines if line.startswith("$ ")]
        for line in lines:
            there = not line.startswith("curl") or shutil.which("curl")
            if line and there and not line.startswith(("#", *ELSEWHERE)):
                self._type(line, f"{block.page.name}:{block.line}")

    def _type(self, line: str, where: str) -> None:
        if name := re.match(r"export (\w+)=(\S+)", line):
            if name[1] not in self.environment:
                self.environment[name[1]] = name[2].replace("$PWD", str(self.folder))
            return
        self.typed.append(line)
        if _UUID.search(line):
            line = _UUID.sub(self._last_request(), line)
        password = Path(self.flower["password_file"]).read_text(encoding="utf-8").strip()
        line = line.replace("billing:PASSWORD", f"billing:{password}").replace(
            "http://127.0.0.1:5555", self.flower["url"]
        )
        done = subprocess.run(
            ["sh", "-c", line],
            cwd=self.folder,
            env=self.environment,
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )
        said = done.stdout + done.stderr
        fine = done.returncode == 0 or (done.returncode == 1 and MAY_REFUSE.match(line))
        if not fine or "Traceback" in said:
            self.problems.append(f"{where}: {line}\n{said}")

    def _last_request(self) -> str:
        asked = [str(BIN / "billing-tasks"), *shlex.split("log --user 42 --kind consume --limit 1 --json")]
        rows = json.loads(subprocess.run(asked, env=self.environment, capture_output=True, check=True).stdout)
        return str(rows[0]["request_id"])

    def close(self) -> None:
        """The end of a page: its console is closed."""
        if self._console is not None:
            self._console.communicate(timeout=60)
            self._console = None


@pytest.fixture
def sitting(tmp_path: Path) -> Iterator[Sitting]:
    """The folder of a clone, and `billing-tasks up` in its first terminal."""
    for name in ("config", "examples"):
        (tmp_path / name).symlink_to(ROOT / name)
    kept = {name: value for name, value in os.environ.items() if not name.startswith("BILLING_REDIS")}
    environment = {**kept, "PATH": f"{BIN}{os.pathsep}{os.environ['PATH']}", "COLUMNS": "80"}
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    up = subprocess.Popen(
        [str(BIN / "billing-tasks"), "up", "--flower-port", str(port), "--json"],
        cwd=tmp_path,
        env=environment,
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        assert up.stdout is not None
        said = ""
        for line in up.stdout:
            said += line if said or line.startswith("{") else ""
            if line == "}\n":
                break
        described = json.loads(said)
        (flower,) = [part for part in described["parts"] if part["name"] == "flower"]
        yield Sitting(tmp_path, {**environment, **described["environment"]}, flower["notes"])
    finally:
        up.send_signal(signal.SIGINT)
        up.communicate(timeout=60)


def test_all_pages_can_be_followed_in_order_in_one_sitting(sitting: Sitting) -> None:
    for page in in_order():
        sitting.read(page)
    assert sitting.problems == []
    assert {line.split()[1] for line in sitting.typed if line.startswith("billing-tasks ")} >= {
        *("users", "tokens", "price", "balance", "log", "status", "verify", "dead-letters", "demo", "replay"),
        *("refund", "top-up"),
    }
    done = subprocess.run(
        ["billing-tasks", "verify"], env=sitting.environment, capture_output=True, text=True, check=False
    )
    assert "All guarantees hold" in done.stdout, done.stdout + done.stderr
