"""Flower for production: `celery -A billing_tasks flower --conf=config/flowerconfig.py`.

A person who may use Flower may start tasks, and tasks move money: treat it like a root
console. It asks for a password (FLOWER_BASIC_AUTH=user:password), listens on
loopback unless told otherwise, and a second instance with FLOWER_READ_ONLY=1 is
for people who only look. `/metrics` and `/healthcheck` answer without a password:
keep the port inside your network.
"""

import os

address = os.environ.get("FLOWER_ADDRESS", "127.0.0.1")
port = int(os.environ.get("FLOWER_PORT", "5555"))

_auth = os.environ.get("FLOWER_BASIC_AUTH", "")
if ":" not in _auth:
    raise SystemExit("Set FLOWER_BASIC_AUTH to user:password; Flower does not start without one.")
basic_auth = _auth.split(",")
read_only = os.environ.get("FLOWER_READ_ONLY", "") == "1"

# Flower forgets everything at a restart unless told where to keep it. It is a window, never the audit trail.
persistent = os.path.isdir("/data") and os.access("/data", os.W_OK)
db = "/data/flower"
state_save_interval = 60_000  # milliseconds

max_tasks = 50_000
purge_offline_workers = 300  # seconds
# The first five fit a laptop's width; the name leads to the task, as its id does.
tasks_columns = "name,state,received,kwargs,exception,result,runtime,worker,retries,uuid"
task_runtime_metric_buckets = [0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0]
