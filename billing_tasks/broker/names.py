"""Names of the Celery tasks and how to reach the broker: what producers and workers must agree on."""

from __future__ import annotations

from typing import Any, Final

from billing_tasks.settings import Settings

SETTLE: Final = "billing.settle"
CONSUME: Final = "billing.consume"
REFUND: Final = "billing.refund"
RETRY_FAILED: Final = "billing.retry_failed"
EXPIRE_HOLDS: Final = "billing.expire_holds"
RING_STALE: Final = "billing.ring_stale"
RECONCILE: Final = "billing.reconcile"
LEARN_ESTIMATES: Final = "billing.learn_estimates"
MAINTAIN_PARTITIONS: Final = "billing.maintain_partitions"


def broker_config(settings: Settings) -> dict[str, Any]:
    """Celery settings that a producer needs as well as a worker."""
    config: dict[str, Any] = {
        "broker_url": settings.celery_broker_url,
        "broker_connection_retry_on_startup": True,
        "broker_connection_max_retries": None,
        "broker_pool_limit": 10,
        "broker_pool_acquire_timeout": 1.0,
        "task_default_queue": settings.queue,
        "task_serializer": "json",
        "result_serializer": "json",
        "event_serializer": "json",
        "accept_content": ["json"],
        "task_send_sent_event": True,
        "task_ignore_result": True,
        "result_backend": None,
        "task_publish_retry_policy": {
            "max_retries": 1,
            "interval_start": 0,
            "interval_step": 0.1,
            "interval_max": 0.2,
        },
        "enable_utc": True,
        "timezone": "UTC",
    }
    if config["broker_url"].startswith(("redis", "rediss")):
        config["broker_transport_options"] = {
            # Far above any task's run and any countdown; what is unacknowledged longer is delivered again.
            "visibility_timeout": 300,
            "unacked_restore_interval": 10,
            "unacked_restore_throttle": 1,
            # Without these a publish to a broker that hangs waits for ever.
            "socket_timeout": 10,
            "socket_connect_timeout": 2,
            "socket_keepalive": True,
            "health_check_interval": 25,
        }
    else:
        config["broker_transport_options"] = {"confirm_publish": True}
    return config
