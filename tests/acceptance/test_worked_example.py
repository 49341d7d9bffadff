"""The worked example of CONTRIBUTING.md, followed literally in a copy of the checkout."""

from __future__ import annotations

import filecmp
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import psycopg
import pytest

from billing_tasks.lab.servers import Servers
from billing_tasks.ledger.migrations import upgrade
from tests.releases.put_back import new_database

ROOT = Path(__file__).resolve().parents[2]
PAGE = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
COPIED = ("billing_tasks", "docs", "tests", "pyproject.toml", "CONTRIBUTING.md", "README.md")
TEST = """
from __future__ import annotations

from tests.conftest import Billing


def test_cached_tokens(billing: Billing) -> None:
    reservation = billing.reserve(billing.payer(), 100)
{body}

def test_two_consumes_that_differ_in_it_are_not_the_same(billing: Billing) -> None:
    reservation = billing.reserve(billing.payer(), 100)
    first = reservation.log(channel_id=3, quota=40, cached_tokens=64)
    assert first.fingerprint != reservation.log(channel_id=3, quota=40).fingerprint
    assert reservation.log(channel_id=3, quota=40, cached_tokens=0).fingerprint == (
        reservation.log(channel_id=3, quota=40).fingerprint
    )
"""


def block(mark: str) -> str:
    """A block of the page by the words behind its fence."""
    found = re.search(rf"^```python {mark}\n(.*?)^```", PAGE, re.MULTILINE | re.DOTALL)
    assert found, f"CONTRIBUTING.md has no block {mark}"
    return found[1]


@pytest.fixture
def copy(tmp_path: Path) -> Path:
    """The checkout, without its history."""
    for name in COPIED:
        source = ROOT / name
        if source.is_dir():
            shutil.copytree(source, tmp_path / name, ignore=shutil.ignore_patterns("__pycache__", "0.*"))
        else:
            shutil.copy(source, tmp_path / name)
    return tmp_path


def run(copy: Path, *words: str, **environment: str) -> str:
    """A program in the copy, with the copy's package."""
    env = {**os.environ, "PYTHONPATH": str(copy), **environment}
    done = subprocess.run(
        [sys.executable, *words], cwd=copy, env=env, capture_output=True, text=True, check=False, timeout=150
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_a_field_more_is_two_files_and_no_migration(copy: Path, servers: Servers) -> None:
    log = copy / "billing_tasks/model/consume_log.py"
    before, mark, after = log.read_text().partition("    def __init__(self, /, **fields")
    assert mark
    log.write_text(before.rstrip() + "\n" + block("field") + "\n" + mark + after)
    run(copy, "docs/make_reference.py")

    changed = [
        path.relative_to(ROOT)
        for name in COPIED
        for path in sorted((ROOT / name).rglob("*.*"))
        if "__pycache__" not in path.parts and _differs(path, copy)
    ]
    assert list(map(str, changed)) == ["billing_tasks/model/consume_log.py", "docs/reference/consume-log.md"]

    url = new_database(servers.database_url, "worked_example")
    upgrade(url)  # as the release without the field left it
    migrate = (
        "from billing_tasks.ledger.migrations import upgrade; import os; upgrade(os.environ['BILLING_DATABASE_URL'])"
    )
    run(copy, "-c", migrate, BILLING_DATABASE_URL=url)
    with psycopg.connect(url) as connection:
        assert connection.execute("select cached_tokens from billing.consume_log").fetchall() == []

    (copy / "tests/client/test_cached_tokens.py").write_text(TEST.format(body=block("field-test")))
    tests = ("tests/client/test_cached_tokens.py", "tests/docs/test_reference.py", "tests/ledger/test_schema.py")
    assert " passed" in run(copy, "-m", "pytest", "-q", "-p", "no:cacheprovider", *tests)


def _differs(path: Path, copy: Path) -> bool:
    twin = copy / path.relative_to(ROOT)
    return twin.is_file() and not filecmp.cmp(path, twin, shallow=False)
