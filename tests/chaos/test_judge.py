"""The judge of a chaos run sees what is wrong: made-up journals beside made-up books, one wrong at a time."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest

from chaos.books import BookedRefund, BookedTopUp, Books, CachedAccount, Entry, OpenDeadLetter, Row
from chaos.findings import Wrong
from chaos.journal import Journal, Line, Step, Watch, encode, read_journals
from chaos.judge import Verdict, judge
from chaos.stories import read_stories

USER, TOKEN = 7, 70
OPENING = 1000


def told(*steps: tuple[Step, str, int, str]) -> list[Line]:
    """Lines of user 7 and token 70, a second apart."""
    return [
        Line(step, 1000 * at, request_id, USER, TOKEN, quota, word)
        for at, (step, request_id, quota, word) in enumerate(steps)
    ]


def used(request_id: str, quota: int, *, held: int = 500) -> list[Line]:
    """A request that was held, consumed, and told so."""
    return told(
        (Step.RESERVE, request_id, held, ""),
        (Step.HELD, request_id, 0, ""),
        (Step.CONSUME, request_id, quota, ""),
        (Step.CONSUMED, request_id, quota, ""),
    )


def entry(kind: str, name: str, quota: int, change: int, *, at: int, request_id: str | None = "") -> Entry:
    """An entry that changes user and token by the same amount, booked at second `at`."""
    about = name if request_id == "" else request_id
    return Entry(name, kind, about, USER, TOKEN, quota, 0, change, change, at * 1_000_000)


@dataclass
class Case:
    """A world in which all is well: two requests, a refund of one, a release, a top-up."""

    lines: list[Line]
    books: Books

    def judged(self, **more: Any) -> Verdict:
        return judge(read_stories(self.lines), self.books, **more)

    def only(self, wrong: Wrong, **more: Any) -> Verdict:
        """The verdict, after making sure that it names this wrong and no other."""
        verdict = self.judged(**more)
        assert {finding.wrong for finding in verdict.findings} == {wrong}, verdict.findings
        assert all(finding.ids and all(finding.ids) for finding in verdict.findings)
        return verdict

    def without(self, name: str) -> None:
        """Take an entry out, and what it did to the accounts."""
        gone = next(e for e in self.books.entries if e.entry_id == name)
        self.books.entries.remove(gone)
        self.change(-gone.user_quota)

    def add(self, new: Entry) -> None:
        """Book another entry, accounts included."""
        self.books.entries.append(new)
        self.change(new.user_quota)

    def change(self, quota: int) -> None:
        user, token = self.books.users[USER], self.books.tokens[TOKEN]
        self.books.users[USER] = replace(user, balance=user.balance + quota)
        self.books.tokens[TOKEN] = replace(token, balance=token.balance + quota)
        for cached in (self.books.cached_users, self.books.cached_tokens):
            for account, found in cached.items():
                cached[account] = replace(found, balance=(found.balance or 0) + quota)


@pytest.fixture
def case() -> Case:
    lines = [
        *used("first", 300),
        *used("second", 200),
        *told((Step.REFUND, "first", 100, "case-1"), (Step.REFUNDED, "first", 100, "case-1")),
        *told((Step.RESERVE, "failed", 50, ""), (Step.HELD, "failed", 0, "")),
        *told((Step.RELEASE, "failed", 0, ""), (Step.RELEASED, "failed", 0, "")),
        *told((Step.RESERVE, "poor", 5000, ""), (Step.REFUSED, "poor", 0, "insufficient_user_quota")),
        Line(Step.TOP_UP, 1, "payment", USER, 0, 400),
        Line(Step.TOPPED_UP, 2, "payment", 0, 0, 400),
    ]
    opening = entry("opening", "opening", OPENING, OPENING, at=0, request_id=None)
    payment = Entry("top-up", "topup", None, USER, None, 400, 0, 400, 0, 2_000_000)
    books = Books(
        entries=[
            opening,
            entry("consume", "first", 300, -300, at=1),
            payment,
            entry("release", "failed", 50, 0, at=3),
            entry("consume", "second", 200, -200, at=4),
            entry("refund", "refund-1", 100, 100, at=5, request_id="first"),
        ],
        refunds={"case-1": BookedRefund("case-1", "first", 100, "refund-1")},
        top_ups={"payment": BookedTopUp(USER, None, 400, "top-up")},
        users={USER: Row(1000, 9)},
        tokens={TOKEN: Row(600, 9)},
        cached_users={USER: CachedAccount(0, 0, 1000, 9, 100)},
        cached_tokens={TOKEN: CachedAccount(0, 0, 600, 9, 100)},
    )
    return Case(lines, books)


def test_a_world_in_which_all_is_well_has_no_findings(case: Case) -> None:
    verdict = case.judged()

    assert verdict.ok, verdict.findings
    assert (verdict.charged_requests, verdict.charged_quota) == (2, 500)


# -- lost -------------------------------------------------------------------------------------------------


def test_usage_that_was_accepted_and_not_booked_is_lost(case: Case) -> None:
    case.without("second")

    verdict = case.only(Wrong.LOST)
    assert (verdict.count(Wrong.LOST), verdict.quota(Wrong.LOST)) == (1, 200)
    assert verdict.findings[0].ids == ("second",)


def test_usage_in_an_open_dead_letter_is_not_lost_but_counted(case: Case) -> None:
    case.without("second")
    case.books.dead_letters.append(OpenDeadLetter(1, "consume", "second", "", "malformed", "failed"))

    verdict = case.judged()
    assert verdict.ok
    assert verdict.told_and_in_dead_letters == 1
    assert verdict.dead_letters_still_open == {"consume: malformed, failed": 1}


def test_a_charge_below_the_usage_is_lost(case: Case) -> None:
    case.without("second")
    case.add(entry("consume", "second", 150, -150, at=4))

    assert case.only(Wrong.LOST).quota(Wrong.LOST) == 50


def test_a_refund_that_was_accepted_and_not_booked_is_lost(case: Case) -> None:
    case.without("refund-1")
    case.books.refunds.clear()

    assert case.only(Wrong.LOST).quota(Wrong.LOST) == 100


def test_a_refund_in_an_open_dead_letter_is_not_lost(case: Case) -> None:
    case.without("refund-1")
    case.books.refunds.clear()
    case.books.dead_letters.append(OpenDeadLetter(1, "refund", "first", "case-1", "no_charge", "retrying"))

    assert case.judged().ok


def test_a_release_that_was_told_and_not_booked_is_lost(case: Case) -> None:
    case.without("failed")

    assert case.only(Wrong.LOST).quota(Wrong.LOST) == 50


def test_a_top_up_that_was_told_and_not_booked_is_lost(case: Case) -> None:
    case.without("top-up")
    case.books.top_ups.clear()
    case.books.tokens[TOKEN] = Row(600, 9)  # it was the user's alone
    case.books.cached_tokens.clear()

    assert case.only(Wrong.LOST).quota(Wrong.LOST) == 400


def test_a_refund_that_no_gateway_asked_for_is_lost(case: Case) -> None:
    case.add(entry("refund", "refund-2", 60, 60, at=6, request_id="second"))
    case.books.refunds["case-2"] = BookedRefund("case-2", "second", 60, "refund-2")

    assert case.only(Wrong.LOST).quota(Wrong.LOST) == 60


def test_refunds_above_their_charge_are_lost(case: Case) -> None:
    case.lines += told((Step.REFUND, "first", 250, "case-2"), (Step.REFUNDED, "first", 250, "case-2"))
    case.add(entry("refund", "refund-2", 250, 250, at=6, request_id="first"))
    case.books.refunds["case-2"] = BookedRefund("case-2", "first", 250, "refund-2")

    assert case.only(Wrong.LOST).quota(Wrong.LOST) == 50


def test_a_balance_above_its_entries_is_lost(case: Case) -> None:
    case.change(30)

    assert case.only(Wrong.LOST).quota(Wrong.LOST) == 60  # the user's and the token's


# -- charged twice ----------------------------------------------------------------------------------------


def test_a_balance_below_its_entries_was_charged_twice(case: Case) -> None:
    case.change(-200)

    assert case.only(Wrong.TWICE).quota(Wrong.TWICE) == 400  # the user's and the token's


def test_a_request_booked_twice_is_named(case: Case) -> None:
    case.add(entry("consume", "second", 200, -200, at=5))

    verdict = case.only(Wrong.TWICE)
    assert verdict.count(Wrong.TWICE) == 1
    assert {finding.ids for finding in verdict.findings} == {("second",)}


@pytest.mark.parametrize("request_id", ["poor", "failed"])
def test_a_charge_whose_gateway_was_told_refused_or_released_is_one_too_many(case: Case, request_id: str) -> None:
    case.add(entry("consume", request_id, 40, -40, at=6))

    verdict = case.only(Wrong.TWICE)
    assert (verdict.findings[0].ids, verdict.quota(Wrong.TWICE)) == ((request_id,), 40)


def test_a_charge_above_the_usage_is_one_too_many(case: Case) -> None:
    case.without("second")
    case.add(entry("consume", "second", 230, -230, at=4))

    assert case.only(Wrong.TWICE).quota(Wrong.TWICE) == 30


def test_a_charge_that_no_gateway_asked_for_is_one_too_many(case: Case) -> None:
    case.add(entry("consume", "stranger", 40, -40, at=6))

    assert case.only(Wrong.TWICE).quota(Wrong.TWICE) == 40


def test_a_correction_that_no_gateway_asked_for_is_one_too_many(case: Case) -> None:
    case.add(entry("adjust", "correction", 15, -15, at=6, request_id=None))

    assert case.only(Wrong.TWICE).quota(Wrong.TWICE) == 15


def test_an_entry_that_changes_its_accounts_by_another_amount_is_seen(case: Case) -> None:
    case.without("second")
    case.add(entry("consume", "second", 200, -400, at=4))

    assert case.only(Wrong.TWICE).quota(Wrong.TWICE) == 200


# -- leaked -----------------------------------------------------------------------------------------------


def test_a_hold_that_stays_open_is_leaked(case: Case) -> None:
    case.books.holds["failed"] = (USER, TOKEN, 50)
    case.books.cached_users[USER] = CachedAccount(50, 0, 1000, 9, 100)
    case.books.cached_tokens[TOKEN] = CachedAccount(50, 0, 600, 9, 100)

    verdict = case.only(Wrong.LEAKED)
    assert (verdict.findings[0].ids, verdict.quota(Wrong.LEAKED)) == (("failed",), 50)


@pytest.mark.parametrize(
    "cached", [CachedAccount(20, 0, 1000, 9, 1), CachedAccount(0, 20, 1000, 9, 1), CachedAccount(0, -20, None, None, 1)]
)
def test_a_counter_that_nothing_open_explains_is_leaked(case: Case, cached: CachedAccount) -> None:
    case.books.cached_users[USER] = cached

    assert case.only(Wrong.LEAKED).quota(Wrong.LEAKED) == 20


@pytest.mark.parametrize("cached", [CachedAccount(0, 0, 980, 9, 1), CachedAccount(0, 0, 980, 10, 1)])
def test_a_cached_account_that_was_never_postgresqls_is_leaked(case: Case, cached: CachedAccount) -> None:
    case.books.cached_users[USER] = cached

    assert case.only(Wrong.LEAKED).quota(Wrong.LEAKED) == 20


def test_an_older_cached_account_is_none_for_it_is_read_anew_before_it_is_used(case: Case) -> None:
    case.books.cached_users[USER] = CachedAccount(0, 0, 980, 8, 60_000)

    assert case.judged().ok


# -- overspent --------------------------------------------------------------------------------------------


def spend(case: Case, quota: int, *, at: int, word: str = "") -> None:
    """Another request that is charged."""
    case.lines += [*used("more", quota)[:-1], Line(Step.CONSUMED, 9, "more", USER, TOKEN, quota, word)]
    case.add(entry("consume", "more", quota, -quota, at=at))


def test_an_account_below_zero_was_overspent(case: Case) -> None:
    spend(case, 1100, at=9)

    verdict = case.only(Wrong.OVERSPENT)
    assert verdict.findings[0].ids == ("more",)
    assert verdict.quota(Wrong.OVERSPENT) == 600  # the user by 100, the token, which got no top-up, by 500


def test_an_account_that_was_below_zero_for_a_while_was_overspent(case: Case) -> None:
    case.books.tokens[TOKEN] = replace(case.books.tokens[TOKEN], unlimited=True)
    spend(case, 900, at=1)  # before the top-up: 1000 - 300 - 900

    assert case.books.users[USER].balance == 100
    assert case.only(Wrong.OVERSPENT).quota(Wrong.OVERSPENT) == 200


def test_an_unlimited_token_can_not_be_overspent(case: Case) -> None:
    case.books.tokens[TOKEN] = replace(case.books.tokens[TOKEN], unlimited=True)
    spend(case, 700, at=9)

    assert case.judged().ok


def test_what_one_transaction_books_counts_together(case: Case) -> None:
    case.books.tokens[TOKEN] = replace(case.books.tokens[TOKEN], unlimited=True)
    spend(case, 1100, at=2)  # in the same transaction as the top-up of 400: 1000 - 300 - 1100 + 400

    assert case.books.users[USER].balance == -100
    assert case.only(Wrong.OVERSPENT).quota(Wrong.OVERSPENT) == 200  # until the refund, not 400


def test_usage_that_was_told_late_excuses_as_much_and_is_counted(case: Case) -> None:
    spend(case, 1500, at=9, word="late")

    verdict = case.judged()
    assert verdict.ok
    assert (verdict.late_requests, verdict.late_quota) == (1, 1500)


@pytest.mark.parametrize(("released_at", "ok"), [(8, True), (9, True), (10, False)])
def test_only_a_hold_that_had_ended_before_the_charge_excuses_it(case: Case, released_at: int, ok: bool) -> None:
    spend(case, 1500, at=9)
    case.add(entry("release", "more", 500, 0, at=released_at))

    assert case.judged().ok == ok


# -- what has no answer, and what should not be one -------------------------------------------------------


@pytest.mark.parametrize("booked", [True, False])
def test_usage_without_an_answer_may_be_charged_or_not(case: Case, booked: bool) -> None:
    case.lines = [line for line in case.lines if (line.id, line.step) != ("second", Step.CONSUMED)]
    if not booked:
        case.without("second")

    verdict = case.judged()
    assert verdict.ok
    assert (verdict.unclear["consume"].calls, verdict.unclear["consume"].booked) == (1, int(booked))


def test_an_answer_that_no_gateway_should_get_is_a_finding(case: Case) -> None:
    case.lines.append(Line(Step.UNEXPECTED, 1, "second", word="IdempotencyConflict: ..."))

    assert case.only(Wrong.STRANGE).findings[0].ids == ("second",)


# -- the journal ------------------------------------------------------------------------------------------


def test_a_journal_reads_back_and_a_line_cut_off_by_a_kill_is_left_out(tmp_path: Path) -> None:
    journal = Journal(tmp_path / "gateway-1.0000.journal")
    journal.write(Step.RESERVE, "first", user=USER, token=TOKEN, quota=5)
    journal.write(Step.REFUSED, "first", word="insufficient_user_quota")
    journal.close()
    with (tmp_path / "gateway-1.0000.journal").open("ab") as file:
        file.write(encode([Line(Step.HELD, 1, "second")])[:-5])

    lines = list(read_journals(tmp_path))
    assert [(line.step, line.id, line.quota) for line in lines] == [
        (Step.RESERVE, "first", 5),
        (Step.REFUSED, "first", 0),
    ]


def test_a_watch_counts_along_however_the_lines_arrive(tmp_path: Path) -> None:
    lines = encode([*used("first", 1), *used("second", 2)])
    watch = Watch(tmp_path)
    for end in range(0, len(lines) + 1, 7):
        (tmp_path / "gateway-1.0000.journal").write_bytes(lines[:end])
        watch.look()
    (tmp_path / "gateway-1.0000.journal").write_bytes(lines)
    watch.look()

    assert (watch.requests, watch.answers) == (2, 4)


def test_the_longest_pause_between_answers_is_measured() -> None:
    begun = told((Step.RESERVE, "a", 1, ""), (Step.HELD, "a", 0, ""))  # told at 1 s
    late = [Line(Step.CONSUME, 1500, "a", USER, TOKEN, 1), Line(Step.CONSUMED, 9000, "a", USER, TOKEN, 1)]

    stories = read_stories([*begun, *late])
    assert (stories.longest_pause_ms, stories.longest_pause_at_ms) == (8000, 1000)
