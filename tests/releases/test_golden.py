"""What users rely on is as each recorded release had it: calls, answers, refusals, balances, rows, byte for byte."""

from __future__ import annotations

from pathlib import Path

import pytest

from billing_tasks.lab.servers import Servers
from tests.releases.record import CARRIED_ON, MEANT, changes, play, releases

RELEASES = releases()
TRACES = [trace for release in RELEASES for trace in sorted(release.glob("traces/*.jsonl"))]
#: Of a difference, for the report.
MOST_LINES, LONGEST_LINE = 60, 800


def name_of(path: Path) -> str:
    return f"{path.parent.parent.name}-{path.stem}"


@pytest.fixture(scope="module")
def played(servers: Servers, database_url: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The traces of this version."""
    folder = tmp_path_factory.mktemp("traces")
    play(servers, folder)
    return folder


def compare(was: Path, now: Path, meant_as: str) -> None:
    """Fail with what differs, unless it is what is meant to."""
    found = now.read_text() if now.exists() else ""
    if found == was.read_text():
        return
    difference = changes(was.read_text(), found)
    meant = MEANT / f"{meant_as}.diff"
    if meant.exists() and difference == meant.read_text():
        return
    shown = difference.splitlines()[:MOST_LINES]
    pytest.fail("\n".join([str(was), *(line[:LONGEST_LINE] for line in shown)]), pytrace=False)


@pytest.mark.parametrize("trace", TRACES, ids=name_of)
def test_a_scenario_goes_as_it_went_in_the_release(trace: Path, played: Path) -> None:
    compare(trace, played / trace.name, trace.stem)


@pytest.mark.parametrize("release", RELEASES, ids=lambda release: release.name)
def test_what_the_release_left_behind_is_carried_on(
    release: Path, servers: Servers, database_url: str, tmp_path: Path
) -> None:
    play(servers, tmp_path, "--carry-on", str(release))
    trace = f"{CARRIED_ON}.jsonl"
    compare(release / trace, tmp_path / trace, f"{CARRIED_ON}_{release.name}")
