"""import usage: what a gateway logged while all was away is booked once, and each line has its answer."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from billing_tasks import ConsumeLog
from billing_tasks.admin import Admin
from billing_tasks.model.ids import new_request_id, reserved_at_ms
from tests.cli.test_cli import run
from tests.conftest import CHANNEL, Billing, Payer

__all__ = ["run"]


def line(payer: Payer, quota: int = 10, **fields: Any) -> dict[str, Any]:
    return {
        "request_id": new_request_id(),
        "user_id": payer[0],
        "token_id": payer[1],
        "channel_id": CHANNEL,
        "quota": quota,
        **fields,
    }


def write(path: Path, *lines: Any) -> Path:
    path.write_text("".join((one if isinstance(one, str) else json.dumps(one)) + "\n" for one in lines))
    return path


def test_each_line_is_booked_once_however_often_it_is_imported(run, billing: Billing, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    payer, other = billing.payer(), billing.payer()
    by_gateway = line(payer, 5)
    billing.bk.consume(ConsumeLog(**by_gateway))
    billing.settle()
    lines = [line(payer), line(other, 20, model_name="gpt-4o", prompt_tokens=7), by_gateway, line(payer, 0)]
    file = write(tmp_path / "usage.ndjson", *lines, "", lines[0])
    told = json.loads(run("import", "usage", file, "--dry-run", "--json").output)
    assert told["lines"] == {"posted": 4, "duplicate": 1}  # each by itself: the file names one twice
    assert billing.accounts.user(other[0]).used_quota == 0
    assert json.loads(run("import", "usage", file, "--json").output)["lines"] == {"posted": 3, "duplicate": 2}
    assert "5 had been booked before" in run("import", "usage", file).output
    assert billing.accounts.user(payer[0]).used_quota == 15
    assert billing.accounts.user(other[0]).used_quota == 20
    assert billing.available(other[0]) == 1_000_000 - 20, "gateways know it, too"
    (entry,) = Admin(billing.runtime).entries.of_request(lines[0]["request_id"])
    assert int(entry.used_at.timestamp() * 1000) == reserved_at_ms(lines[0]["request_id"])


def test_a_line_that_can_not_be_booked_is_answered_and_kept_beside_the_file(  # type: ignore[no-untyped-def]
    run,
    billing: Billing,
    tmp_path: Path,
) -> None:
    payer = billing.payer()
    good, booked = line(payer, 3), line(payer, 4)
    Admin(billing.runtime).imports.usage([json.dumps(booked)]).__next__()
    wrong = {
        "conflict": {**booked, "quota": 5},
        "unknown_user": line((777_777, 1)),
        "unknown_token": line((payer[0], 777_777)),
        "invalid_request": line(payer, -1),
        "malformed": "{not json",
    }
    more = ['["a list"]', {**line(payer), "surprise": 1}, {**line(payer), "quota": 10**400}, {"quota": 1}]
    file = write(tmp_path / "usage.ndjson", good, *wrong.values(), *more)
    result = run("import", "usage", file, status=1)
    told = json.loads(run("import", "usage", file, "--json", status=1).output)
    assert {one["outcome"] for one in told["refused"]} >= {*wrong}
    assert [one["number"] for one in told["refused"]] == list(range(2, 2 + len(wrong) + len(more)))
    assert all(one["message"] for one in told["refused"])
    assert "usage.ndjson.refused" in result.output.replace("\n", "")
    refused = (tmp_path / "usage.ndjson.refused").read_text().splitlines()
    assert refused == file.read_text().splitlines()[1:]
    assert billing.accounts.user(payer[0]).used_quota == 7
    # What was corrected is imported from there.
    billing.runtime.ledger.create_user(777_777)
    billing.runtime.ledger.create_token(777_777, 1_000)
    corrected = write(tmp_path / "again.ndjson", {**wrong["unknown_user"], "token_id": 1_000})  # type: ignore[dict-item]
    assert json.loads(run("import", "usage", corrected, "--json").output)["lines"] == {"posted": 1}


@pytest.mark.parametrize("what", [b"", b"\n\n", b"\xff\xfe\n"])
def test_a_file_without_usage_is_said(run, billing: Billing, tmp_path: Path, what: bytes) -> None:  # type: ignore[no-untyped-def]
    (tmp_path / "empty").write_bytes(what)
    result = run("import", "usage", tmp_path / "empty", status=1 if what.strip() else 0)
    assert "no lines" in result.output or "malformed" in result.output
