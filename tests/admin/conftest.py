"""Admin over a test's own servers, and dead letters of every sort."""

from __future__ import annotations

import pytest

from billing_tasks.admin import Admin
from tests.conftest import Billing
from tests.flows.dead_letters.conftest import Letters, as_json, charge, refund_of, usage

__all__ = ["Letters", "as_json", "charge", "refund_of", "usage"]


@pytest.fixture
def admin(billing: Billing) -> Admin:
    return Admin(billing.runtime)


@pytest.fixture
def mail(billing: Billing) -> Letters:
    return Letters(billing)
