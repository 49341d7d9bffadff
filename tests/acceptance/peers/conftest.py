"""Workers for the tests that need them."""

from __future__ import annotations

from tests.worker.conftest import processes

__all__ = ["processes"]
