"""`make clean` removes what a checkout's runs left, also in folders of the system, and nothing of another checkout."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest

from tests.docs.conftest import ROOT

pytestmark = pytest.mark.skipif(shutil.which("make") is None, reason="make is not here")


def made(public: Path, name: str, owner: Path) -> Path:
    home = public / name
    (home / "cluster").mkdir(parents=True)
    (home / "made-for").write_text(str(owner))
    return home


def clean(checkout: Path, public: Path) -> str:
    environment = {**os.environ, "BILLING_LAB_PUBLIC_FOLDER": str(public)}
    done = subprocess.run(
        ["make", "clean"], cwd=checkout, env=environment, capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    folder = tmp_path / "a checkout"
    for name in (".billing", ".billing-demo", ".venv"):
        (folder / name).mkdir(parents=True)
    shutil.copy(ROOT / "Makefile", folder)
    return folder


def test_what_belongs_to_this_checkout_goes(checkout: Path, tmp_path: Path) -> None:
    public = tmp_path / "public"
    mine = [made(public, "home-1", checkout / ".billing"), made(public, "home-2-3", checkout / ".billing-demo")]
    others = made(public, "home-4", tmp_path / "another" / ".billing")
    elsewhere = tmp_path / "elsewhere"
    made(tmp_path, "elsewhere", checkout / ".billing")
    (public / "home-link").symlink_to(elsewhere)
    programs = public / "postgres-0.6.0"
    programs.mkdir()

    said = clean(checkout, public)
    assert [home.exists() for home in mine] == [False, False]
    assert all(f"Removing {home}" in said for home in mine)
    assert [path.exists() for path in (others, programs, elsewhere / "cluster")] == [True, True, True]
    assert [path.name for path in checkout.iterdir()] == ["Makefile"]


def test_the_programs_go_with_the_last_of_them(checkout: Path, tmp_path: Path) -> None:
    public = tmp_path / "public"
    made(public, "home-1", checkout / ".billing-demo")
    (public / "postgres-0.6.0").mkdir()
    (public / "staging-x").mkdir()
    clean(checkout, public)
    assert not public.exists()
    assert "Removing" not in clean(checkout, public).replace("rm -rf", "")
