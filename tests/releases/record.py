"""Records this release into a folder: plays every scenario on servers of its own, then writes down what is there."""

from __future__ import annotations

import difflib
import hashlib
import json
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import psycopg
import redis

from billing_tasks import Settings
from billing_tasks.lab.servers import Servers, embedded_servers
from tests.releases import catalog, inside, redis_content
from tests.releases.dump import dump
from tests.releases.scenarios import SCENARIOS
from tests.releases.templates import Names

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
SUMS = "SHA256SUMS"
#: What today's version is meant to answer otherwise than the recorded releases, a file for each scenario.
MEANT = HERE / "meant"


def record(release: str, folder: Path) -> None:
    """Write the folder anew. A run that is stopped leaves it as it was, or whole."""
    with tempfile.TemporaryDirectory(prefix="billing-release-") as place:
        draft = Path(place, release)
        for name, text in inside.lua_scripts().items():
            _write(draft / "lua" / f"{name}.lua", text)
        for name, text in inside.revisions().items():
            _write(draft / "sql" / name, text)
        with embedded_servers(fast=True) as servers:
            statements = inside.migrate(servers.database_url)
            _write(draft / "sql" / "schema.sql", ";\n\n".join(text.strip().rstrip(";") for text in statements) + ";\n")
            with psycopg.connect(servers.database_url) as connection:
                _write(draft / "catalog.json", catalog.as_text(catalog.catalog(connection)))
            play(servers, draft / "traces", "--ids", str(Path(place, "ids.json")))
            ids: dict[str, str] = json.loads(Path(place, "ids.json").read_text())
            _write_state(draft, release, ids, servers)
            play(servers, draft, "--carry-on", str(draft))
        _write(draft / SUMS, sums(draft))
        if folder.exists():
            shutil.rmtree(folder)
        shutil.copytree(draft, folder)


def play(servers: Servers, into: Path, *more: str) -> None:
    """Run the player in a process of its own: traces into a folder. What the last scenario leaves behind stays."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith("BILLING_")}
    done = subprocess.run(
        [sys.executable, "-m", "tests.releases.player", "--into", str(into), *more],
        env={**environment, **servers.environment},
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        raise RuntimeError(f"the player failed\n{done.stdout}\n{done.stderr}")


def _write_state(draft: Path, release: str, ids: dict[str, str], servers: Servers) -> None:
    """What the last scenario left in both servers."""
    settings = Settings(redis_url=servers.redis_url, database_url=servers.database_url)
    _decide_letters(servers)
    names = Names(ids)
    with redis.Redis.from_url(settings.cache_url) as client, psycopg.connect(settings.database_url) as connection:
        redis_content.name_epochs(client, names)
        _write(draft / "data.sql", dump(connection, names, release=release))
        _write(draft / "outbox.jsonl", redis_content.as_text(redis_content.outbox_lines(client, names)))
        _write(draft / "keys.json", redis_content.as_array(redis_content.key_lines(client, names)))
    with redis.Redis.from_url(settings.cache_url.removesuffix("1") + "0") as broker:
        _write(
            draft / "messages.jsonl", redis_content.as_text(redis_content.message_lines(broker, settings.queue, names))
        )


def _decide_letters(servers: Servers) -> None:
    """A person's decisions about dead letters, for their history."""
    for words in (
        ("discard", "1", "--actor", "dora", "--comment", "the first one was right"),
        ("discard", "2", "--actor", "dora", "--comment", "no such person"),
        ("reopen", "2", "--actor", "erin", "--comment", "there is"),
    ):
        command = [str(Path(sys.executable).with_name("billing-tasks")), "dead-letters", *words, "--json"]
        subprocess.run(command, env={**os.environ, **servers.environment}, capture_output=True, check=True)


#: The trace of what a release left behind.
CARRIED_ON = "carried_on"


def changes(was: str, now: str) -> str:
    """The lines that differ between two traces, without where they stand."""
    lines = difflib.unified_diff(was.splitlines(), now.splitlines(), n=0, lineterm="")
    return "".join(f"{line}\n" for line in list(lines)[2:] if not line.startswith("@@"))


def note_meant() -> list[str]:
    """Write down how today's traces differ from those of the last release; returns which scenarios do."""
    last = releases()[-1]
    with tempfile.TemporaryDirectory(prefix="billing-release-") as place, embedded_servers(fast=True) as servers:
        inside.migrate(servers.database_url)
        play(servers, Path(place))
        shutil.rmtree(MEANT, ignore_errors=True)
        for trace in sorted(last.glob("traces/*.jsonl")):
            difference = changes(trace.read_text(), Path(place, trace.name).read_text())
            if difference:
                _write(MEANT / f"{trace.stem}.diff", difference)
        for release in releases():
            play(servers, Path(place), "--carry-on", str(release))
            now = Path(place, f"{CARRIED_ON}.jsonl").read_text()
            if difference := changes((release / f"{CARRIED_ON}.jsonl").read_text(), now):
                _write(MEANT / f"{CARRIED_ON}_{release.name}.diff", difference)
    return sorted(path.stem for path in MEANT.glob("*.diff"))


def sums(folder: Path) -> str:
    """The digest of every file but the list itself, as sha256sum writes it."""
    files = sorted(path for path in folder.rglob("*") if path.is_file() and path.name != SUMS)
    return "".join(
        f"{hashlib.sha256(path.read_bytes()).hexdigest()}  {path.relative_to(folder).as_posix()}\n" for path in files
    )


def releases() -> list[Path]:
    """The folders of recorded releases."""
    return sorted(path.parent for path in HERE.glob(f"*/{SUMS}"))


def _write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")


assert list(SCENARIOS)[-1] == "one_day", "what the last scenario leaves behind is recorded"
