"""Loaded by a worker (`--include`): its broker delivers again after a second, not after five minutes."""

from __future__ import annotations

from billing_tasks.celery import app

app.conf.broker_transport_options = {
    **app.conf.broker_transport_options,
    "visibility_timeout": 1,
    "unacked_restore_interval": 0.5,
    "unacked_restore_throttle": 1,
}
