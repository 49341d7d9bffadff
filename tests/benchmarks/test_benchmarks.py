"""The benchmarks: the arithmetic is right, every measure runs, a broken guarantee is no figure. No timing is judged."""

from __future__ import annotations

import dataclasses
import io
import json
import math
from collections.abc import Iterator
from xml.etree import ElementTree

import psycopg
import pytest
import typer
from rich.console import Console

from benchmarks import __main__ as command
from benchmarks import population
from benchmarks.environment import Environment
from benchmarks.figures import BYTES, MS, PER_SECOND, Book, percentile
from benchmarks.measures import MEASURES
from benchmarks.opponents import reference
from benchmarks.plot import charts, draw
from benchmarks.report import as_dict, number, show
from benchmarks.run import run
from benchmarks.session import Session
from benchmarks.sizes import SIZES, TINY
from benchmarks.targets import Comparison, Target, all_targets, judge
from billing_tasks.lab.servers import Servers

#: These start Celery workers, each of which takes seconds to be ready.
WITH_WORKERS = {"drain", "cycle", "light"}


@pytest.fixture
def session(servers: Servers) -> Iterator[Session]:
    """A session of the tiny size on the servers of the tests; its databases are dropped at the end."""
    yield Session(servers, TINY)
    with psycopg.connect(servers.database_url, autocommit=True) as connection:
        for (name,) in connection.execute("select datname from pg_database where datname like 'bench%'").fetchall():
            connection.execute(f"drop database {name} with (force)".encode())


def book_of(**series: list[float]) -> Book:
    book = Book()
    for key, values in series.items():
        for value in values:
            book.add(key.replace("__", "."), key, MS if key.endswith("ms") else PER_SECOND, value)
    return book


def test_a_percentile_is_a_value_that_was_measured() -> None:
    values = [float(n) for n in range(1, 101)]
    assert [percentile(values, percent) for percent in (1, 50, 99, 100)] == [1, 50, 99, 100]
    assert percentile([7.0], 99) == 7.0
    with pytest.raises(ValueError, match="nothing"):
        percentile([], 50)


def test_a_ratio_is_the_median_of_the_rounds_own_ratios() -> None:
    ratio = book_of(a__ours=[10, 40, 90], a__theirs=[10, 10, 30]).ratio("a.ours", "a.theirs")
    assert ratio is not None
    assert (ratio.low, ratio.median, ratio.high) == (1, 3, 4)


def test_the_best_of_several_opponents_counts() -> None:
    book = book_of(a__ours=[60], a__slow=[10], a__fast=[30], b__ours_ms=[6], b__slow_ms=[3], b__fast_ms=[1])
    faster, quicker = book.ratio("a.ours", "a.slow", "a.fast"), book.ratio("b.ours_ms", "b.slow_ms", "b.fast_ms")
    assert faster is not None
    assert quicker is not None
    assert (faster.median, quicker.median) == (2, 6)


def test_a_figure_counts_as_nothing_once_a_guarantee_is_broken() -> None:
    book = book_of(a__ours=[90], a__theirs=[10], b__ours_ms=[1], b__theirs_ms=[9])
    for series in book.all():
        if "ours" in series.key:
            series.broken = ["guarantee 3 is broken"]
    targets = [
        Target("more", "at least", 2, (Comparison("", "a.ours", ("a.theirs",)),)),
        Target("less", "at most", 2, (Comparison("", "b.ours_ms", ("b.theirs_ms",)),)),
        Target("alone", "at most", 100, (Comparison("", "b.ours_ms"),), "ms"),
    ]
    judged = judge(targets, book)
    assert [(one.figure, one.reached) for one in judged] == [(0, False), (math.inf, False), (math.inf, False)]
    text = printed(book, judged)
    assert "WRONG a.ours: guarantee 3 is broken" in text
    assert "90" not in text


def test_a_target_is_judged_by_its_worst_comparison_and_left_out_if_nothing_was_measured() -> None:
    book = book_of(a__one=[10], a__two=[6], a__base=[10])
    comparisons = (
        Comparison("one", "a.one", ("a.base",)),
        Comparison("two", "a.two", ("a.base",)),
        Comparison("three", "a.three", ("a.base",)),
    )
    missed, reached, *rest = judge(
        [
            Target("x", "at least", 0.8, comparisons),
            Target("y", "at least", 0.6, comparisons),
            Target("z", "at most", 1, (Comparison("", "c.nothing"),)),
        ],
        book,
    )
    assert (missed.figure, missed.worst, missed.reached) == (0.6, "two", False)
    assert reached.reached
    assert rest == []
    (above,) = judge([Target("w", "at most", 0.8, comparisons)], book)
    assert (above.figure, above.worst, above.reached) == (1, "one", False)


def test_each_side_is_taken_as_it_is_best_set_up() -> None:
    book = book_of(a__one=[10], a__two=[30], a__base=[10])
    (judged,) = judge([Target("x", "at least", 3, (Comparison("", ("a.one", "a.two"), ("a.base",)),))], book)
    assert (judged.figure, judged.reached) == (3, True)
    for series in book.all():
        if series.key != "a.base":
            series.broken = ["guarantee 3 is broken"]
    (judged,) = judge([Target("x", "at least", 3, (Comparison("", ("a.one", "a.two"), ("a.base",)),))], book)
    assert (judged.figure, judged.reached) == (0, False)


def test_figures_keep_three_digits_that_mean_something() -> None:
    assert [number(value) for value in (12345.6, 99.5, 1.234, 0.01234, math.inf)] == [
        *("12,346", "99.50", "1.23", "0.012", "none")
    ]


def printed(book: Book, judged: list) -> str:
    output = io.StringIO()
    show(Console(width=200, file=output), book, {"when": "now"}, judged)
    return output.getvalue()


def test_the_last_thing_printed_are_the_targets_with_their_figures() -> None:
    book = Book()
    book.add("memory.hold", "an open hold", BYTES, 340)
    book.add("memory.outbox", "a queued event", BYTES, 900)
    text = printed(book, judge(all_targets(TINY), book))
    last = [line for line in text.splitlines() if "Redis memory" in line]
    assert ["reached" in line for line in last] == [True, False]
    assert "340 bytes" in last[0]
    assert "missed" in last[1]
    assert text.index("targets") > text.index("an open hold")


def test_measures_are_chosen_by_name_and_run_in_their_order() -> None:
    assert command.selected("drain,reserve", "") == ["reserve", "drain"]
    assert command.selected("", "growth,drain") == [name for name in MEASURES if name not in ("growth", "drain")]
    with pytest.raises(typer.BadParameter, match="no measure sleep"):
        command.selected("sleep", "")


def test_every_size_sets_the_same_things() -> None:
    for size in SIZES.values():
        assert all(value for value in dataclasses.asdict(size).values())
        assert size.many_entries >= population.MONTHS * 100


@pytest.mark.parametrize("name", [name for name in MEASURES if name not in WITH_WORKERS])
def test_a_measure_runs_and_leaves_the_guarantees_whole(name: str, session: Session) -> None:
    check(name, session)


@pytest.mark.slow
@pytest.mark.parametrize("name", sorted(WITH_WORKERS))
def test_a_measure_with_workers_runs_and_leaves_the_guarantees_whole(name: str, session: Session) -> None:
    check(name, session)


def check(name: str, session: Session) -> None:
    """Nothing is broken; every figure that a target asks for is there, and so are the JSON and the plot's bars.

    A key that no measure writes would leave its target out of the report, and no other test would miss it.
    """
    assert run(session, [name]) == []
    series = session.book.all()
    assert series
    assert [one.key for one in series if not one.counts or one.median < 0] == []
    judged = judge(all_targets(TINY), session.book)
    asked = [target for target in all_targets(TINY) if target.comparisons[0].keys[0].startswith(f"{name}.")]
    assert [one.target for one in judged] == asked
    assert [len(one.all_comparisons) for one in judged] == [len(target.comparisons) for target in asked]
    whole = json.loads(json.dumps(as_dict(session.book, {}, judged, dataclasses.asdict(TINY))))
    assert [one["key"] for one in whole["series"]] == [one.key for one in series]
    drawn = ElementTree.fromstring(draw(session.book, charts(TINY)))
    bars = sum(session.book.get(key) is not None for chart in charts(TINY) for *_, key in chart.bars)
    assert len(drawn.findall("{http://www.w3.org/2000/svg}rect")) == bars


def test_what_a_measure_breaks_is_found_and_its_figures_are_wrong(
    session: Session, monkeypatch: pytest.MonkeyPatch
) -> None:
    def careless(session: Session) -> None:
        with session.environment() as environment:
            session.book.add("careless.rate", "careless", PER_SECOND, 10**6)
            environment.sql("set session_replication_role = replica")  # past the trigger that would have booked it
            environment.sql(
                "update billing.users set quota = quota - 1, version = nextval('billing.versions') where id = 1"
            )

    monkeypatch.setitem(MEASURES, "careless", careless)
    run(session, ["careless"])
    (series,) = session.book.all()
    assert "users.quota of 1 is" in series.broken[0]
    assert series.median == 0


def test_a_measure_that_fails_does_not_end_the_run(session: Session, monkeypatch: pytest.MonkeyPatch) -> None:
    def failing(session: Session) -> None:
        session.book.add("failing.rate", "failing", PER_SECOND, 1)
        raise RuntimeError("no luck")

    monkeypatch.setitem(MEASURES, "failing", failing)
    assert run(session, ["failing", "memory"]) == ["failing"]
    assert {one.measure: one.counts for one in session.book.all()} == {"failing": False, "memory": True}


def test_history_fills_several_months_with_books_that_add_up(session: Session) -> None:
    with session.environment(users=50, entries=1000) as environment:
        months = environment.sql(
            "select tableoid::regclass::text, count(*) from billing.ledger_entries where kind = 'consume' group by 1"
        )
        assert len(months) == population.MONTHS
        assert sum(count for _, count in months) == 1000
        assert environment.verify() == []
        assert environment.runtime.ledger.maintain_partitions() == 0  # the months are the product's own
    assert session.findings == []


def test_the_reference_does_to_its_books_what_a_request_does(session: Session) -> None:
    with session.environment() as environment:
        reference.prepare(environment, TINY.users)
        script = reference.RESERVE + "\n" + reference.SETTLE
        bench = reference.run(environment, script, users=TINY.users, clients=2, seconds=1, with_latencies=True)
        requests, charged = environment.sql("select count(*), sum(quota) from reference.logs")[0]
        assert len(bench.latencies_ms) == requests > 0
        for table, taken in (("users", "1000000000000 - quota"), ("tokens", "1000000000000 - remain_quota")):
            assert environment.sql(f"select sum({taken}), sum(used_quota) from reference.{table}")[0] == (
                charged,
                charged,
            )
        assert environment.sql("select sum(used_quota) from reference.channels")[0][0] == charged
        with pytest.raises(RuntimeError, match="pgbench failed"):
            reference.run(environment, "select 1 from nowhere;", users=1, clients=1, seconds=1)


def test_an_environment_leaves_other_settings_and_databases_alone(session: Session) -> None:
    with session.environment() as environment:
        before = environment.redis("CONFIG", "GET", "appendfsync")
        with environment.appendfsync("everysec"):
            assert environment.redis("CONFIG", "GET", "appendfsync")[1] == b"everysec"
        assert environment.redis("CONFIG", "GET", "appendfsync") == before
        assert isinstance(environment, Environment)
        assert environment.settings.database_url != session.servers.database_url
