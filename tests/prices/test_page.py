"""The example of docs/how-to/meters.md runs, and prints what stands below it."""

from __future__ import annotations

import re
from contextlib import redirect_stdout, suppress
from io import StringIO
from pathlib import Path

from billing_tasks.errors import UnknownModel
from billing_tasks.pricing import Catalogue, PriceList, meters

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs/how-to/meters.md").read_text(encoding="utf-8")


def test_the_example_prints_what_the_page_says() -> None:
    (program,) = re.findall(r"^```python\n(.*?)^```", PAGE, re.MULTILINE | re.DOTALL)
    (printed,) = re.findall(r"^```text\n(.*?)^```", PAGE, re.MULTILINE | re.DOTALL)
    said = StringIO()
    with redirect_stdout(said):
        exec(compile(program, "docs/how-to/meters.md", "exec"), {})
    assert said.getvalue() == printed


def test_the_page_counts_meters_and_prices() -> None:
    assert f"meters.json` has {len(meters())}," in PAGE
    assert f"some {len(Catalogue.shipped()) // 100 * 100:,} models" in PAGE


def test_the_readme_says_what_its_first_request_costs() -> None:
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    price = PriceList().price(model="gpt-5")
    held, charged = price.estimate(374, 512), price.quota(374, 44)
    assert f"held {held}, charged {charged}, request" in readme
    assert f"available (Redis)         {1_000_000 - charged:,}" in readme
    started = (ROOT / "docs/getting-started.md").read_text(encoding="utf-8")
    assert f"quota                 {charged}   (<$0.01) for 374 + 44 tokens" in started
    assert "(374 * 1.25 + 44 * 10) / 1,000,000 * 500,000 = 453.75" in started


def test_the_reference_s_wrong_prices_are_on_their_page() -> None:
    page = (ROOT / "docs/reference/one-api-prices.md").read_text(encoding="utf-8")
    one_api, listed = PriceList(catalogue="one-api"), Catalogue.shipped()
    for name in one_api.ratios.tables.model:
        if "(" in name or not one_api.price(model=name).model_ratio:
            continue
        with suppress(UnknownModel):
            theirs = listed.find(name).sheet.prices.get("input_tokens")
            times = one_api.price(model=name).model_ratio * 2 / theirs if theirs else 1
            assert 1 / 200 < times < 200 or f"`{name}`" in page, (name, float(times))
