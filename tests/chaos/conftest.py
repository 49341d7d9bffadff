"""What the tests of chaos share with the lab's: whether processes are gone."""

from __future__ import annotations

from tests.lab.conftest import all_gone

__all__ = ["all_gone"]
