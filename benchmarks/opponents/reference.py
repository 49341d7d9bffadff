"""The reference: the statements that one-api (commit 8df4a26) sends for a request, and nothing else of it.

Reserve (`PreConsumeTokenQuota`): read the token, read the user's quota, update the
token, update the user. Settle (`PostConsumeQuota`): read the token, update user and
token by the difference, read the user's name, insert the log row, update the user's
used quota and request count, update the channel's used quota.

At its best: pgbench sends prepared statements over a Unix socket and spends next to
nothing itself; every statement is a transaction of its own, without the BEGIN and
COMMIT that the ORM puts around each write; no Redis cache is kept up to date, no log
line written. Run with several numbers of clients, the best counts. Not run: its
"batch update" mode, which keeps the sums in the program's memory, where a crash loses them.
"""

from __future__ import annotations

import os
import re
import subprocess
import tempfile
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import parse_qs, urlsplit

from benchmarks.environment import CHANNELS, Environment
from billing_tasks.lab.servers.binaries import find_postgres

DRAW = r"""\set user random(1, :users)
\set token :user
\set channel random(1, :channels)
"""
_HERE = Path(__file__).parent
RESERVE = (_HERE / "reference_reserve.sql").read_text(encoding="utf-8")
SETTLE = (_HERE / "reference_settle.sql").read_text(encoding="utf-8")


@dataclass(frozen=True, slots=True)
class Bench:
    """What pgbench found."""

    per_second: float
    latencies_ms: list[float]  # of single runs of the script; empty unless asked for


def prepare(environment: Environment, users: int) -> None:
    """The reference's tables in the environment's database, empty but for accounts."""
    environment.sql((_HERE / "reference_tables.sql").read_text(encoding="utf-8"))
    environment.sql(
        "insert into reference.users (id, username, quota) select n, 'user' || n, 1000000000000"
        " from generate_series(1, %s) as n",
        [users],
    )
    environment.sql(
        "insert into reference.tokens (id, user_id, key, name, remain_quota)"
        " select id, id, md5(id::text), 'token of ' || id, quota from reference.users"
    )
    environment.sql(
        "insert into reference.channels (id, name) select n, 'c' || n from generate_series(1, %s) as n", [CHANNELS]
    )
    environment.sql("vacuum analyze reference.users, reference.tokens, reference.channels, reference.logs")


def drop(environment: Environment) -> None:
    """Take the tables away again."""
    environment.sql("drop schema if exists reference cascade")


def run(
    environment: Environment, script: str, *, users: int, clients: int, seconds: int, with_latencies: bool = False
) -> Bench:
    """One run of pgbench. Raises RuntimeError with what it said if it fails."""
    with tempfile.TemporaryDirectory(prefix="billing-bench-") as folder:
        file = Path(folder) / "script.sql"
        file.write_text(DRAW + script, encoding="utf-8")
        where = urlsplit(environment.settings.database_url)
        argv = [
            *(str(find_postgres().bin / "pgbench"), "-n", "-M", "prepared", "-f", str(file)),
            *("-c", str(clients), "-j", str(min(clients, os.cpu_count() or 1)), "-T", str(seconds)),
            *("-D", f"users={users}", "-D", f"channels={CHANNELS}"),
            *("-h", parse_qs(where.query)["host"][0], "-U", where.username or "billing"),
            *(("-l", "--log-prefix", f"{folder}/log") if with_latencies else ()),
            where.path.lstrip("/"),
        ]
        done = subprocess.run(argv, capture_output=True, text=True, check=False)  # noqa: S603
        found = re.search(r"^tps = ([\d.]+)", done.stdout, re.MULTILINE)
        if done.returncode or not found:
            raise RuntimeError(f"pgbench failed: {done.stderr.strip()[-2000:]}")
        lines = [line for log in Path(folder).glob("log.*") for line in log.read_text().splitlines()]
        return Bench(float(found[1]), [int(line.split()[2]) / 1000 for line in lines])
