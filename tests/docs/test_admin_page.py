"""The page about the operator's API: its Python runs and prints what the page says; it names every method."""

from __future__ import annotations

from pathlib import Path

from billing_tasks.admin import Admin
from tests.conftest import Billing
from tests.docs.conftest import ROOT, Run, blocks
from tests.flows.dead_letters.conftest import DeadLetterDriver, refund_of, usage

PAGE = ROOT / "docs" / "reference" / "admin.md"


def test_the_python_of_the_page_prints_what_the_page_says(billing: Billing, run_python: Run, tmp_path: Path) -> None:
    billing.accounts.create_user(42, quota=1_000_000)
    billing.accounts.create_token(42, 7, unlimited=True)
    other = billing.payer()
    booked = usage(other, 1000)
    billing.runtime.ledger.post_batch(billing.runtime.commands.keys.shard_of(other[0]), [booked])
    DeadLetterDriver(billing).keep(refund_of(other[0], booked.request_id, 300, "case-1"))
    found = [block for block in blocks(PAGE) if block.language in ("python", "text")]
    assert [block.language for block in found] == ["python", "text", "python", "text"]
    for number, (code, printed) in enumerate(zip(found[::2], found[1::2], strict=True)):
        program = tmp_path / f"typed_in_{number}.py"
        program.write_text(code.body, encoding="utf-8")
        assert run_python(program) == printed.body


def test_every_method_is_on_the_page(billing: Billing) -> None:
    admin, page = Admin(billing.runtime), PAGE.read_text(encoding="utf-8")
    for part in (admin, admin.accounts, admin.entries, admin.dead_letters, admin.incidents, admin.audit, admin.prices):
        names = {name for name in vars(type(part)) if not name.startswith("_")} - {"close", "from_settings"}
        assert {name for name in names if name not in page and not name.endswith("_many")} == set()
