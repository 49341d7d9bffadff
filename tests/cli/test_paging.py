"""Lists by page and by new filters, and the task that takes them, too: as an operator meets them."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from click.testing import Result
from typer.testing import CliRunner

from billing_tasks.cli import app
from billing_tasks.errors import InvalidRequest
from billing_tasks.model.ids import new_request_id
from billing_tasks.runtime import runtime
from tests.conftest import Billing
from tests.flows.dead_letters.conftest import DeadLetterDriver, charge, refund_of, usage
from tests.worker.tasks import module as tasks
from tests.worker.tasks import task_of

Run = Callable[..., Result]


@pytest.fixture
def run(billing: Billing, monkeypatch: pytest.MonkeyPatch) -> Iterator[Run]:
    """Runs a command in this process, on the test's servers."""
    for name, value in billing.environment.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("COLUMNS", "200")
    runtime.cache_clear()

    def invoke(*words: object, status: int = 0) -> Result:
        result = CliRunner().invoke(app, [str(word) for word in words])
        if result.exception and not isinstance(result.exception, SystemExit):
            raise result.exception
        assert result.exit_code == status, result.output
        return result

    yield invoke
    if runtime.cache_info().currsize:
        runtime().close()
    runtime.cache_clear()


def as_json(result: Result) -> Any:
    return json.loads(result.stdout)


def every_page(run: Run, *words: object) -> list[Any]:
    """All rows, page by page, as the hints say."""
    rows, more = [], ()
    while True:
        result = run(*words, *more, "--json")
        rows += as_json(result)
        hint = re.search(r"--cursor (\S+)", result.stderr)
        if hint is None:
            return rows
        more = ("--cursor", hint[1])


def test_the_log_is_read_by_token_kind_time_and_page(run: Run, billing: Billing) -> None:
    payer, other = billing.payer(), billing.payer()
    for _ in range(3):
        charge(billing, payer)
        charge(billing, other)
    kinds = {row["kind"] for row in as_json(run("log", "--token", payer[1], "--json"))}
    assert "consume" in kinds
    assert len(as_json(run("log", "--token", payer[1], "--kind", "consume", "--json"))) == 3
    assert len(every_page(run, "log", "--user", payer[0], "--kind", "consume", "--limit", 2)) == 3
    everything = every_page(run, "log", "--limit", 3)
    assert everything == as_json(run("log", "--limit", 100, "--json"))
    assert as_json(run("log", "--since", "1h", "--limit", 100, "--json")) == everything
    assert as_json(run("log", "--before", "1h", "--json")) == []
    assert "--cursor" in run("log", "--limit", 1).stderr
    with pytest.raises(InvalidRequest, match="kinds are consume, release"):
        run("log", "--kind", "gift")
    with pytest.raises(InvalidRequest, match="is no cursor"):
        run("log", "--cursor", "rubbish")


def test_a_requests_log_is_told_in_the_order_it_happened(run: Run, billing: Billing) -> None:
    payer = billing.payer()
    request_id = charge(billing, payer)
    for number in range(3):
        billing.bk.refund_charge(user_id=payer[0], request_id=request_id, refund_id=f"case-{number}", quota=1)
        billing.settle()
    told = as_json(run("log", "--request", request_id, "--limit", 1, "--json"))
    assert [row["kind"] for row in told] == ["consume", "refund", "refund", "refund"]
    assert len(as_json(run("log", "--request", request_id, "--kind", "refund", "--json"))) == 3


def test_dead_letters_are_listed_by_page_and_found_by_their_own_ids(run: Run, billing: Billing) -> None:
    dead_letters, payer = DeadLetterDriver(billing), billing.payer()
    numbers = [dead_letters.keep(refund_of(payer[0], new_request_id(), 5, f"case-{n}")) for n in range(5)]
    dead_letters.keep(usage((999, 7), 50, client_key="order-9"), "unknown_user")
    assert [row["id"] for row in every_page(run, "dead-letters", "list", "--kind", "refund", "-n", 2)] == numbers[::-1]
    told = run("dead-letters", "list", "-n", 2)
    assert "Only the newest 2 are shown; --limit shows more." in told.output
    assert "the same command with --cursor " in told.stderr
    assert "--cursor" not in run("dead-letters", "list", "-n", 6).output

    by_refund = as_json(run("dead-letters", "list", "--refund-id", "case-1", "--refund-id", "case-2", "--json"))
    assert [row["id"] for row in by_refund] == [numbers[2], numbers[1]]
    (by_key,) = as_json(run("dead-letters", "list", "--client-key", "order-9", "--json"))
    assert by_key["reason"] == "unknown_user"
    results = as_json(run("dead-letters", "retry", "--refund-id", "case-3", "--json", status=1))["results"]
    assert [(result["dead_letter"], result["outcome"]) for result in results] == [(numbers[3], "no_charge")]
    assert list(results[0]) == ["dead_letter", "request_id", "outcome", "says", "open"]
    assert results[0]["says"].startswith("still refused, no_charge: Nothing is charged")
    run("dead-letters", "discard", "--client-key", "order-9", "--comment", "test", "--yes")
    assert dead_letters.get(by_key["id"]).state == "discarded"


def test_incidents_are_listed_by_cause(run: Run, billing: Billing) -> None:
    assert "No incidents." in run("incidents").output
    for shard in (3, 5):
        billing.sql(
            "insert into billing.incidents (shard, epoch, kind, from_seq, to_seq, events_bound, note, unseen_from,"
            " unseen_to) values (%s, 1, 'new_epoch', 1, 9, 4, 'Redis came back empty', now(), now())",
            shard,
        )
    told = re.sub(r"\s+", " ", run("incidents").output)
    assert re.search(r"new_epoch shard 3, 5 8 \S+ \S+ to \S+ Redis came back empty", told), told
    assert [row["shard"] for row in every_page(run, "incidents", "--limit", 1)] == [5, 3]
    assert [row["shard"] for row in as_json(run("incidents", "--shard", 3, "--json"))] == [3]


def test_the_task_chooses_by_refund_id_and_key_and_knows_the_words_of_the_release_before(
    billing: Billing, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tasks, "runtime", lambda: billing.runtime)
    dead_letters, payer = DeadLetterDriver(billing), billing.payer()
    first = dead_letters.keep(refund_of(payer[0], charge(billing, payer), 5, "case-1"))
    second = dead_letters.keep(usage(payer, 5, client_key="order-9"))
    assert task_of("retry_failed")(refund_ids=["case-1"], dry_run=True)["would"] == {"posted": 1}
    assert task_of("retry_failed")(refund_ids=["case-1"], who="ann", why="the outage is over")["numbers"] == [first]
    assert task_of("retry_failed")(client_keys=["order-9"], actor="bob", comment="again")["numbers"] == [second]
    task_of("refund_one").apply(
        kwargs={"dead_letter": first, "attempt": 1, "who": "ann", "why": "old words"}, throw=True
    )
    task_of("consume_one").apply(kwargs={"dead_letter": second, "attempt": 1, "actor": "bob"}, throw=True)
    said = {
        number: [(line.actor, line.comment) for line in dead_letters.ledger.dead_letter_history(number)]
        for number in (first, second)
    }
    assert said[first] == [("", ""), ("ann", "the outage is over"), ("ann", "old words")]
    assert said[second] == [("", ""), ("bob", "again"), ("bob", "booked now")]
    for wrong in ({"refund_ids": []}, {"client_keys": "order-9"}, {"refund_ids": ["x"] * 101}, {"refund_id": "x"}):
        with pytest.raises(InvalidRequest):
            task_of("retry_failed")(**wrong)
