"""Prices on the command line: what an operator types and sees, in 80 columns."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from click.testing import Result
from typer.testing import CliRunner

from billing_tasks import errors
from billing_tasks.cli import app
from billing_tasks.runtime import runtime
from tests.conftest import CHANNEL, Billing, MakeBilling

Run = Callable[..., Result]


@pytest.fixture
def billing(make_billing: MakeBilling) -> Billing:
    return make_billing(catalogue="list", unknown_model="refuse")


@pytest.fixture
def run(billing: Billing, monkeypatch: pytest.MonkeyPatch):  # type: ignore[no-untyped-def]
    for name, value in billing.environment.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("COLUMNS", "80")
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


def lines_of(result: Result) -> list[str]:
    lines = result.stdout.splitlines()
    assert all(len(line.rstrip()) <= 80 for line in lines), result.stdout
    return lines


def test_a_price_is_set_shown_compared_and_taken_back(run: Run, billing: Billing) -> None:
    before = billing.bk.price_book.prices
    billing.runtime.ledger.store_price_list(before)
    said = run("prices", "set", "mine", "input_tokens=1.25", "output_tokens=10", "--comment", "our GPUs").stdout
    assert said == "model mine: is set now.\n"
    assert "it is so already" in run("prices", "set", "mine", "output_tokens=10", "input_tokens=1.25").stdout
    assert run("prices", "set", "vip", "0.9", "--group").stdout == "group vip: is set now.\n"
    run("prices", "set", "ours", "--alias", "gpt-5", "--from", "2030-01-01")
    assert any("mine" in line and "1.25" in line for line in lines_of(run("prices", "list")))
    shown = run("prices", "show", "mine", "--group", "vip").stdout
    assert "9/10   (vip)" in shown
    assert "your own sheet" in shown
    [newest, *_] = json.loads(run("prices", "history", "--json").stdout)
    assert (newest["kind"], newest["name"], newest["body"]) == ("alias", "ours", "gpt-5")
    assert any("our GPUs" in line for line in run("prices", "history", "mine").stdout.splitlines())
    assert any("mine" in line for line in lines_of(run("prices", "diff", before.version)))
    run("prices", "set", "mine", "--remove")
    with pytest.raises(errors.UnknownModel):
        run("prices", "show", "mine")
    assert run("prices", "check").stdout == "No price looks wrong.\n"


def test_a_whole_file_is_imported_once(run: Run, tmp_path: Path) -> None:
    file = tmp_path / "ratios.toml"
    file.write_text(
        '[model]\ngpt-5 = "1.25"\n[group]\nvip = "0.9"\n[alias]\nours = "gpt-5"\n'
        '[prices.mine]\ninput_tokens = 1\n[[factor]]\nname = "spring"\nby = "0.8"\n[[cost]]\nof_list = "0.7"\n'
    )
    assert run("prices", "import", file, "--comment", "move").stdout == "6 prices are set; 0 were so already.\n"
    assert run("prices", "import", file, "--comment", "again").stdout == "0 prices are set; 6 were so already.\n"
    assert json.loads(run("prices", "show", "ours", "--group", "vip", "--json").stdout)["model_ratio"] == "5/4"


def test_a_sheet_with_tiers_is_set_from_a_file(run: Run, tmp_path: Path) -> None:
    file = tmp_path / "sheet.toml"
    file.write_text("input_tokens = 1\noutput_tokens = 2\n[[above]]\ntokens = 1000\nprices = { input_tokens = 2 }\n")
    run("prices", "set", "mine", "--file", file, "--comment", "tiers")
    assert "prompt above 1,000: input_tokens 2" in run("prices", "show", "mine").stdout


@pytest.mark.parametrize(
    ("words", "reason"),
    [
        (("mine", "input_tokens"), "write METER=USD"),
        (("mine", "input_tokenz=1"), "no meter"),
        (("mine", "input_tokens=-1"), "negative"),
        (("mine",), "Say prices"),
        (("vip", "--group"), "Say one ratio"),
        (("mine", "input_tokens=1", "--from", "tomorrow"), "--from must be a date"),
        (("mine", "input_tokens=1", "--from", "2020-01-01"), "valid_from lies in the past"),
    ],
)
def test_what_can_not_be_set_says_why(run: Run, words: tuple[str, ...], reason: str) -> None:
    with pytest.raises(errors.InvalidRequest, match=reason):
        run("prices", "set", *words)


def test_doubtful_prices_end_with_1(run: Run) -> None:
    run("prices", "set", "mine", "input_tokens=10", "output_tokens=5")
    found = lines_of(run("prices", "check", status=1))
    assert any("costs less than its input" in line for line in found)


def used(billing: Billing, model: str = "claude-sonnet-4-5", **usage: Any) -> str:
    payer = billing.payer()
    asked = {"user_id": payer[0], "token_id": payer[1], "channel_id": CHANNEL, "model": model, "prompt_tokens": 1000}
    with billing.bk.charge(**asked, max_tokens=500) as block:
        block.usage({"usage": {"input_tokens": 100, "cache_read_input_tokens": 900, "output_tokens": 50, **usage}})
    billing.settle()
    return block.request_id


def test_a_charge_is_explained_as_arithmetic(run: Run, billing: Billing) -> None:
    request_id = used(billing)
    shown = lines_of(run("explain", request_id))
    assert any("cache_read_tokens" in line and "900" in line and "135" in line for line in shown)
    assert "charged 660 quota (<$0.01), rounded up once" in shown
    found = json.loads(run("explain", request_id, "--json").stdout)
    assert (found["charged"], found["computed"], found["total"]) == (660, 660, "660")
    with pytest.raises(errors.ChargeNotFound):
        run("explain", "01a215ad-7bf0-7849-95d4-139371c76661")


def test_charges_are_priced_anew(run: Run, billing: Billing) -> None:
    request_id = used(billing)
    run("prices", "set", "claude-sonnet-4-5", "input_tokens=1", "output_tokens=2", "--comment", "wrong")
    looked = lines_of(run("reprice", "--since", "1h", "--dry-run"))
    assert any("claude-sonnet-4-5" in line and "110" in line for line in looked)  # 660 - 550
    with pytest.raises(errors.InvalidRequest, match="--comment"):
        run("reprice", "--since", "1h")
    run("reprice", "--since", "1h", "--comment", "wrong", "--yes")
    assert "corrected by -110 quota since" in run("explain", request_id).stdout
    [row] = json.loads(run("usage", "--json").stdout)
    assert (row["charged"], row["corrected"], row["net"]) == (660, -110, 550)
    assert "corrected" in run("usage").stdout


def test_costs_become_a_margin(run: Run, billing: Billing) -> None:
    run("prices", "set", "x", "input_tokens=1")  # nothing of it: costs come by import
    billing.runtime.ledger.change_price("cost", "1", {"of_list": "0.7"}, actor="ann")
    billing.bk.price_book.take_changes(billing.runtime.ledger.price_changes())
    used(billing)
    [row] = json.loads(run("usage", "--json").stdout)
    assert (row["cost"], row["costed"], row["margin"]) == (462, 1, 198)
    assert any("margin" in line for line in lines_of(run("usage")))


def test_estimates_are_shown_beside_what_was_used(run: Run, billing: Billing) -> None:
    used(billing)
    shown = lines_of(run("estimates", "--since", "1h", "--learn"))
    assert any("claude-sonnet-4-5" in line for line in shown)
