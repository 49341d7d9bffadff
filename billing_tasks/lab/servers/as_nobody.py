"""When root starts the lab: PostgreSQL refuses root, so it runs as `nobody`, out of a folder open to all.

    /var/lib/billing-tasks/            made by us, root's, 0755
        postgres-0.6.0/                copy of PostgreSQL's programs: the checkout may be in a closed home
        home-<hash of the state path>/ root's; the access rules are here, where the server can't change them
            made-for                   the state folder it belongs to
            cluster/                   nobody's, 0700: the data

BILLING_LAB_PUBLIC_FOLDER names another folder. Data stays over restarts. Root
never writes inside `cluster`, so a link put there by another process of
`nobody` leads root nowhere. A killed run leaves at most a half copied
`staging-*` folder, which nothing ever reads.
"""

from __future__ import annotations

import hashlib
import os
import pwd
import shutil
import stat
import tempfile
from pathlib import Path

from billing_tasks.lab.problems import FolderUnusable, LabError
from billing_tasks.lab.processes import Account
from billing_tasks.lab.servers.binaries import PostgresPrograms
from billing_tasks.lab.servers.folders import StateFolder, reachable_by_others, user_name

PUBLIC_FOLDER_VARIABLE = "BILLING_LAB_PUBLIC_FOLDER"
PUBLIC_FOLDERS = ("/var/lib/billing-tasks", "/var/tmp/billing-tasks", "/opt/billing-tasks")  # noqa: S108
HOME_MEMORY = "postgres-home"


def server_account() -> Account | None:
    """Who PostgreSQL runs as: None is ourselves, `nobody` when we are root."""
    if os.geteuid() != 0:
        return None
    try:
        nobody = pwd.getpwnam("nobody")
    except KeyError:
        raise LabError(
            "PostgreSQL does not run as root, and there is no user `nobody` here. Start as an ordinary user."
        ) from None
    return Account("nobody", nobody.pw_uid, nobody.pw_gid)


def staged_programs(programs: PostgresPrograms) -> PostgresPrograms:
    """The programs, copied once per version to where every user can read them; this machine's own are there already."""
    if programs.installed is not None:
        return programs
    public = public_folder()
    target = public / f"postgres-{programs.version}"
    if not target.exists():
        draft = Path(tempfile.mkdtemp(prefix="staging-", dir=public))
        try:
            copy_for_everyone(programs, draft)
            draft.rename(target)
        except OSError:
            if not target.exists():  # otherwise another process was faster, and its copy is as good
                raise
        finally:
            shutil.rmtree(draft, ignore_errors=True)
    return PostgresPrograms(target, programs.version)


def copy_for_everyone(programs: PostgresPrograms, target: Path) -> None:
    """Copy, and let every user read the copy, whatever the umask was when the wheel was installed."""
    for part in programs.parts:
        shutil.copytree(programs.site / part, target / part, symlinks=True)
    target.chmod(0o755)
    for path in target.rglob("*"):
        if not path.is_symlink():
            runnable = path.is_dir() or path.stat().st_mode & stat.S_IXUSR
            path.chmod(0o755 if runnable else 0o644)


def staged_home(state: StateFolder) -> Path:
    """The folder that keeps this state folder's data; the same one at every start."""
    remembered = state.recall(HOME_MEMORY)
    home = Path(remembered) if remembered else new_home(state)
    if not home.is_dir():
        raise FolderUnusable(
            f"The data of {state.path} was in {home}, which is gone. "
            f"To start with an empty database, remove {state.path}."
        )
    check_owned_by_root(home)
    owner = (home / "made-for").read_text()
    if owner != str(state.path):
        raise FolderUnusable(
            f"{state.path} was moved or copied: the data in {home} belongs to {owner}. "
            "Move it back, or name a new state folder."
        )
    return home


def new_home(state: StateFolder) -> Path:
    """A fresh home, remembered in the state folder.

    A home of a removed state folder at the same path is never taken over:
    removing the state folder means starting anew. Nor is it removed, for it
    holds data and the state folder may only have been moved.
    """
    digest = hashlib.sha256(os.fsencode(state.path)).hexdigest()[:12]
    public = public_folder()
    for number in range(1, 1000):
        home = public / (f"home-{digest}" if number == 1 else f"home-{digest}-{number}")
        try:
            home.mkdir()
        except FileExistsError:
            continue
        home.chmod(0o755)
        (home / "made-for").write_text(str(state.path))
        state.remember(HOME_MEMORY, str(home))
        return home
    raise FolderUnusable(f"{public} holds 999 databases made for {state.path}. Remove those you don't need.")


def public_folder() -> Path:
    """A folder of root's that every user can reach and only root can write."""
    named = os.environ.get(PUBLIC_FOLDER_VARIABLE)
    reasons = []
    for candidate in map(Path, [named] if named else PUBLIC_FOLDERS):
        try:
            make_public(candidate)
        except (OSError, FolderUnusable) as exc:
            reasons.append(str(exc))
        else:
            return candidate
    raise FolderUnusable(
        "As root, PostgreSQL needs a folder that the user `nobody` can reach, and none was usable: "
        f"{'; '.join(reasons)}. Name one with {PUBLIC_FOLDER_VARIABLE}, or start as an ordinary user."
    )


def make_public(folder: Path) -> None:
    """Make the folder if needed; refuse one that is out of reach or that others could have prepared."""
    if not reachable_by_others(folder.parent):
        raise FolderUnusable(f"{folder.parent} or a folder above it is closed to other users")
    try:
        folder.mkdir()
        folder.chmod(0o755)  # mkdir's mode is cut by the umask
    except FileExistsError:
        check_owned_by_root(folder)
        if not folder.stat().st_mode & stat.S_IXOTH:
            raise FolderUnusable(f"{folder} is closed to other users") from None


def check_owned_by_root(folder: Path) -> None:
    """Raise unless this is a real folder that only root can write."""
    found = folder.lstat()
    if not stat.S_ISDIR(found.st_mode):
        raise FolderUnusable(f"{folder} is not a folder")
    if found.st_uid != 0:
        raise FolderUnusable(f"{folder} belongs to {user_name(found.st_uid)}, not to root")
    if found.st_mode & 0o022:
        raise FolderUnusable(f"{folder} can be written by others")
