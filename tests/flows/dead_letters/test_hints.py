"""What `dead-letters show` tells a person to type, typed: each command is one that runs."""

from __future__ import annotations

import re
import shlex
from collections.abc import Callable

import pytest
from typer.testing import CliRunner

from billing_tasks.cli import app
from billing_tasks.cli.show import command
from billing_tasks.errors import BillingError
from billing_tasks.flows.dead_letters import record
from billing_tasks.flows.requests import intake
from billing_tasks.flows.requests.release import release_event
from billing_tasks.holds.replies import parse_entry
from billing_tasks.model.ids import new_request_id
from tests.conftest import Billing, Payer
from tests.flows.dead_letters.conftest import DeadLetterDriver, Run, charge, refund_of, usage


def _unknown_user(driver: DeadLetterDriver, payer: Payer) -> int:
    return driver.keep(usage((payer[0] + 777, payer[1] + 777), 50), "unknown_user")


def _unknown_token(driver: DeadLetterDriver, payer: Payer) -> int:
    return driver.keep(usage((payer[0], payer[1] + 777), 50), "unknown_token")


def _above_charge(driver: DeadLetterDriver, payer: Payer) -> int:
    refund = refund_of(payer[0], charge(driver.billing, payer), 1_060, "it's case 17; $(reboot)")
    return driver.keep(refund, "above_charge")


def _no_charge(driver: DeadLetterDriver, payer: Payer) -> int:
    return driver.keep(refund_of(payer[0], new_request_id()))


def _conflict(driver: DeadLetterDriver, payer: Payer) -> int:
    return driver.keep(usage(payer, 41, charge(driver.billing, payer)), "conflict")


def _books_now(driver: DeadLetterDriver, payer: Payer) -> int:
    return driver.keep(usage(payer, 50))


def _release(driver: DeadLetterDriver, payer: Payer) -> int:
    return driver.keep(release_event(new_request_id(), *payer, 50, reason="", expired=False), "unknown_user")


def _foreign_message(driver: DeadLetterDriver, payer: Payer) -> int:
    b = driver.billing
    message = {"user_id": payer[0], "request_id": "chatcmpl-9AbC$(reboot)", "refund_id": "r-1"}
    with pytest.raises(BillingError):
        b.runtime.run(intake.refund_message(message, task_id="task; 'x'", commands=b.runtime.commands))
    return driver.only().id


def _strange_entry(driver: DeadLetterDriver, payer: Payer) -> int:
    entry = parse_entry((b"5-7", [b"who", b"are you"]))
    (number,) = driver.billing.runtime.run(record.keep([record.of_entry(entry, "no event")]))
    return number


MADE: dict[str, Callable[[DeadLetterDriver, Payer], int]] = {
    make.__name__.strip("_"): make
    for make in (
        *(_unknown_user, _unknown_token, _above_charge, _no_charge, _conflict, _books_now, _release),
        *(_foreign_message, _strange_entry),
    )
}


def _type(line: str, *, statuses: tuple[int, ...] = (0,)) -> str:
    words = shlex.split(line, comments=True)
    assert words[0] == command(), line
    done = CliRunner().invoke(app, words[1:], input="y\n", env={"COLUMNS": "200"})
    assert done.exit_code in statuses, (line, done.output, done.exception)
    return done.output


def _hints(number: int) -> list[str]:
    told = _type(f"{command()} dead-letters show {number}")
    part = re.search(r"What you can do\n(.*?)\n\n", told, re.DOTALL)
    assert part, told
    return part[1].splitlines()


@pytest.mark.parametrize("make", MADE.values(), ids=MADE)
def test_every_hint_is_a_command_that_runs(
    dead_letters: DeadLetterDriver, billing: Billing, run: Run, make: Callable[[DeadLetterDriver, Payer], int]
) -> None:
    number = make(dead_letters, billing.payer())
    assert run("list", "--all").exit_code == 0  # which also points the command line at this test's servers
    seen: set[str] = set()
    while hints := [line for line in _hints(number) if line not in seen]:
        for line in hints:
            seen.add(line)
            if " discard " in line or " reopen " in line:
                continue
            # A retry that is refused once more says so by its status.
            _type(line, statuses=(0, 1) if " retry " in line else (0,))
    if dead_letters.get(number).open:
        (discard,) = [line for line in _hints(number) if " discard " in line]
        _type(discard)
        (reopen,) = _hints(number)
        _type(reopen)
    billing.settle()
