"""Addresses: no password in any output, and none that leads elsewhere than it says."""

from __future__ import annotations

import pytest
from pydantic import ValidationError

from billing_tasks import Settings, errors
from billing_tasks.addresses import redact
from billing_tasks.admin import Admin
from billing_tasks.settings import load_settings

SECRET = "hunter2"
SPELLINGS = [
    f"redis://:{SECRET}@h:6379",
    f"redis://user:{SECRET}@h:6379/",
    f"rediss://user:{SECRET}@h",
    f"redis://h:6379?password={SECRET}",
    f"redis://h:6379?username=x&password={SECRET}&ssl_cert_reqs=none",
    f"redis://user:a@{SECRET}@h:6379",
    f"redis://user:a%40{SECRET}@h:6379",
    f"unix:///run/valkey.sock?password={SECRET}",
]
DATABASES = [
    f"postgresql://billing:{SECRET}@db/billing",
    f"postgresql://billing:a/{SECRET}@db/billing",
    f"postgresql://billing:a:{SECRET}@db:5432/billing?sslmode=require",
    f"postgresql://billing@db/billing?password={SECRET}",
    f"postgresql://db/billing?user=billing&PASSWORD={SECRET}",
    f"host=db user=billing password={SECRET} dbname=billing",
    f"host=db password = '{SECRET} x' dbname=billing",
    f"host=db sslpassword={SECRET} passfile=/x",
    f"postgresql://billing:{SECRET}@a:1,billing:{SECRET}@b:2/billing",
]
BROKERS = [
    f"amqp://guest:{SECRET}@rabbit:5672//",
    f"sentinel://:{SECRET}@a:26379;sentinel://:{SECRET}@b:26379",
    f"redis+socket:///run/x.sock?password={SECRET}",
]


@pytest.mark.parametrize("url", [*SPELLINGS, *DATABASES, *BROKERS])
def test_no_spelling_of_a_password_is_shown(url: str) -> None:
    assert SECRET not in redact(url)
    assert "***" in redact(url)


@pytest.mark.parametrize("field", ["redis_url", "database_url", "broker_url"])
def test_settings_show_no_password(field: str) -> None:
    urls = {"redis_url": SPELLINGS, "database_url": DATABASES, "broker_url": BROKERS}[field]
    for url in urls:
        if "a/" in url:
            continue  # refused: the port is none
        settings = Settings(**{field: url})  # type: ignore[arg-type]
        assert SECRET not in repr(settings) + str(settings)
        assert getattr(settings, field) == url


@pytest.mark.parametrize(
    ("name", "value", "says"),
    [
        ("REDIS_URL", f"redis://:{SECRET}@h:6379/5", "must name no db"),
        ("REDIS_URL", f"redis://:{SECRET}@h:6379?db=5", "must name no db"),
        ("REDIS_URL", f"unix:///x?db=5&password={SECRET}", "must name no db"),
        ("REDIS_URL", f"redis://:{SECRET}@h:6379/billing", "must name no db"),
        ("REDIS_URL", f"sentinel://:{SECRET}@h:26379", "sentinel:// is not supported"),
        ("REDIS_URL", f"http://:{SECRET}@h", "must begin with redis://"),
        ("REDIS_URL", SECRET, "must begin with redis://"),
        ("REDIS_URL", f"redis://:{SECRET}@h:99999", "the port"),
        ("REDIS_URL", f"redis://:{SECRET}@h:port", "the port"),
        ("BROKER_URL", f"amqp://guest:{SECRET}@h:99999//", "the port"),
        ("DATABASE_URL", f"postgresql://billing:{SECRET}@h:99999/billing", "the port"),
        ("SHARDS", SECRET, "valid integer"),
    ],
)
def test_a_setting_that_can_not_be_used_is_named_and_not_shown(
    monkeypatch: pytest.MonkeyPatch, name: str, value: str, says: str
) -> None:
    monkeypatch.setenv(f"BILLING_{name}", value)
    with pytest.raises(errors.BadSettings, match=says) as told:
        load_settings()
    assert f"BILLING_{name}" in str(told.value)
    assert SECRET not in str(told.value)
    with pytest.raises(ValidationError) as raw:
        Settings(**{name.lower(): value})  # type: ignore[arg-type]
    assert SECRET not in str(raw.value) + repr(raw.value)


@pytest.mark.parametrize(
    "url", [f"mysql://billing:{SECRET}@db", f"{SECRET}", f"postgresql://x:{SECRET}@db/?nonsense=1"]
)
def test_a_database_that_libpq_can_not_read_is_said_without_its_password(url: str) -> None:
    with (
        pytest.raises(errors.BadSettings, match="BILLING_DATABASE_URL") as told,
        Admin.from_settings(Settings(database_url=url)) as admin,
    ):
        admin.accounts.user(1)
    assert SECRET not in str(told.value) or url == SECRET


@pytest.mark.parametrize("url", ["redis://h:6379", "redis://h:6379/", "redis://h/0", "unix:///run/x.sock?password=x"])
def test_both_dbs_of_an_address_are_ours(url: str) -> None:
    settings = Settings(redis_url=url)
    assert settings.cache_url.endswith(("/1", "db=1"))
    assert settings.celery_broker_url.endswith(("/0", "virtual_host=0"))
    assert settings.cache_url.count("?") <= 1


def test_what_a_customer_is_told_names_no_server() -> None:
    inside = "Redis at redis://10.0.0.7:6379/1 did not answer: Connection refused"
    kinds = [errors.Unavailable, *errors.Unavailable.__subclasses__(), errors.BadSettings, errors.BadRatios]
    for kind in [*kinds, errors.OutboxStuck]:
        body = kind(inside, request_id="x").as_openai()
        assert "10.0.0.7" not in str(body)
        assert body["error"]["code"] == kind.code
        assert kind.http_status == (503 if issubclass(kind, errors.Unavailable) else 500)
    refused = errors.InsufficientUserQuota("User 42 has 7 left, the request needs 9.")
    assert refused.as_openai()["error"]["message"] == refused.message
