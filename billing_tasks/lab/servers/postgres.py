"""An embedded PostgreSQL 18: no TCP, one private socket, data kept, supervised by us.

`postgres` runs as our child, not through pg_ctl, so that we see it die and it
dies with us. A crash of either is PostgreSQL's own crash recovery at the next
start; what was committed is there. A half made database folder has another name
and is thrown away.

Who may connect: the socket's folder is 0700, and the server asks the kernel who
the caller is (`peer`): only the user who started it, and root.
"""

from __future__ import annotations

import os
import pwd
import shutil
import signal
import subprocess
import time
from pathlib import Path
from urllib.parse import quote

import psycopg

from billing_tasks.lab.problems import LabError, StartFailed
from billing_tasks.lab.processes import (
    Program,
    StopSteps,
    Supervised,
    command_line,
    end_process,
    open_log,
    spawn,
)
from billing_tasks.lab.servers.as_nobody import server_account, staged_home, staged_programs
from billing_tasks.lab.servers.binaries import PostgresPrograms, find_postgres
from billing_tasks.lab.servers.folders import SocketFolder, StateFolder

NAME = "postgres"
DATABASE = "billing"
SUPERUSER = "billing"
SOCKET = ".s.PGSQL.5432"  # only a file name here; nothing listens on that port

# Fast (rolls back what is open, writes a checkpoint), then immediate (recovers at the next start).
STOP_STEPS: StopSteps = ((signal.SIGINT, 10.0), (signal.SIGQUIT, 6.0))
INITDB_SECONDS = 120.0
MEMORY_RELEASE_SECONDS = 10.0

SETTINGS = {
    "listen_addresses": "",
    "unix_socket_permissions": "0700",
    "shared_buffers": "128MB",
    "max_connections": "200",
    "fsync": "on",
    "synchronous_commit": "on",
    "full_page_writes": "on",
    "jit": "off",  # compiling costs more than any statement of ours runs
    "logging_collector": "off",
    "log_timezone": "UTC",
    "timezone": "UTC",
}
# For throw-away servers: what the machine's crash would lose is not needed again.
FAST_SETTINGS = {"fsync": "off", "full_page_writes": "off"}


class EmbeddedPostgres(Supervised):
    """PostgreSQL with its data in (or, as root, remembered by) an open state folder."""

    def __init__(self, state: StateFolder, *, fast: bool = False) -> None:
        super().__init__(NAME, log_file=state.log_file(NAME), pid_file=state.pid_file(NAME))
        self._state = state
        self._fast = fast
        self._account = server_account()
        self._sockets = SocketFolder(state, NAME, owner=self._account, sockets=(SOCKET, f"{SOCKET}.lock"))
        self._home: Path | None = None

    @property
    def url(self) -> str:
        """The database, as libpq writes it."""
        return self._url(DATABASE)

    @property
    def data(self) -> Path:
        """PostgreSQL's own data folder."""
        return self._cluster / "data"

    def start(self) -> None:
        """Return when it answers. A killed server's processes get a moment to let go of its memory."""
        deadline = time.monotonic() + MEMORY_RELEASE_SECONDS
        while True:
            try:
                return super().start()
            except StartFailed as exc:
                if "pre-existing shared memory block" not in exc.message or time.monotonic() > deadline:
                    raise
            time.sleep(0.1)

    def prepare(self) -> Program:
        """Programs, folders, access rules and database files: all there when this returns."""
        check_has_name(os.geteuid())
        programs = find_postgres()
        if self._account:
            programs = staged_programs(programs)
        self.programs = programs
        self._home = staged_home(self._state) if self._account else self._state.folder(NAME)
        self._make_cluster_folder()
        write_access_rules(self._home)
        if not self.data.exists():
            self._initdb(programs)
        self._stop_leftover_server()
        folder = self._sockets.open()
        settings = {
            **SETTINGS,
            **(FAST_SETTINGS if self._fast else {}),
            "unix_socket_directories": str(folder),
            "hba_file": str(self._home / "pg_hba.conf"),
            "ident_file": str(self._home / "pg_ident.conf"),
        }
        options = [word for name, value in settings.items() for word in ("-c", f"{name}={value}")]
        return Program(
            argv=(str(programs.bin / "postgres"), "-D", str(self.data), *options),
            environ=quiet_environment(),
            run_as=self._account,
            cwd=self._home,
            stop_steps=STOP_STEPS,
            death_signal=signal.SIGQUIT,  # immediate: its parent is gone and waits for no checkpoint
            ready_seconds=120.0,  # recovering after a crash takes its time
        )

    def answers(self) -> bool:
        if self._sockets.path is None or not (self._sockets.path / SOCKET).exists():
            return False
        try:
            psycopg.connect(self._url("postgres"), connect_timeout=2).close()
        except psycopg.OperationalError:
            return False
        return True

    def when_ready(self) -> None:
        """Make our database at the first start; a crash before this is made good at the next."""
        with psycopg.connect(self._url("postgres"), autocommit=True) as connection:
            if connection.execute("select 1 from pg_database where datname = %s", [DATABASE]).fetchone() is None:
                connection.execute(f"create database {DATABASE}")

    def when_stopped(self) -> None:
        self._sockets.close()

    def discard(self) -> None:
        """Stop, and remove what lies outside the state folder: for servers that are not started again."""
        self.stop(at_most_seconds=2)
        if self._account and self._home:
            shutil.rmtree(self._home)

    @property
    def _cluster(self) -> Path:
        if self._home is None:
            raise LabError("PostgreSQL was not started yet, so it has no folder.")
        return self._home / "cluster"

    def _url(self, database: str) -> str:
        if self._sockets.path is None:
            raise LabError("PostgreSQL was not started yet, so it has no address.")
        return f"postgresql://{SUPERUSER}@/{database}?host={quote(str(self._sockets.path))}"

    def _make_cluster_folder(self) -> None:
        """Only root hands it over, and only when just made; after that it is the server's."""
        if not self._cluster.exists():
            self._cluster.mkdir(mode=0o700)
        if self._account:
            os.chown(self._cluster, self._account.uid, self._account.gid, follow_symlinks=False)

    def _initdb(self, programs: PostgresPrograms) -> None:
        """Make the database files, first under another name: a crash leaves nothing that only looks whole."""
        draft = self._cluster / "data.new"
        if draft.exists():
            shutil.rmtree(draft)
        argv = [
            str(programs.bin / "initdb"),
            "-D",
            str(draft),
            "--locale=C",
            "--encoding=UTF8",
            "--auth=peer",
        ]
        argv += [f"--username={SUPERUSER}", "--no-instructions", *(["--no-sync"] if self._fast else [])]
        program = Program(tuple(argv), quiet_environment(), run_as=self._account, cwd=self._home)
        log = open_log(self.log_file)
        try:
            self._log_start = os.fstat(log).st_size
            with spawn(program, log) as process:
                wait_or_kill(process, INITDB_SECONDS)
        finally:
            os.close(log)
        if process.returncode != 0:
            raise StartFailed(f"PostgreSQL could not make its database files. {self.last_words()}")
        draft.rename(self.data)

    def _stop_leftover_server(self) -> None:
        """Stop an earlier run's server on our data; forget a pid that is another program's by now."""
        lock = self.data / "postmaster.pid"
        try:
            pid = int(lock.read_text().split("\n", 1)[0])
        except (FileNotFoundError, ValueError):
            return
        command = command_line(pid)
        if f" -D {self.data} " in f"{command} ":
            end_process(pid, STOP_STEPS)
        elif command:  # the pid was given to another program, and PostgreSQL would take that for itself
            lock.unlink()


def wait_or_kill(process: subprocess.Popen[bytes], seconds: float) -> None:
    """Wait for the end; if that doesn't come in time, or we are interrupted, make it, children included."""
    try:
        process.wait(timeout=seconds)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
    except BaseException:
        os.killpg(process.pid, signal.SIGKILL)
        raise


def write_access_rules(home: Path) -> None:
    """Written at every start: another user may start the server than last time."""
    me = pwd.getpwuid(os.geteuid()).pw_name
    rules = {
        "pg_hba.conf": "local all all peer map=lab\n",
        "pg_ident.conf": "".join(f'lab "{name}" {SUPERUSER}\n' for name in sorted({me, "root"})),
    }
    for name, text in rules.items():
        path = home / name
        path.write_text(text)
        path.chmod(0o644)  # the server's user reads it; there is no secret in it


def check_has_name(uid: int) -> None:
    """PostgreSQL gives up if its user has no name, as in containers started with a bare number."""
    try:
        pwd.getpwuid(uid)
    except KeyError:
        raise LabError(
            f"PostgreSQL needs its user to have a name, and uid {uid} has none in /etc/passwd. "
            "Start as a user who has one."
        ) from None


def quiet_environment() -> dict[str, str]:
    """What a server needs, and no secrets: its user's other processes can read its environment."""
    kept = ("PATH", "LD_LIBRARY_PATH", "DYLD_LIBRARY_PATH", "TMPDIR")
    return {"LC_ALL": "C", **{name: os.environ[name] for name in kept if name in os.environ}}
