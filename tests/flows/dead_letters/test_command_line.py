"""What a person types: find dead letters, understand one, retry or discard many, and the exit status."""

from __future__ import annotations

import os
import pty
import subprocess
import sys

import pytest

from billing_tasks.admin import Admin
from billing_tasks.cli import dead_letter_text
from billing_tasks.errors import InvalidRequest
from billing_tasks.flows.dead_letters import record
from billing_tasks.model.events import Kind
from billing_tasks.model.ids import new_request_id
from billing_tasks.model.posting import PostOutcome
from billing_tasks.runtime import Runtime
from billing_tasks.settings import Settings
from tests.conftest import Billing
from tests.flows.dead_letters.conftest import DeadLetterDriver, Run, as_json, charge, refund_of, usage


@pytest.fixture
def kept(dead_letters: DeadLetterDriver) -> dict[str, int]:
    """One dead letter of each sort."""
    payer, other = dead_letters.billing.payer(), dead_letters.billing.payer()
    request_id = charge(dead_letters.billing, payer)
    numbers = {
        "due refund": dead_letters.keep(refund_of(payer[0], request_id, 300, "case-1")),
        "early refund": dead_letters.keep(refund_of(other[0], new_request_id(), 10, "case-2")),
        "above": dead_letters.keep(refund_of(payer[0], request_id, 5000, "case-3"), "above_charge"),
        "conflict": dead_letters.keep(usage(payer, 999, request_id, kind=Kind.CONFLICT), "conflict"),
        "stranger": dead_letters.keep(usage((999, 7), 50), "unknown_user"),
    }
    dead_letters.billing.sql(
        "update billing.dead_letters set first_seen = now() - interval '3 hours' where id = %s", numbers["early refund"]
    )
    return numbers


def listed(run: Run, *options: object) -> set[int]:
    return {dead_letter["id"] for dead_letter in as_json(run("list", *options, "--json"))}


def test_filters_find_dead_letters_and_narrow_each_other(
    run: Run, kept: dict[str, int], dead_letters: DeadLetterDriver
) -> None:
    early, user = kept["early refund"], dead_letters.get(kept["due refund"]).user_id
    assert listed(run) == set(kept.values())
    assert listed(run, "--state", "failed") == {
        kept["above"],
        kept["conflict"],
        kept["stranger"],
    }
    assert listed(run, "--kind", "refund", "--user", user) == {kept["due refund"], kept["above"]}
    assert listed(run, "--request", dead_letters.get(early).request_id) == {early}
    assert listed(run, "--reason", "unknown_user") == {kept["stranger"]}
    assert listed(run, "--before", "2h") == {early}
    assert listed(run, "--since", "2h") == set(kept.values()) - {early}
    assert listed(run, "--since", "4h", "--before", "2000-01-01T10:00") == set()
    assert listed(run, "--limit", 1) == {max(kept.values())}
    with pytest.raises(InvalidRequest, match="90s, 30m, 2h"):
        run("list", "--since", "yesterday")


def test_the_list_says_when_the_next_attempt_is_and_who_is_waited_for(run: Run, kept: dict[str, int]) -> None:
    told = run("list").output
    assert "next attempt in 10 s, 0 of 8" in told or "next attempt in 9 s, 0 of 8" in told
    assert told.count("waits for a person") == 3


def test_a_narrow_terminal_leaves_ids_in_one_piece(
    run: Run, kept: dict[str, int], dead_letters: DeadLetterDriver, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(dead_letter_text.console, "width", 80)
    assert dead_letters.get(kept["above"]).request_id in run("list").output


def test_a_bulk_retry_leaves_out_what_is_refused_for_ever_and_says_so(run: Run, kept: dict[str, int]) -> None:
    told = run("retry", "--all", "--comment", "after the outage", status=1).output
    assert f"{kept['due refund']}: booked now" in told
    assert f"{kept['early refund']}: still refused, no_charge" in told
    assert "Together: booked now 1, still refused 1 (no_charge 1)." in told
    assert "Left out 3 that are refused for ever (above_charge 1, conflict 1, unknown_user 1)" in told
    again = as_json(run("retry", "--all", "--json", status=1))
    assert (again["outcomes"], again["left_out"]) == (
        {"no_charge": 1},
        {"above_charge": 1, "conflict": 1, "unknown_user": 1},
    )


def test_what_is_refused_for_ever_is_retried_by_number_or_reason(
    run: Run, kept: dict[str, int], dead_letters: DeadLetterDriver
) -> None:
    assert "still refused, conflict" in run("retry", kept["conflict"], status=1).output
    dead_letters.billing.accounts.create_user(999)
    dead_letters.billing.accounts.create_token(999, 7)
    assert "booked now" in run("retry", "--reason", "unknown_user").output


def test_the_exit_status_is_1_only_while_something_is_open(run: Run, kept: dict[str, int]) -> None:
    number = kept["due refund"]
    assert f"{number}: booked now" in run("retry", number).output
    assert f"{number}: had been booked before, nothing charged again" in run("retry", number).output
    assert "There is no dead letter 12345" in run("retry", 12345, status=1).output
    assert "No open dead letters match." in run("retry", "--kind", "release").output


def test_a_dry_run_answers_for_each_dead_letter_and_changes_nothing(
    run: Run, kept: dict[str, int], dead_letters: DeadLetterDriver
) -> None:
    told = run("retry", "--all", "--dry-run").output
    assert "charge found, 1,000 of 1,000 left: would give back 300" in told
    assert "Nothing was changed." in told
    assert "Left out 3" in told
    asked = as_json(run("retry", *kept.values(), "--dry-run", "--json"))
    assert [result["outcome"] for result in asked["results"]] == [
        *("posted", "no_charge", "above_charge", "conflict", "unknown_user")
    ]
    assert all(dead_letters.history(number) == ["kept"] for number in kept.values())


def test_many_dead_letters_are_told_by_outcome_and_only_the_refused_by_line(
    run: Run, dead_letters: DeadLetterDriver
) -> None:
    payer = dead_letters.billing.payer()
    for quota in range(1, 31):
        dead_letters.keep(usage(payer, quota))
    early = dead_letters.keep(refund_of(payer[0], new_request_id()))
    told = run("retry", "--all", status=1).output
    assert "Together: booked now 30, still refused 1 (no_charge 1)." in told
    assert f"{early}: still refused" in told
    assert told.count("\n") == 2


def test_a_limit_takes_the_oldest_and_says_that_more_match(
    run: Run, kept: dict[str, int], dead_letters: DeadLetterDriver
) -> None:
    told = run("retry", "--kind", "refund", "--limit", 1, "--dry-run").output
    assert f"{min(kept.values())}: " in told
    assert "More match" in told


@pytest.mark.parametrize(
    "words",
    [
        *(("retry",), ("retry", 1, "--kind", "refund"), ("retry", "--state", "discarded")),
        *(("discard", "--comment", "x"), ("discard", 1), ("discard", 1, "--comment", " ")),
        ("discard", "--all", "--comment", "no terminal, no --yes"),
    ],
)
def test_a_command_that_does_not_say_enough_does_nothing(
    run: Run, kept: dict[str, int], dead_letters: DeadLetterDriver, words: tuple[object, ...]
) -> None:
    run(*words, status=2)
    assert all(dead_letters.history(number) == ["kept"] for number in kept.values())


def test_a_discard_by_filter_asks_first(billing: Billing, kept: dict[str, int], dead_letters: DeadLetterDriver) -> None:
    command = [sys.executable, "-c", "from billing_tasks.cli import main; main()", "dead-letters", "discard"]

    def answer(text: str) -> tuple[int, str]:
        ours, theirs = pty.openpty()
        with os.fdopen(ours, "wb") as terminal:
            terminal.write(text.encode())
            terminal.flush()
            done = subprocess.run(
                [*command, "--kind", "refund", "--comment", "test"],
                env={**os.environ, **billing.environment},
                stdin=theirs,
                capture_output=True,
                text=True,
                check=False,
            )
            os.close(theirs)
        return done.returncode, done.stderr

    status, asked = answer("n\n")
    assert (status, dead_letters.get(kept["above"]).state) == (1, "failed")
    assert "Discard 3 dead letters (above_charge 1, no_charge 2)?" in asked
    assert answer("y\n")[0] == 0
    assert dead_letters.get(kept["above"]).state == "discarded"


def test_a_discard_tells_what_would_be_lost_and_can_be_taken_back(
    run: Run, kept: dict[str, int], dead_letters: DeadLetterDriver
) -> None:
    number = kept["due refund"]
    assert "would give back 300" in run("discard", number, "--comment", "test", "--dry-run").output
    assert dead_letters.history(number) == ["kept"]
    run("discard", "--kind", "refund", "--comment", "test", "--actor", "ann", "--yes")
    assert dead_letters.get(number).state == "discarded"
    assert "discarded by ann, nothing done" in run("retry", number, status=1).output
    run("reopen", number, "--comment", "no test", "--actor", "bob")
    assert "booked now" in run("retry", number).output
    assert "was booked by" in run("discard", number, "--comment", "too late", status=1).output
    assert dead_letters.history(number) == ["kept", "discarded", "reopened", "posted"]


def test_show_tells_the_story_and_the_next_commands(
    run: Run, kept: dict[str, int], dead_letters: DeadLetterDriver
) -> None:
    above = run("show", kept["above"]).output
    assert "a refund of 5,000 quota" in above
    assert "refused: charge found, 1,000 of 1,000 left, 5,000 wanted" in above
    assert f"dead-letters discard {kept['above']} --comment" in above
    assert f"dead-letters retry {kept['above']}" not in above
    assert "users create --id 999" in run("show", kept["stranger"]).output
    run("retry", kept["early refund"], "--actor", "ann", "--comment", "the user called", status=1)
    assert (
        "Nothing is charged under this request_id yet. (why: the user called)"
        in run("show", kept["early refund"]).output
    )
    shown = as_json(run("show", kept["early refund"], "--json"))
    assert [event["what"] for event in shown["history"]] == ["kept", "refused"]
    assert shown["retry_now"]["would"] == "no_charge"


def test_nothing_from_outside_reaches_the_terminal_or_the_shell_as_a_command(
    run: Run, dead_letters: DeadLetterDriver
) -> None:
    evil = "\x1b[2J; rm -rf ~ #[red]"
    kept = record.of_event(usage((1, 1), 5, content=evil), str(PostOutcome.UNKNOWN_USER), evil)
    ledger = dead_letters.billing.runtime.ledger
    dead_letter, _ = ledger.add_dead_letter(
        kind=evil, request_id=evil, user_id=1, payload=kept.payload, reason=evil, error=evil, fingerprint=evil
    )
    shown = run("show", dead_letter.id).output
    assert "log --request" not in shown, "nothing is booked under what is no id"
    assert all(
        "\x1b" not in run(*words).output
        for words in (("list",), ("show", dead_letter.id), ("retry", "--all", "--dry-run"))
    )


def test_three_silences_in_a_row_end_a_bulk_retry(dead_letters: DeadLetterDriver) -> None:
    """The rest would wait for nothing, each for its time-out."""
    payer = dead_letters.billing.payer()
    numbers = [dead_letters.keep(usage(payer, quota)) for quota in range(1, 9)]
    away = Runtime(Settings(database_url="postgresql://user@/nothing?host=/nonexistent"))
    results = list(Admin(away).dead_letters.preview_many(numbers))

    assert [(result.dead_letter, result.outcome) for result in results] == [(n, "unavailable") for n in numbers[:3]]
    away.close()
