"""Where the figures were taken: without this they mean nothing."""

from __future__ import annotations

import os
import platform
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path

from benchmarks.environment import Environment


def describe(environment: Environment) -> dict[str, str]:
    """Machine, versions and settings, for the head of the table and the JSON file."""
    valkey = environment.redis("INFO", "server").decode()
    facts = dict(line.split(":", 1) for line in valkey.splitlines() if ":" in line)
    settings = ("shared_buffers", "fsync", "synchronous_commit", "max_wal_size")
    return {
        "when": datetime.now(UTC).isoformat(timespec="seconds"),
        "processor": f"{os.cpu_count()} x {processor()}",
        "load before": f"{os.getloadavg()[0]:.2f} (1 minute)",
        "system": f"{platform.system()} {platform.release()}, Python {platform.python_version()}",
        "PostgreSQL": environment.sql("show server_version")[0][0],
        "PostgreSQL settings": ", ".join(f"{name} {environment.sql(f'show {name}')[0][0]}" for name in settings),
        "Valkey": facts.get("valkey_version", facts.get("redis_version", "?")),
        "libraries": ", ".join(f"{name} {version(name)}" for name in ("celery", "redis", "sqlalchemy", "psycopg")),
    }


def processor() -> str:
    """The processor's name, as well as the system tells it."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()
