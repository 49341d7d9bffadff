"""What a failover costs is gone, and no fault, if the incidents say it: no more than they count, and when they say."""

from __future__ import annotations

import msgspec
import pytest

from chaos.books import Loss
from chaos.excuses import SLACK_MS
from chaos.findings import Wrong
from chaos.journal import Step
from chaos.restore import Restored
from tests.chaos.test_judge import Case, case, entry, used

__all__ = ["case"]

COUNTED = Loss("new_epoch", 1)
GAPS = [(2900, 3100)]


def lose_a_consume(case: Case) -> int:
    """One that was told accepted; when it was told so."""
    case.without("second")
    return 3000


@pytest.mark.parametrize("loss", [COUNTED, Loss("restored", 7), Loss("gap", 0, 2000, 4000), Loss("gap", 0, 3000, 3000)])
def test_what_an_incident_says_is_gone_is_no_finding(case: Case, loss: Loss) -> None:
    lose_a_consume(case)
    case.books.losses = [loss]
    verdict = case.judged(gaps=GAPS)
    assert verdict.ok, verdict.findings
    assert [finding.quota for finding in verdict.known_lost] == [200]


@pytest.mark.parametrize(
    "losses",
    [[], [Loss("new_epoch", 0)], [Loss("gap", 0, 3001 + SLACK_MS, 9000)], [Loss("gap", 0, 100, 2999 - SLACK_MS)]],
)
def test_what_no_incident_says_is_a_finding(case: Case, losses: list[Loss]) -> None:
    lose_a_consume(case)
    case.books.losses = losses
    assert case.only(Wrong.LOST, gaps=GAPS).count(Wrong.LOST) == 1


@pytest.mark.parametrize("gaps", [(), [(3001 + SLACK_MS, 9000)], [(100, 2999 - SLACK_MS)]])
def test_what_was_filed_when_nothing_could_be_forgotten_is_a_finding(case: Case, gaps: list[tuple[int, int]]) -> None:
    lose_a_consume(case)
    case.books.losses = [COUNTED, Loss("gap", 0, 2000, 4000)]
    assert case.only(Wrong.LOST, gaps=gaps).count(Wrong.LOST) == 1


def test_an_incident_excuses_nothing_but_events_that_are_gone(case: Case) -> None:
    case.change(+50)  # an account has more than its entries make
    case.books.losses = [Loss("new_epoch", 1000)]
    case.only(Wrong.LOST, gaps=GAPS)


def test_what_went_into_a_spool_is_filed_later(case: Case) -> None:
    lose_a_consume(case)
    at = next(i for i, line in enumerate(case.lines) if line.step == Step.CONSUMED and line.id == "second")
    case.lines[at] = msgspec.structs.replace(case.lines[at], word="spooled")
    case.books.losses = [COUNTED]
    assert case.judged(gaps=[(60_000, 60_500)]).ok
    case.only(Wrong.LOST, gaps=[(100, 200)])


def test_a_hold_that_was_forgotten_excuses_what_was_granted_again(case: Case) -> None:
    case.lines += used("again", 900, held=900)  # held at 1000 ms
    case.add(entry("consume", "again", 900, -900, at=9))
    case.add(entry("consume", "first-again", 900, -900, at=9))
    case.lines += used("first-again", 900, held=900)
    case.only(Wrong.OVERSPENT)
    assert case.judged(gaps=[(900, 1100)]).ok


def restored(from_ms: int, to_ms: int) -> list[Restored]:
    return [Restored(from_ms, to_ms, to_ms + 5000)]


@pytest.mark.parametrize("restores", [restored(2900, 3100), restored(2000, 9000), restored(30_000, 31_000)])
def test_what_a_restored_postgresql_lacks_is_no_finding_if_an_incident_counts_it(
    case: Case, restores: list[Restored]
) -> None:
    """Filed some time before the copy was made it may still be booked after it."""
    lose_a_consume(case)
    case.only(Wrong.LOST, restores=restores)
    case.books.losses = [Loss("restored", 1)]
    assert len(case.judged(restores=restores).known_lost) == 1
    assert case.judged(restores=restores).ok


def test_what_was_filed_after_the_restore_is_a_finding(case: Case) -> None:
    lose_a_consume(case)
    case.books.losses = [Loss("restored", 7)]
    assert case.only(Wrong.LOST, restores=restored(500, 2999 - SLACK_MS)).count(Wrong.LOST) == 1


def test_more_than_the_incidents_count_is_a_finding(case: Case) -> None:
    lose_a_consume(case)
    case.without("first")
    case.books.losses = [Loss("restored", 1)]
    assert case.judged(restores=restored(100, 9000)).count(Wrong.LOST) == 2


def test_what_postgresql_was_told_past_redis_goes_with_it(case: Case) -> None:
    """No number of an outbox is behind it, so no incident counts it; told at another time it is a finding."""
    lose_a_consume(case)
    at = next(i for i, line in enumerate(case.lines) if line.step == Step.CONSUMED and line.id == "second")
    case.lines[at] = msgspec.structs.replace(case.lines[at], word="posted")
    assert case.judged(restores=restored(2900, 3100)).ok
    case.only(Wrong.LOST, restores=restored(30_000, 31_000))


def test_what_was_granted_by_accounts_of_before_excuses_a_balance_below_zero(case: Case) -> None:
    case.lines += used("granted", 900, held=900)  # held at 1000 ms
    case.add(entry("consume", "granted", 900, -900, at=9))
    case.only(Wrong.OVERSPENT)
    assert case.judged(restores=restored(100, 900)).ok
    case.only(Wrong.OVERSPENT, restores=restored(9000, 9100))
