"""The runbook, followed by an operator who knows nothing else: every command here was read out of docs/runbook.md."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from celery import Celery

from billing_tasks import Accounts, Bookkeeper, Settings
from billing_tasks.lab.servers import embedded_servers
from billing_tasks.ledger.migrations import upgrade
from billing_tasks.ledger.rows import DeadLetterState
from billing_tasks.model.ids import new_request_id
from billing_tasks.runtime import Runtime
from tests.conftest import Billing
from tests.worker.conftest import Processes, eventually

RUNBOOK = Path(__file__).resolve().parents[3] / "docs" / "runbook.md"


class Page:
    """One symptom's part of the runbook: its commands, in the order printed."""

    def __init__(self, symptom: str, environment: dict[str, str]) -> None:
        text = RUNBOOK.read_text(encoding="utf-8")
        begin = re.search(rf"^(#+) {re.escape(symptom)}$", text, re.MULTILINE)
        assert begin, f"the runbook has no part {symptom!r}"
        rest = text[begin.end() :]
        end = re.search(r"^#+ ", rest, re.MULTILINE)
        part = rest[: end.start()] if end else rest
        blocks = re.findall(r"^```sh\n(.*?)^```", part, re.MULTILINE | re.DOTALL)
        self.commands = [shlex.split(line, comments=True) for block in blocks for line in block.splitlines()]
        self.environment = environment
        self._next = 0

    def follow(self, beginning: str, *, status: int = 0, **blanks: object) -> str:
        """Run the next command of the page, which must begin like this, its words in capitals filled in."""
        words = self.commands[self._next]
        self._next += 1
        assert " ".join(words).startswith(f"billing-tasks {beginning}"), f"the runbook's next command is {words}"
        return self.run(words, status=status, **blanks)

    def again(self, *, status: int = 0, **blanks: object) -> str:
        """The command before, once more."""
        return self.run(self.commands[self._next - 1], status=status, **blanks)

    def run(self, words: list[str], *, status: int, **blanks: object) -> str:
        filled = [re.sub(r"\b[A-Z_]{4,}\b", lambda blank: str(blanks[blank[0]]), word) for word in words[1:]]
        done = subprocess.run(
            [str(Path(sys.executable).with_name("billing-tasks")), *filled],
            env={**os.environ, **self.environment, "COLUMNS": "160"},
            capture_output=True,
            text=True,
            check=False,
            timeout=60,
        )
        assert done.returncode == status, f"{filled} ended with {done.returncode}:\n{done.stdout}\n{done.stderr}"
        return done.stdout + done.stderr

    def finished(self) -> bool:
        return self._next == len(self.commands)


def number_in(listed: str, request_id: str) -> int:
    """The number that `dead-letters list` shows for a request."""
    line = next(line for line in listed.splitlines() if request_id in line)
    return int(line.split()[0])


@pytest.fixture
def own(tmp_path: Path) -> Iterator[Billing]:
    """The product over servers of this test's own, which it may stop."""
    with embedded_servers(tmp_path / "own", fast=True) as servers:
        upgrade(servers.database_url)
        urls = {"redis_url": servers.redis_url, "database_url": servers.database_url}
        settings = Settings(**urls)
        runtime = Runtime(settings)
        environment = {f"BILLING_{name.upper()}": value for name, value in urls.items()}
        yield Billing(settings, runtime, Bookkeeper(runtime), Accounts(runtime), servers, environment)
        runtime.close()


@pytest.mark.slow
def test_a_refund_that_failed_while_postgresql_was_down_is_found_and_booked(own: Billing, processes: Processes) -> None:
    payer = own.payer()
    early, booked_before, held = own.reserve(payer, 1000), own.reserve(payer, 500), own.reserve(payer, 100)
    own.use(booked_before, 500)
    own.bk.refund_charge(user_id=payer[0], request_id=early.request_id, refund_id="early", quota=300)
    processes.worker(own)
    attempted = "select count(*) from billing.dead_letters where attempts = 1 and state = 'retrying'"
    eventually(lambda: own.sql(attempted) == [(1,)], what="the refund came before its charge, and failed")
    page = Page("PostgreSQL is down", own.environment)

    own.servers.postgres.stop()
    own.use(early, 1000)
    own.bk.refund_charge(user_id=payer[0], request_id=booked_before.request_id, refund_id="meanwhile", quota=200)
    with Celery(broker=own.settings.celery_broker_url, set_as_current=False) as program:
        program.send_task("billing.refund", kwargs={"user_id": payer[0], "request_id": held.request_id})
    seen = page.follow("status", status=1)
    assert "PostgreSQL can't be reached" in seen
    eventually(lambda: b"Retry in" in processes.logs[0].read_bytes(), what="workers try again by themselves")
    own.servers.postgres.start()

    page.follow("status")
    eventually(lambda: re.search(r"events waiting +0\s", page.again()), seconds=90, what="the backlog drains")
    assert early.request_id in page.follow("dead-letters list")
    assert "charge found, 1,000 of 1,000 left: would give back 300" in page.follow("dead-letters retry")
    assert "booked now" in page.follow("dead-letters retry")
    assert "All guarantees hold" in page.follow("verify")

    assert page.finished()
    user = own.accounts.user(payer[0])
    assert (user.quota, user.used_quota) == (1_000_000 - 1000 - 500 + 300 + 200, 1000 + 500 - 300 - 200)
    assert own.available(payer[0]) == user.quota  # the refunded hold is gone
    (dead_letter,) = own.runtime.ledger.dead_letters()
    assert (dead_letter.state, dead_letter.handled_comment) == ("resolved", "PostgreSQL was down")


def test_a_refund_that_was_refused_for_good_is_understood_and_dealt_with(
    billing: Billing, processes: Processes
) -> None:
    payer = billing.payer()
    reservation = billing.reserve(payer, 1000)
    billing.use(reservation, 1000)
    refund = {"user_id": payer[0], "request_id": reservation.request_id}
    billing.bk.refund_charge(**refund, refund_id="case-1", quota=700)
    billing.bk.refund_charge(**refund, refund_id="case-2", quota=400)
    processes.worker(billing)
    ledger = billing.runtime.ledger
    eventually(lambda: ledger.dead_letters(states=[DeadLetterState.FAILED]), what="the second refund is refused")

    page = Page("Dead letters appear", billing.environment)
    listed = page.follow("dead-letters list")
    assert "waits for a person" in listed
    number = number_in(listed, reservation.request_id)
    assert "dead-letters discard" in page.follow("dead-letters show", NUMBER=number)
    assert "Left out 1 that are refused for ever (above_charge 1)" in page.follow("dead-letters retry --all --dry-run")

    page = Page("A refund was refused for good", billing.environment)
    number = number_in(page.follow("dead-letters list"), reservation.request_id)
    shown = page.follow("dead-letters show", NUMBER=number)
    left = re.search(r"charge found, (\d+) of 1,000 left, 400 wanted", shown)
    assert left
    assert "case-1" not in page.follow("log", REQUEST=reservation.request_id)
    blanks = {"USER": payer[0], "REQUEST": reservation.request_id, "NEW_ID": "case-2-rest", "LEFT": left[1]}
    assert "Filed" in page.follow("refund", **blanks)
    assert "discarded, stays unbooked" in page.follow("dead-letters discard", NUMBER=number, **blanks)
    logged = page.follow("log", **blanks)
    eventually(lambda: page.again(**blanks).count(" refund ") == 2, what="the new refund is in the log")
    assert reservation.request_id in logged
    assert "No dead letters." in page.follow("dead-letters list")

    assert page.finished()
    assert billing.accounts.user(payer[0]).quota == 1_000_000
    assert ledger.get_dead_letter(number).handled_comment.endswith("went back as case-2-rest")  # type: ignore[union-attr]


def test_every_command_for_dead_letters_works_in_the_order_printed(billing: Billing, processes: Processes) -> None:
    payer, charged = billing.payer(), new_request_id()
    wanted = {"user_id": payer[0], "refund_id": "r", "quota": 5}
    billing.bk.refund_charge(request_id=charged, **wanted)
    processes.worker(billing)
    eventually(billing.runtime.ledger.dead_letters, what="the refund waits for its charge")
    page = Page("Dead letters appear", billing.environment)
    number = number_in(page.follow("dead-letters list"), charged)
    page.follow("dead-letters show", NUMBER=number)
    assert "no charge yet" in page.follow("dead-letters retry --all --dry-run")
    assert "still refused, no_charge" in page.follow("dead-letters retry --all --comment", status=1)
    assert "still refused" in page.follow("dead-letters retry", NUMBER=number, status=1)
    assert "stays unbooked" in page.follow("dead-letters discard", NUMBER=number)
    assert "reopened" in page.follow("dead-letters reopen", NUMBER=number)
    assert page.finished()
