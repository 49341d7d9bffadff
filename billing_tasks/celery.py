"""`celery -A billing_tasks worker`, `beat`, `flower`: Celery looks for the app here."""

from __future__ import annotations

from billing_tasks.worker.app import app

__all__ = ["app"]
