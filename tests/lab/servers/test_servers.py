"""The embedded servers: private, durable, restartable, also after a crash."""

from __future__ import annotations

import os
import shutil
import stat
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
import redis
import sqlalchemy
from kombu import Connection

from billing_tasks.lab.problems import LabError, StartFailed
from billing_tasks.lab.servers import EmbeddedPostgres, EmbeddedValkey, Servers, StateFolder, embedded_servers
from billing_tasks.lab.servers.valkey import DURABLE
from billing_tasks.settings import Settings

Sql = Callable[[str, str], Any]
REDIS_CONF = Path(__file__).resolve().parents[3] / "config" / "redis.conf"


@pytest.fixture(scope="module")
def servers() -> Iterator[Servers]:
    with embedded_servers(fast=True) as running:
        yield running


@pytest.fixture
def state(state_dir: Path) -> Iterator[StateFolder]:
    with StateFolder(state_dir) as opened:
        yield opened


@pytest.fixture
def postgres(state: StateFolder) -> Iterator[EmbeddedPostgres]:
    server = EmbeddedPostgres(state, fast=True)
    yield server
    server.discard()


@pytest.fixture
def valkey(state: StateFolder) -> Iterator[EmbeddedValkey]:
    server = EmbeddedValkey(state)
    yield server
    server.stop()


def set_key(url: str, value: str) -> None:
    with redis.Redis.from_url(url) as client:
        client.set("key", value)


def get_key(url: str) -> Any:
    with redis.Redis.from_url(url) as client:
        return client.get("key")


def test_the_addresses_work_for_every_client_the_package_uses(servers: Servers) -> None:
    settings = Settings(redis_url=servers.redis_url, database_url=servers.database_url)
    engine = sqlalchemy.create_engine(settings.sqlalchemy_url)
    with engine.connect() as connection:
        assert connection.exec_driver_sql("select current_database()").scalar_one() == "billing"
    engine.dispose()
    set_key(settings.cache_url, "x")
    assert get_key(settings.cache_url) == b"x"
    assert get_key(servers.redis_url) is None  # quota has a database number of its own
    with Connection(settings.celery_broker_url) as broker:
        broker.connect()


def test_the_environment_overrules_a_broker_set_outside(servers: Servers, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BILLING_BROKER_URL", "amqp://production")
    for name, value in servers.environment.items():
        monkeypatch.setenv(name, value)
    assert Settings().celery_broker_url == Settings(redis_url=servers.redis_url, broker_url=None).celery_broker_url


def test_nothing_listens_on_tcp(servers: Servers, sql: Sql) -> None:
    assert sql(servers.database_url, "show listen_addresses") == ""
    with redis.Redis.from_url(servers.redis_url) as client:
        assert client.config_get("port") == {"port": "0"}


def test_socket_folders_are_closed_to_other_users(servers: Servers) -> None:
    folders = [Path(servers.database_url.split("host=")[1]), Path(urlsplit(servers.redis_url).path).parent]
    assert [stat.S_IMODE(folder.stat().st_mode) for folder in folders] == [0o700, 0o700]


def test_the_superuser_is_billing_and_text_is_utf8_in_c_order(servers: Servers, sql: Sql) -> None:
    assert sql(servers.database_url, "select current_user || ' ' || current_setting('is_superuser')") == "billing on"
    assert sql(servers.database_url, "select pg_encoding_to_char(encoding) || ' ' || datcollate from pg_database") == (
        "UTF8 C"
    )


def test_throw_away_servers_leave_nothing_behind() -> None:
    with embedded_servers(fast=True) as running:
        left = [running.state.path, Path(running.database_url.split("host=")[1]), running.postgres.data.parents[1]]
        assert all(folder.exists() for folder in left)
    assert not any(folder.exists() for folder in left)


def test_data_and_addresses_stay_over_restarts(state_dir: Path, sql: Sql) -> None:
    with embedded_servers(state_dir) as running:
        addresses = running.database_url, running.redis_url
        sql(running.database_url, "create table kept as select 42 as answer")
        set_key(running.redis_url, "kept")
    with embedded_servers(state_dir) as running:
        assert (running.database_url, running.redis_url) == addresses
        assert sql(running.database_url, "select answer from kept") == 42
        assert get_key(running.redis_url) == b"kept"
        running.postgres.discard()


def test_production_settings_wait_for_the_disk(state_dir: Path, sql: Sql) -> None:
    with embedded_servers(state_dir) as running:
        for name in ("fsync", "synchronous_commit", "full_page_writes"):
            assert sql(running.database_url, f"show {name}") == "on"
        with redis.Redis.from_url(running.redis_url) as client:
            assert client.config_get("appendfsync") == {"appendfsync": "always"}
            assert client.config_get("maxmemory-policy") == {"maxmemory-policy": "noeviction"}
        running.postgres.discard()


def test_the_embedded_valkey_has_the_settings_of_the_production_file() -> None:
    lines = [line.split(maxsplit=1) for line in REDIS_CONF.read_text().splitlines()]
    production = {words[0]: words[1].strip('"') for words in lines if words and not words[0].startswith("#")}
    assert production == DURABLE


def test_a_killed_postgres_starts_again_with_what_was_committed(postgres: EmbeddedPostgres, sql: Sql) -> None:
    postgres.start()
    sql(postgres.url, "create table kept as select 42 as answer")
    postgres.kill()
    assert not postgres.is_running
    postgres.start()
    assert sql(postgres.url, "select answer from kept") == 42


def test_a_killed_valkey_starts_again_with_what_was_answered(valkey: EmbeddedValkey) -> None:
    valkey.start()
    set_key(valkey.url, "kept")
    valkey.kill()
    valkey.start()
    assert get_key(valkey.url) == b"kept"


def test_a_server_left_running_by_an_earlier_run_is_stopped_first(
    state: StateFolder, postgres: EmbeddedPostgres, valkey: EmbeddedValkey, sql: Sql
) -> None:
    leftover, leftover_valkey = EmbeddedPostgres(state, fast=True), EmbeddedValkey(state)
    leftover.start()
    sql(leftover.url, "create table kept as select 42 as answer")
    leftover_valkey.start()
    set_key(leftover_valkey.url, "kept")

    postgres.start()
    valkey.start()

    assert not leftover.is_running
    assert not leftover_valkey.is_running
    assert sql(postgres.url, "select answer from kept") == 42
    assert get_key(valkey.url) == b"kept"


def test_a_left_over_postgres_is_found_without_its_pid_file(state: StateFolder, postgres: EmbeddedPostgres) -> None:
    leftover = EmbeddedPostgres(state, fast=True)
    leftover.start()
    leftover.pid_file.unlink()
    postgres.start()
    assert not leftover.is_running


def test_a_copied_state_folder_leaves_the_originals_server_alone(
    state: StateFolder, valkey: EmbeddedValkey, tmp_path: Path
) -> None:
    valkey.start()
    set_key(valkey.url, "original")
    shutil.copytree(state.path, tmp_path / "copy")
    with StateFolder(tmp_path / "copy") as copied:
        second = EmbeddedValkey(copied)
        second.start()
        set_key(second.url, "copy")
        second.stop()
    assert valkey.is_running
    assert get_key(valkey.url) == b"original"


def test_a_pid_that_went_to_another_program_is_left_alone(postgres: EmbeddedPostgres) -> None:
    postgres.start()
    lock = postgres.data / "postmaster.pid"
    written = lock.read_text()
    postgres.stop()
    lock.write_text(written.replace(written.split("\n", 1)[0], str(os.getpid()), 1))
    postgres.start()  # and this process is still here to see it
    assert postgres.is_running


def test_half_made_database_files_are_thrown_away(postgres: EmbeddedPostgres) -> None:
    postgres.start()
    postgres.stop()
    postgres.data.rename(postgres.data.with_name("data.new"))
    postgres.start()
    assert postgres.is_running
    assert not postgres.data.with_name("data.new").exists()


def test_a_start_that_fails_says_what_the_server_wrote(postgres: EmbeddedPostgres) -> None:
    postgres.start()
    postgres.stop()
    (postgres.data / "PG_VERSION").write_text("12\n")
    with pytest.raises(StartFailed, match=r"(?s)exit code 1\..*postgres\.log:.*version 12"):
        postgres.start()
    assert not postgres.is_running


def test_an_address_before_the_start_is_an_error(postgres: EmbeddedPostgres, valkey: EmbeddedValkey) -> None:
    for server in (postgres, valkey):
        with pytest.raises(LabError, match="not started"):
            _ = server.url


def test_a_deep_state_folder_does_not_make_sockets_too_long(tmp_path: Path) -> None:
    with embedded_servers(tmp_path / ("d" * 120) / ("e" * 120), fast=True) as running:
        assert len(running.redis_url) < 100
        running.postgres.discard()


def test_a_long_temporary_folder_is_not_used_for_sockets(
    valkey: EmbeddedValkey, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    deep = tmp_path / ("t" * 120)
    deep.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(deep))
    valkey.start()
    assert str(deep) not in valkey.url


def test_a_socket_folder_left_by_a_killed_run_is_taken_again(valkey: EmbeddedValkey, state: StateFolder) -> None:
    valkey.start()
    address = valkey.url
    valkey.kill()
    assert Path(urlsplit(address).path).exists()
    again = EmbeddedValkey(state)
    again.start()
    assert again.url == address
    again.stop()
    assert not Path(urlsplit(address).path).parent.exists()


def test_a_socket_folder_that_another_program_made_meanwhile_is_not_touched(valkey: EmbeddedValkey) -> None:
    valkey.start()
    taken = Path(urlsplit(valkey.url).path).parent
    valkey.stop()
    taken.mkdir()
    taken.chmod(0o755)
    (taken / "valkey.sock").touch()

    valkey.start()

    assert Path(urlsplit(valkey.url).path).parent != taken
    assert (taken / "valkey.sock").exists()
    (taken / "valkey.sock").unlink()
    taken.rmdir()
