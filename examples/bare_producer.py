"""Report usage to billing_tasks from a program that does not have billing_tasks: Celery is enough.

    python bare_producer.py BROKER_URL USER_ID TOKEN_ID

BROKER_URL is the broker that the workers read: redis://host:6379/0, or as
`billing-tasks status` shows it. The same message can be sent from any language
(docs/reference/wire-format.md).

A program that may write to the broker can move money. Give it to your own services only.
"""

import os
import sys
import time
import uuid

from celery import Celery


def request_id() -> str:
    """A UUID of version 7: 48 bits of milliseconds, then randomness. Keep it, and repeat with the same one."""
    value = (time.time_ns() // 1_000_000) << 80 | int.from_bytes(os.urandom(10), "big")
    value = value & ~(0xF000 << 64) | (0x7000 << 64)
    value = value & ~(0xC000 << 48) | (0x8000 << 48)
    return str(uuid.UUID(int=value))


def main(broker_url: str, user_id: int, token_id: int) -> None:
    app = Celery(broker=broker_url, set_as_current=False)
    app.conf.task_routes = {"billing.*": {"queue": "billing"}}  # BILLING_QUEUE; nobody else reads it
    usage = {
        "request_id": request_id(),
        "user_id": user_id,
        "token_id": token_id,
        "channel_id": 3,
        "model_name": "gpt-4o",
        "prompt_tokens": 374,
        "completion_tokens": 44,
        "quota": 1375,  # ceil((374 + 44 * 4) * 2.5)
        "content": "from a bare producer",
    }
    for attempt in ("sent", "sent again"):  # twice: a producer that is not sure repeats, and is charged once
        app.send_task("billing.consume", kwargs=usage, ignore_result=True)
        print(f"billing.consume {usage['request_id']} {attempt}")

    # All of it back: no refund_id, no quota.
    back = {"request_id": usage["request_id"], "user_id": user_id, "reason": "the answer was empty"}
    app.send_task("billing.refund", kwargs=back, ignore_result=True)
    print(f"billing.refund {usage['request_id']} sent")
    app.close()


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]))
