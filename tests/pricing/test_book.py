"""The ratios of a running process follow the operator's file, and never a broken one."""

from __future__ import annotations

import logging
import os
import threading
import time
from fractions import Fraction
from pathlib import Path
from typing import Any

import pytest

from billing_tasks.errors import BadRatios
from billing_tasks.pricing import PriceBook
from billing_tasks.pricing.book import SETTLED_AFTER_SECONDS


@pytest.fixture
def file(tmp_path: Path) -> Path:
    file = tmp_path / "ratios.toml"
    put(file, "[model]\ngpt-4o = 1\n")
    return file


def put(file: Path, text: str) -> None:
    """Write, and wait until the writing is old enough to be believed."""
    file.write_text(text)
    time.sleep(SETTLED_AFTER_SECONDS + 0.02)


def eager(file: Path) -> PriceBook:
    """A book that looks at its file at every question."""
    return PriceBook(file, catalogue="one-api", unknown="30", check_every_seconds=0)


def model_ratio(book: PriceBook, model: str = "gpt-4o") -> Fraction:
    return book.price(group="default", model=model).model_ratio


def errors(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [r.getMessage() for r in caplog.records if r.levelno == logging.ERROR]


def test_without_a_file_the_defaults_are_the_ratios() -> None:
    assert model_ratio(PriceBook(catalogue="one-api")) == Fraction("2.5")


def test_the_file_is_laid_over_the_defaults(file: Path) -> None:
    book = PriceBook(file, catalogue="one-api", unknown="30")

    assert model_ratio(book) == 1
    assert model_ratio(book, "gpt-4") == 15


def test_a_changed_file_is_taken_over_without_a_restart(file: Path) -> None:
    book = eager(file)
    before = book.price(group="default", model="gpt-4o")
    put(file, "[model]\ngpt-4o = 2\n")

    assert model_ratio(book) == 2
    assert before.model_ratio == 1


def test_a_file_replaced_by_one_of_the_same_size_and_time_is_taken_over(file: Path, tmp_path: Path) -> None:
    book = eager(file)
    assert model_ratio(book) == 1
    other = tmp_path / "other.toml"
    put(other, "[model]\ngpt-4o = 2\n")
    os.utime(other, ns=(file.stat().st_atime_ns, file.stat().st_mtime_ns))
    other.replace(file)

    assert model_ratio(book) == 2


def test_the_file_is_looked_at_once_a_second_at_most(file: Path) -> None:
    book = PriceBook(file, catalogue="one-api", unknown="30")
    put(file, "[model]\ngpt-4o = 2\n")

    assert model_ratio(book) == 1
    time.sleep(1.0)
    assert model_ratio(book) == 2


def test_a_file_in_the_middle_of_being_written_is_left_alone(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    book = eager(file)
    assert model_ratio(book) == 1
    monkeypatch.setattr("billing_tasks.pricing.book.SETTLED_AFTER_SECONDS", 60)  # slow machines: stay inside
    file.write_text("")  # an editor truncated it and will write on

    assert model_ratio(book) == 1


def test_two_writes_under_one_time_stamp_are_not_confused(tmp_path: Path) -> None:
    file = tmp_path / "ratios.toml"
    # Until both writes fall into one tick of the file system's clock; newer kernels have no such ticks.
    for _ in range(100):
        file.write_text("[model]\ngpt-4o = 1\n")
        book = eager(file)
        first = file.stat()
        file.write_text("[model]\ngpt-4o = 2\n")
        if file.stat().st_ctime_ns == first.st_ctime_ns:
            break
    time.sleep(SETTLED_AFTER_SECONDS + 0.02)

    assert model_ratio(book) == 2


@pytest.mark.parametrize(
    ("bad", "line"), [("[model]\ngpt-4o = -2\n", "line 2: "), ("[model]\n\ngpt-4o =\n", "line 3: ")]
)
def test_a_file_that_turns_bad_changes_no_price_and_is_logged_once(
    file: Path, caplog: pytest.LogCaptureFixture, bad: str, line: str
) -> None:
    book = eager(file)
    put(file, bad)

    assert [model_ratio(book) for _ in range(5)] == [1] * 5
    assert len(errors(caplog)) == 1
    assert f"{file}, {line}" in errors(caplog)[0]


def test_each_bad_change_is_logged_and_a_good_one_ends_it(file: Path, caplog: pytest.LogCaptureFixture) -> None:
    book = eager(file)
    for text in ("[model]\ngpt-4o = -2\n", "[model]\ngpt-4o = -33\n", "[model]\ngpt-4o = 4\n"):
        put(file, text)
        model_ratio(book)

    assert model_ratio(book) == 4
    assert len(errors(caplog)) == 2


def test_a_file_that_goes_away_changes_no_price_and_is_read_when_it_returns(
    file: Path, caplog: pytest.LogCaptureFixture
) -> None:
    book = eager(file)
    file.unlink()

    assert [model_ratio(book) for _ in range(5)] == [1] * 5
    assert len(errors(caplog)) == 1
    put(file, "[model]\ngpt-4o = 2\n")
    assert model_ratio(book) == 2


def test_a_bad_file_at_the_start_is_an_error(file: Path) -> None:
    put(file, "[model]\ngpt-4o = -1\n")

    with pytest.raises(BadRatios, match="line 2"):
        PriceBook(file, catalogue="one-api", unknown="30")


def test_a_missing_file_at_the_start_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(BadRatios, match="can't be read"):
        PriceBook(tmp_path / "none.toml")


def test_an_unknown_model_is_not_logged_again_after_a_reload(file: Path, caplog: pytest.LogCaptureFixture) -> None:
    book = eager(file)
    model_ratio(book, "brand-new")
    put(file, "[model]\ngpt-4o = 2\n")

    assert model_ratio(book) == 2
    assert model_ratio(book, "brand-new") == 30
    assert sum("brand-new" in r.getMessage() for r in caplog.records) == 1


def test_what_the_process_sets_is_above_the_file_and_survives_a_reload(file: Path) -> None:
    book = eager(file)
    book.set_overrides(model={"gpt-4o": "2.75/0.65"}, group={"vip": Fraction(1, 2)})
    put(file, "[model]\ngpt-4o = 2\ngpt-4 = 3\n")

    assert model_ratio(book) == Fraction(55, 13)
    assert model_ratio(book, "gpt-4") == 3
    assert book.prices.group_ratio("vip") == Fraction(1, 2)


def test_an_empty_table_takes_overrides_back_and_a_table_not_given_stays(file: Path) -> None:
    book = PriceBook(file, catalogue="one-api", unknown="30")
    book.set_overrides(model={"gpt-4o": 9}, group={"vip": "0.9"})
    book.set_overrides(model={})

    assert model_ratio(book) == 1
    assert book.prices.group_ratio("vip") == Fraction(9, 10)


@pytest.mark.parametrize(
    ("bad", "reason"),
    [
        ({"model": {"gpt-4o": -1}}, "gpt-4o.*negative"),
        ({"group": {"vip": 0.9}}, "vip.*binary float"),
        ({"completion": {"x": "1/0"}}, "divides by zero"),
        ({"model": {"a\nb": 1}}, "control character"),
        ({"model": {5: 1}}, "must be text"),
        ({"model": ["gpt-4o"]}, "must map names"),
        ({"model": {"gpt-4o": True}}, "not True"),
    ],
)
def test_bad_overrides_are_refused_and_change_nothing(bad: Any, reason: str) -> None:
    book = PriceBook(catalogue="one-api", unknown="30")
    before = book.prices

    with pytest.raises(BadRatios, match=reason):
        book.set_overrides(**bad)

    assert book.prices is before


def test_threads_always_see_one_whole_table_while_the_file_changes(file: Path) -> None:
    put(file, "[model]\na = 1\nb = 1\n")
    book = eager(file)
    torn: list[tuple[Fraction, Fraction]] = []
    stop = threading.Event()

    def watch() -> None:
        while not stop.is_set():
            ratios = book.prices
            pair = ratios.ratios.model_ratio("a"), ratios.ratios.model_ratio("b")
            if pair[0] != pair[1]:
                torn.append(pair)

    threads = [threading.Thread(target=watch) for _ in range(4)]
    for thread in threads:
        thread.start()
    for n in range(2, 7):
        put(file, f"[model]\na = {n}\nb = {n}\n")
    stop.set()
    for thread in threads:
        thread.join()

    assert torn == []
    # A watcher may just have seen the file too fresh to be believed, which puts the next look off.
    deadline = time.monotonic() + 10
    while model_ratio(book, "a") != 6:
        assert time.monotonic() < deadline
        time.sleep(0.01)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
@pytest.mark.filterwarnings("ignore:.*multi-threaded.*fork:DeprecationWarning")
def test_a_child_forked_while_the_file_is_read_still_follows_the_file(file: Path) -> None:
    book = eager(file)
    with book._lock:  # as if another thread were reading just now
        pid = os.fork()
        if pid == 0:
            file.write_text("[model]\ngpt-4o = 2\n")
            time.sleep(SETTLED_AFTER_SECONDS + 0.02)
            os._exit(0 if model_ratio(book) == 2 else 1)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
