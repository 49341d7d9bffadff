"""Traces: read whole, checked whole, made up in the shape of a real one."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path

import pytest

from billing_tasks.lab.replay.problems import BadTrace
from billing_tasks.lab.trace import HEADER, TraceRow, generate, read_trace, write_trace

#: Percentiles of the Azure conversation trace of 2023 (19,366 requests): 5, 25, 50, 75, 95, 99.
PARTS = (0.05, 0.25, 0.50, 0.75, 0.95, 0.99)
AZURE_CONTEXT = (181, 396, 1020, 1189, 4083, 4142)
AZURE_GENERATED = (41, 85, 129, 395, 451, 601)


def write(folder: Path, *lines: str, end: str = "\n") -> Path:
    path = folder / "trace.csv"
    path.write_bytes(end.join(lines).encode())
    return path


def percentiles(values: list[int]) -> list[int]:
    values = sorted(values)
    return [values[int(part * len(values))] for part in PARTS]


def test_timestamps_are_read_to_the_microsecond(tmp_path: Path) -> None:
    path = write(tmp_path, HEADER, "1970-01-01 00:00:01.6805900,374,44", "1970-01-01 00:00:02,396,109")

    assert read_trace(path) == [TraceRow(1_680_590, 374, 44), TraceRow(2_000_000, 396, 109)]


@pytest.mark.parametrize(
    "stamp", ["1970-01-01T00:00:01.5Z", "1970-01-01 00:00:01.500+00:00", "1970-01-01 01:00:01.5+01:00"]
)
def test_timestamps_may_name_their_zone(tmp_path: Path, stamp: str) -> None:
    assert read_trace(write(tmp_path, HEADER, f"{stamp},1,1"))[0].at_us == 1_500_000


def test_windows_line_ends_a_byte_order_mark_and_empty_lines_do_no_harm(tmp_path: Path) -> None:
    path = write(tmp_path, "\ufeff" + HEADER, "1970-01-01 00:00:00.0000000,1,2", "", "", end="\r\n")

    assert read_trace(path) == [TraceRow(0, 1, 2)]


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        ("2023-11-16 18:15:46.6805900,374", "expected 3 fields, found 2"),
        ("2023-11-16 18:15:46.6805900,374,44,9", "expected 3 fields, found 4"),
        ("yesterday,374,44", "TIMESTAMP must look like"),
        ("2023-02-30 18:15:46,374,44", "TIMESTAMP '2023-02-30 18:15:46' is no moment"),
        ("2023-11-16 18:15:46,-1,44", "ContextTokens must be a whole number"),
        ("2023-11-16 18:15:46,1.5,44", "ContextTokens must be a whole number"),
        ("2023-11-16 18:15:46,٣,44", "ContextTokens must be a whole number"),
        ("2023-11-16 18:15:46,374,", "GeneratedTokens must be a whole number"),
        ("2023-11-16 18:15:46,374,99999999999999", "GeneratedTokens must be a whole number"),
    ],
)
def test_a_bad_line_is_named_with_file_line_and_reason(tmp_path: Path, line: str, reason: str) -> None:
    path = write(tmp_path, HEADER, "2023-11-16 18:15:46.6805900,374,44", line)

    with pytest.raises(BadTrace) as caught:
        read_trace(path)

    assert f"{path}, line 3: {reason}" in caught.value.message


def test_what_is_no_trace_at_all_says_so(tmp_path: Path) -> None:
    with pytest.raises(BadTrace, match="line 1: expected the header"):
        read_trace(write(tmp_path, "2023-11-16 18:15:46.6805900,374,44"))
    with pytest.raises(BadTrace, match="no requests"):
        read_trace(write(tmp_path, HEADER))
    with pytest.raises(BadTrace, match="can't be read: No such file"):
        read_trace(tmp_path / "missing.csv")
    with pytest.raises(BadTrace, match="can't be read: Is a directory"):
        read_trace(tmp_path)
    (tmp_path / "binary.csv").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(BadTrace, match="not text in UTF-8"):
        read_trace(tmp_path / "binary.csv")


def test_a_written_trace_is_read_back_as_it_was(tmp_path: Path) -> None:
    rows = generate(300, seed=4)

    write_trace(rows, tmp_path / "trace.csv")

    assert read_trace(tmp_path / "trace.csv") == rows


def test_the_same_seed_makes_the_same_trace_and_another_seed_another() -> None:
    assert generate(100, seed=1) == generate(100, seed=1)
    assert generate(100, seed=1) != generate(100, seed=2)


def test_a_longer_trace_begins_like_the_shorter_one() -> None:
    assert generate(200, seed=1)[:100] == generate(100, seed=1)


def test_a_generated_trace_has_the_shape_of_the_azure_trace() -> None:
    rows = generate(5000)

    for found, real in (
        (percentiles([row.context_tokens for row in rows]), AZURE_CONTEXT),
        (percentiles([row.generated_tokens for row in rows]), AZURE_GENERATED),
    ):
        assert all(0.7 < a / b < 1.5 for a, b in zip(found, real, strict=True)), (found, real)


def test_generated_requests_arrive_like_the_azure_ones() -> None:
    rows = generate(5000)
    gaps = [later.at_us - row.at_us for row, later in pairwise(rows)]

    assert min(gaps) >= 0
    assert 0.16 < sum(gaps) / len(gaps) / 1e6 < 0.20
    assert 0.30 < sum(gap < 70_000 for gap in gaps) / len(gaps) < 0.36  # 1 - exp(-70/181), as in a Poisson process
