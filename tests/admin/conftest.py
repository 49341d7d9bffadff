"""Admin over a test's own servers, and dead letters of every sort."""

from __future__ import annotations

import pytest

from billing_tasks.admin import Admin
from tests.conftest import Billing
from tests.flows.dead_letters.conftest import DeadLetterDriver, as_json, charge, refund_of, usage

__all__ = ["DeadLetterDriver", "as_json", "charge", "refund_of", "usage"]


@pytest.fixture
def admin(billing: Billing) -> Admin:
    return Admin(billing.runtime)


@pytest.fixture
def dead_letters(billing: Billing) -> DeadLetterDriver:
    return DeadLetterDriver(billing)
