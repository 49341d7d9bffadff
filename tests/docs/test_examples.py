"""The examples run, and print what is committed beside them."""

from __future__ import annotations

import ast
import re
import sys

from tests.conftest import Billing
from tests.docs.conftest import ROOT, Run
from tests.worker.conftest import Processes, eventually

EXAMPLES = ROOT / "examples"
UUID = re.compile(r"[0-9a-f]{8}-[0-9a-f]{4}-7[0-9a-f]{3}-[89ab][0-9a-f]{3}-[0-9a-f]{12}")


def masked(output: str) -> str:
    """The output without what differs from run to run."""
    return UUID.sub("<request id>", output)


def expected(name: str) -> str:
    return (EXAMPLES / f"{name}.out").read_text(encoding="utf-8")


def test_one_request_prints_what_is_committed(billing: Billing, processes: Processes, run_python: Run) -> None:
    processes.worker(billing)
    assert masked(run_python(EXAMPLES / "one_request.py")) == expected("one_request")


def test_the_async_gateway_prints_what_is_committed(billing: Billing, processes: Processes, run_python: Run) -> None:
    processes.worker(billing)
    assert masked(run_python(EXAMPLES / "async_gateway.py")) == expected("async_gateway")


def test_a_bare_producers_usage_is_charged_once_and_refunded(
    billing: Billing, processes: Processes, run_python: Run
) -> None:
    user_id, token_id = billing.payer(quota=10_000)
    processes.worker(billing)
    printed = run_python(EXAMPLES / "bare_producer.py", billing.settings.celery_broker_url, user_id, token_id)
    assert masked(printed) == expected("bare_producer")

    def kinds() -> list[str]:
        return sorted(entry.kind for entry in billing.accounts.entries(user_id=user_id) if entry.request_id)

    eventually(lambda: kinds() == ["consume", "refund"], what="the usage is booked and refunded")
    user = billing.accounts.user(user_id)
    assert (user.quota, user.used_quota, user.request_count) == (10_000, 0, 1)


def test_a_bare_producer_needs_none_of_our_code() -> None:
    tree = ast.parse((EXAMPLES / "bare_producer.py").read_text(encoding="utf-8"))
    imported = {alias.name for node in ast.walk(tree) if isinstance(node, ast.Import) for alias in node.names}
    imported |= {node.module or "" for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)}
    assert imported - sys.stdlib_module_names == {"celery"}
