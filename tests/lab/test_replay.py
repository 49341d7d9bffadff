"""Replay: the plan follows from the seed; every request ends once, as the gateway was told, and the report says so."""

from __future__ import annotations

import csv
import json
import re
import signal
import subprocess
from collections import Counter
from collections.abc import Callable
from contextlib import closing
from dataclasses import fields, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from billing_tasks.admin.accounts import Accounts
from billing_tasks.cli import main
from billing_tasks.cli.show import usd
from billing_tasks.flows.audit import verify
from billing_tasks.flows.settlement import settle
from billing_tasks.lab.demo import run_demo
from billing_tasks.lab.replay.accounts import Ids, next_free_id, plan_accounts
from billing_tasks.lab.replay.endings import Outcome, differences, endings_of
from billing_tasks.lab.replay.options import Options, parse_mix
from billing_tasks.lab.replay.plan import Fate, asked_for, make_plan
from billing_tasks.lab.replay.problems import BadMix, NotSettled, ReplayError
from billing_tasks.lab.replay.report import EXPORT_COLUMNS
from billing_tasks.lab.replay.requests import PlannedRequest, Tally, Told, make_requests, put_together, share_out
from billing_tasks.lab.replay.run import NoAudience, replay
from billing_tasks.lab.servers.embedded import embedded_servers
from billing_tasks.lab.stack import Stack
from billing_tasks.lab.trace import generate
from billing_tasks.ledger.migrations import upgrade
from billing_tasks.ledger.rows import EntryRow
from billing_tasks.pricing import Price, PriceBook
from billing_tasks.runtime import Runtime
from billing_tasks.settings import Settings

TRACE = generate(200, seed=7)
OPTIONS = Options(users=12, fail_rate=0.05, abandon_rate=0.04, hold_ttl_seconds=1, settle_timeout_seconds=30, seed=3)


def price_of(group: str, model: str) -> Price:
    return PriceBook().price(group=group, model=model)


# -- the plan ---------------------------------------------------------------------------------------------


def test_the_plan_follows_from_the_seed() -> None:
    assert make_plan(TRACE, OPTIONS) == make_plan(TRACE, OPTIONS)
    assert make_plan(TRACE, OPTIONS) != make_plan(TRACE, replace(OPTIONS, seed=4))


def test_the_plan_does_not_depend_on_how_it_is_run() -> None:
    otherwise = replace(OPTIONS, concurrency=1, processes=5, speed=10.0, hold_ttl_seconds=60)

    assert make_plan(TRACE, otherwise) == make_plan(TRACE, OPTIONS)


def test_a_changed_rate_moves_no_other_decision() -> None:
    plan = make_plan(TRACE, OPTIONS)
    failing = make_plan(TRACE, replace(OPTIONS, fail_rate=0.5))

    assert [replace(r, fate=Fate.USED) for r in plan.requests] == [replace(r, fate=Fate.USED) for r in failing.requests]


def test_fates_come_at_their_rates() -> None:
    plan = make_plan(generate(4000), replace(OPTIONS, fail_rate=0.2, abandon_rate=0.1))
    fates = Counter(request.fate for request in plan.requests)

    assert 0.17 < fates[Fate.FAILS] / 4000 < 0.23
    assert 0.08 < fates[Fate.ABANDONED] / 4000 < 0.12


def test_a_request_uses_a_token_of_its_own_user() -> None:
    plan = make_plan(TRACE, OPTIONS)

    assert all(request.token in plan.tokens[request.user] for request in plan.requests)


@pytest.mark.parametrize("generated", [0, 1, 16, 17, 128, 129, 1000])
def test_a_client_asks_for_at_least_what_it_gets_unless_it_is_tight(generated: int) -> None:
    assert asked_for(generated, tight=False) >= generated
    assert asked_for(1000, tight=True) == 500


def test_a_few_are_poor_and_all_others_can_pay_for_all_requests() -> None:
    plan = make_plan(TRACE, OPTIONS)
    planned = plan_accounts(plan, OPTIONS, price_of)
    needs: Counter[int] = Counter()
    for request in plan.requests:
        price = price_of(plan.groups[request.user], plan.models[request.model])
        needs[request.user] += price.estimate(request.prompt_tokens, request.max_tokens)
    poor = [user for user, need in needs.items() if planned.users[user].quota < need]

    assert len(poor) == 1  # of twelve
    assert {type(quota) for quota in [u.quota for u in planned.users] + [t.quota for t in planned.tokens]} == {int}
    assert planned == plan_accounts(plan, OPTIONS, price_of)


def test_some_tokens_are_limited_and_some_are_not() -> None:
    planned = plan_accounts(make_plan(TRACE, OPTIONS), OPTIONS, price_of)

    assert {token.unlimited for token in planned.tokens} == {True, False}
    assert len({token.user for token in planned.tokens}) == 12 < len(planned.tokens)


def test_a_mix_is_names_and_weights() -> None:
    assert parse_mix("gpt-4o=5, gpt-4o-mini") == (("gpt-4o", 5), ("gpt-4o-mini", 1))


@pytest.mark.parametrize(
    "text", ["", "gpt-4o=", "gpt-4o=-1", "gpt-4o=1.5", "=3", "gpt-4o=1,gpt-4o=2", "gpt-4o=0", "a,,b"]
)
def test_a_mix_that_makes_no_sense_is_refused(text: str) -> None:
    with pytest.raises(BadMix):
        parse_mix(text)


@pytest.mark.parametrize(
    "wrong", [{"fail_rate": 0.6, "abandon_rate": 0.6}, {"fail_rate": -0.1}, {"speed": -1.0}, {"users": 0}]
)
def test_options_that_make_no_sense_are_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(BadMix):
        Options(**wrong)


@pytest.mark.parametrize("taken", [[], [1], [2], [1, 2, 3], [5, 999], [1023, 1024], [2**40], [3, 2**52]])
def test_the_next_free_id_is_above_all_in_use(taken: list[int]) -> None:
    class Row:
        def __init__(self, number: int) -> None:
            self.id = number

    free = next_free_id(lambda after_id: [Row(number) for number in taken if number > after_id][:1])

    assert free == max(taken, default=0) + 1


@pytest.mark.parametrize("processes", [1, 2, 3, 7])
def test_shares_come_together_in_the_trace_s_order(processes: int) -> None:
    requests = make_requests(make_plan(TRACE, OPTIONS), Ids(1, 1, 1))
    tallies = []
    for share in share_out(requests, processes):
        tally = Tally.of_size(len(share))
        for index, request in enumerate(share):
            tally.quota[index] = request.row
            tally.request_ids[index] = str(request.row)
            if request.row % 5 == 0:
                tally.because(index, Told.REFUSED, f"reason {request.row % 10}")
            else:
                tally.told[index] = Told.CONSUMED
        tallies.append(tally)

    whole = put_together(tallies, len(requests))

    assert list(whole.quota) == list(range(200))
    assert whole.request_ids == [str(row) for row in range(200)]
    assert [whole.reason_of(row) for row in (0, 5, 7, 195)] == ["reason 0", "reason 5", "", "reason 5"]
    assert whole.told[5] == Told.REFUSED
    assert whole.told[6] == Told.CONSUMED


# -- what the ledger says ---------------------------------------------------------------------------------


def entry(request: PlannedRequest, kind: str, **changes: Any) -> EntryRow:
    """An entry as the ledger would have it."""
    blank: dict[str, Any] = {field.name: 0 for field in fields(EntryRow)}
    blank |= {"kind": kind, "user_id": request.user_id, "token_id": request.token_id, "channel_id": request.channel_id}
    blank |= {"prompt_tokens": request.prompt_tokens, "completion_tokens": request.completion_tokens}
    blank |= {"model_name": request.model, "created_at": datetime(2026, 1, 1, tzinfo=UTC), **changes}
    return EntryRow(**blank)


def told(request: PlannedRequest, what: Told, quota: int = 0) -> Tally:
    tally = Tally.of_size(1)
    tally.told[0], tally.quota[0], tally.request_ids[0] = what, quota, "id"
    return tally


REQUEST = make_requests(make_plan(TRACE, OPTIONS), Ids(1, 1, 1))[0]
USED = entry(REQUEST, "consume", quota=70)
RELEASED = entry(REQUEST, "release", expired=False)
EXPIRED = entry(REQUEST, "release", expired=True)


@pytest.mark.parametrize(
    ("what", "entries", "outcome"),
    [
        (Told.CONSUMED, [USED], Outcome.CONSUMED),
        (Told.REFUNDED, [RELEASED], Outcome.REFUNDED),
        (Told.HELD, [EXPIRED], Outcome.EXPIRED),
        (Told.REFUSED, [], Outcome.REFUSED),
        (Told.UNANSWERED, [], Outcome.REFUSED),
        (Told.UNANSWERED, [EXPIRED], Outcome.EXPIRED),
        (Told.UNCLEAR, [USED], Outcome.CONSUMED),
    ],
)
def test_a_request_that_ended_as_told_is_no_finding(what: Told, entries: list[EntryRow], outcome: Outcome) -> None:
    tally = told(REQUEST, what, 70 if what is Told.CONSUMED else 0)

    assert endings_of([REQUEST], tally, {"id": entries})[0].outcome is outcome
    assert list(differences([REQUEST], tally, {"id": entries})) == []


@pytest.mark.parametrize(
    ("what", "entries", "wrong"),
    [
        (Told.CONSUMED, [], "nothing is charged"),
        (Told.CONSUMED, [replace(USED, quota=71)], "71 quota is charged instead of 70"),
        (Told.CONSUMED, [USED, RELEASED], "it ended 2 times"),
        (Told.CONSUMED, [replace(USED, token_id=99)], "another account paid"),
        (Told.CONSUMED, [replace(USED, prompt_tokens=5)], "instead of"),
        (Told.REFUNDED, [USED], "it was charged"),
        (Told.REFUNDED, [EXPIRED], "its hold was expired"),
        (Told.HELD, [], "nothing is booked"),
        (Told.HELD, [RELEASED], "its hold was released"),
        (Told.REFUSED, [USED], "something is booked"),
        (Told.UNANSWERED, [USED], "it was charged"),
        (Told.UNCLEAR, [], "nothing is booked"),
        (Told.NOTHING, [], "it was never sent"),
    ],
)
def test_whatever_differs_from_what_was_told_is_a_finding(what: Told, entries: list[EntryRow], wrong: str) -> None:
    findings = list(differences([REQUEST], told(REQUEST, what, 70), {"id": entries}))

    assert len(findings) == 1
    assert wrong in findings[0]
    assert "row 1, request id" in findings[0]


# -- for real ---------------------------------------------------------------------------------------------


def exported(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def test_every_request_ends_once_and_the_export_says_how(settings: Settings, tmp_path: Path) -> None:
    report = replay(TRACE, OPTIONS, settings=settings, export_to=tmp_path / "out.csv")
    rows = exported(tmp_path / "out.csv")

    assert report.ok
    assert report.findings == []
    assert report.requests == 200 == len(rows)
    assert tuple(rows[0]) == EXPORT_COLUMNS
    assert len({row["request_id"] for row in rows}) == 200
    assert [int(row["prompt_tokens"]) for row in rows] == [row.context_tokens for row in TRACE]
    assert Counter(row["outcome"] for row in rows) == {
        "consumed": report.consumed,
        "refused": report.refused_in_all,
        "refunded": report.refunded,
        "expired": report.expired,
    }
    assert min(report.consumed, report.refused_in_all, report.refunded, report.expired) > 0
    assert all(int(row["quota"]) == 0 for row in rows if row["outcome"] != "consumed")

    with closing(Runtime(settings)) as runtime:
        users = [Accounts(runtime).user(number) for number in range(report.first_user_id, report.last_user_id + 1)]
    assert sum(user.used_quota for user in users) == report.quota_charged == sum(int(row["quota"]) for row in rows)
    assert sum(user.request_count for user in users) == report.consumed


def test_a_replay_can_be_run_again_with_more_processes_and_asks_the_same(settings: Settings, tmp_path: Path) -> None:
    first = replay(TRACE, OPTIONS, settings=settings, export_to=tmp_path / "1.csv")
    second = replay(TRACE, replace(OPTIONS, processes=2), settings=settings, export_to=tmp_path / "2.csv")

    assert second.ok
    assert second.first_user_id == first.last_user_id + 1
    asked = [
        [(int(row["user_id"]) - base, row["model"], row["prompt_tokens"], row["completion_tokens"]) for row in rows]
        for base, rows in (
            (first.first_user_id, exported(tmp_path / "1.csv")),
            (second.first_user_id, exported(tmp_path / "2.csv")),
        )
    ]
    assert asked[0] == asked[1]


def test_a_demo_checks_the_guarantees_and_finds_a_request_in_flower(stack: Stack, settings: Settings) -> None:
    options = replace(OPTIONS, speed=100.0, fail_rate=0.0, abandon_rate=0.0)

    report = run_demo(stack, TRACE[:60], options, audience=NoAudience())

    assert report.ok
    assert report.replay.seconds >= (TRACE[59].at_us - TRACE[0].at_us) / 1e6 / 100  # no faster than the trace allows
    assert report.flower is not None
    assert report.flower.tasks > 0
    assert report.flower.request_id in report.replay.request_ids
    assert report.as_dict()["verify"]["ok"] is True


def test_without_a_worker_the_replay_says_what_is_still_open_and_loses_nothing() -> None:
    with embedded_servers(fast=True) as servers:
        upgrade(servers.database_url)
        settings = Settings(redis_url=servers.redis_url, database_url=servers.database_url)
        options = replace(OPTIONS, users=2, fail_rate=0.0, abandon_rate=0.0, settle_timeout_seconds=0.3)

        with pytest.raises(NotSettled) as caught:
            replay(TRACE[:20], options, settings=settings)
        said = r"still (\d+) events in the outboxes, 0 open holds, \1 requests not booked. Among them: .* \(row 1\)"
        waiting = re.search(said, caught.value.message)
        assert waiting is not None, caught.value.message

        with closing(Runtime(settings)) as runtime:
            for shard in range(settings.shards):
                drained = settle.drain(
                    shard, owner="test", commands=runtime.commands, settings=settings, now=lambda: 0.0
                )
                runtime.run(drained)
            report = verify.check(holds=runtime.holds, ledger=runtime.ledger)
            assert report.findings == []
            assert report.backlog == 0
            assert sum(user.request_count for user in Accounts(runtime).users()) == int(waiting[1]) > 0


def test_a_bad_trace_is_told_by_the_command_before_any_server_is_asked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "bad.csv").write_text("TIMESTAMP,ContextTokens,GeneratedTokens\n2023-11-16 18:15:46,1,many\n")
    monkeypatch.setattr("sys.argv", ["billing-tasks", "replay", str(tmp_path / "bad.csv")])

    with pytest.raises(SystemExit) as caught:
        main()

    assert caught.value.code == 1
    assert "line 2: GeneratedTokens must be a whole number" in capsys.readouterr().err


def test_up_names_everything_in_one_json_object_and_stops_at_ctrl_c(
    state_dir: Path, spawn_parent: Callable[..., subprocess.Popen[str]]
) -> None:
    script = "import sys; sys.argv = ['billing-tasks', *sys.argv[1:]]; from billing_tasks.cli import main; main()"
    process = spawn_parent(script, "up", "--state-dir", state_dir, "--no-flower", "--json")
    assert process.stdout is not None
    said = ""
    for line in process.stdout:
        said += "" if line.startswith("✓") else line
        if line == "}\n":
            break
    described = json.loads(said)

    assert set(described["environment"]) == {"BILLING_REDIS_URL", "BILLING_DATABASE_URL", "BILLING_BROKER_URL"}
    assert [part["name"] for part in described["parts"]] == ["postgres", "valkey", "worker", "beat"]
    process.send_signal(signal.SIGINT)
    rest, _ = process.communicate(timeout=30)
    assert process.returncode == 0, rest


@pytest.mark.parametrize(
    ("quota", "shown"),
    [
        (0, "$0.00"),
        (1, "<$0.01"),
        (4_999, "<$0.01"),
        (5_000, "$0.01"),
        (617_283_500, "$1,234.56"),
        (-750_000, "-$1.50"),
    ],
)
def test_quota_is_shown_in_dollars_cut_to_cents(quota: int, shown: str) -> None:
    assert usd(quota) == shown


def test_an_export_that_can_not_be_written_is_told_before_anything_is_sent(tmp_path: Path) -> None:
    nowhere = Settings(redis_url="unix:///nowhere.sock", database_url="postgresql:///x?host=/nowhere")

    with pytest.raises(ReplayError, match="can't be written"):
        replay(TRACE, OPTIONS, settings=nowhere, export_to=tmp_path / "missing" / "out.csv")
