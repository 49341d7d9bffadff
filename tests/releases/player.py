"""Plays scenarios and writes their traces: python -m tests.releases.player --into FOLDER [--only NAME ...] [--ids FILE]

Environment: BILLING_REDIS_URL, BILLING_DATABASE_URL, servers that are migrated and may be emptied. Every scenario
begins with empty servers and runs in a process of its own, so that no scenario changes another's answers. The
last one's state stays; `--ids` notes the ids of its names.

`--carry-on RELEASE-FOLDER`: instead, put back what that release left, into a new database and a Redis that is emptied,
migrate, and carry on from there: `carried_on.jsonl`.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import traceback
import warnings
from collections.abc import Callable
from pathlib import Path

#: Where a default would let a trace depend on the clock. Before the package reads its settings.
FIXED = {
    "BILLING_REFUSAL_FRESH_SECONDS": "0",  # a refusal always looks at PostgreSQL first
    "BILLING_REDIS_TIMEOUT_SECONDS": "10",  # a busy machine is no server that is away
    "BILLING_DOORBELL_MS": "600000",  # one ring per shard, however long the playing takes
    "BILLING_CATALOGUE": "one-api",  # the releases recorded knew no other prices
    "BILLING_UNKNOWN_MODEL": "30",
    "BILLING_SHARDS": "16",  # traces name shards; 0.1.0 had so many by default
}


def main() -> int:
    """0 if every scenario was played to its end."""
    parser = argparse.ArgumentParser(prog="python -m tests.releases.player")
    parser.add_argument("--into", type=Path, required=True, help="a folder for the traces")
    parser.add_argument("--only", nargs="+", help="these scenarios")
    parser.add_argument("--ids", type=Path, help="note which id the last scenario's names got")
    parser.add_argument("--carry-on", type=Path, help="the folder of a recorded release")
    asked = parser.parse_args()
    os.environ.update(FIXED)
    warnings.simplefilter("error")

    from tests.releases.scenarios import SCENARIOS

    asked.into.mkdir(parents=True, exist_ok=True)
    if asked.carry_on is not None:
        return _carry_on(asked.carry_on, asked.into)
    for name in asked.only or SCENARIOS:
        if not _in_a_process_of_its_own(lambda name=name: _play(name, asked.into, asked.ids)):  # type: ignore[misc]
            print(f"scenario {name} was not played to its end", file=sys.stderr)
            return 1
    return 0


def _play(name: str, into: Path, ids: Path | None) -> None:
    from billing_tasks import Settings
    from tests.releases.play import Play
    from tests.releases.scenarios import SCENARIOS
    from tests.releases.state import empty

    settings = Settings()
    empty(settings.database_url, [settings.cache_url, settings.cache_url.removesuffix("1") + "0"])
    play = Play(settings)
    try:
        SCENARIOS[name](play)
    finally:
        play.close()
    into.joinpath(f"{name}.jsonl").write_text(play.text)
    if ids is not None:
        ids.write_text(json.dumps(play.names.ids))


def _carry_on(folder: Path, into: Path) -> int:
    """A worker takes what waits: messages first, then outboxes; then balances, rows and the verdict."""
    from billing_tasks import Settings
    from tests.releases.put_back import layout_of, new_database, put_back
    from tests.releases.state import empty
    from tests.releases.templates import Names

    before, names = Settings(), Names()
    empty(before.database_url, [before.cache_url, before.cache_url.removesuffix("1") + "0"])
    os.environ["BILLING_DATABASE_URL"] = new_database(before.database_url, "carried_on")
    if "/" not in layout_of(folder):
        os.environ["BILLING_SHARD_TAGS"] = "numbered"  # as 0.1.0 chose them
    settings = Settings()
    put_back(folder, settings, names)

    from tests.releases.play import Play

    play = Play(settings, names)
    try:
        play.say(command="migrate", exit=play.command("migrate")["exit"])
        play.look()
        play.deliver()
        play.end()
    finally:
        play.close()
    into.joinpath("carried_on.jsonl").write_text(play.text)
    return 0


def _in_a_process_of_its_own(work: Callable[[], None]) -> bool:
    child = os.fork()
    if child:
        return os.waitpid(child, 0)[1] == 0
    status = 1
    try:
        work()
        status = 0
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)


if __name__ == "__main__":
    sys.exit(main())
