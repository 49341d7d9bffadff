"""The example of docs/how-to/meters.md runs, and prints what stands below it."""

from __future__ import annotations

import re
from contextlib import redirect_stdout
from io import StringIO
from pathlib import Path

from billing_tasks.pricing import Catalogue, meters

PAGE = (Path(__file__).parents[2] / "docs/how-to/meters.md").read_text(encoding="utf-8")


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
