"""What Flower has seen, asked as an operator's script would ask: its API, with user and password."""

from __future__ import annotations

import base64
import http.client
import json
import re
import time
from collections.abc import Collection, Mapping
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

#: Flower learns of tasks by events, a moment after they happened.
PATIENCE_SECONDS = 5.0
LIMIT = 10_000
_REQUEST_ID = re.compile(r"[0-9a-f]{8}-[0-9a-f]{4}-7[0-9a-f]{3}-[89ab][0-9a-f]{3}-[0-9a-f]{12}")


@dataclass(frozen=True, slots=True)
class FlowerSeen:
    """What Flower answered. `problem` says why it did not."""

    url: str
    user: str
    password: str
    tasks: int = 0
    succeeded: int = 0
    task_id: str = ""  # of a task that names `request_id`
    task_name: str = ""
    request_id: str = ""
    problem: str = ""


def ask_flower(notes: Mapping[str, str], request_ids: Collection[str]) -> FlowerSeen:
    """How many tasks Flower lists, and one of them that names one of our requests. Raises nothing."""
    url, user = notes["url"], notes["user"]
    password = Path(notes["password_file"]).read_text().strip()
    deadline = time.monotonic() + PATIENCE_SECONDS
    while True:
        try:
            seen = _seen(_tasks(url, user, password), request_ids, FlowerSeen(url, user, password))
        except (OSError, http.client.HTTPException, ValueError) as exc:
            seen = FlowerSeen(url, user, password, problem=f"its API can't be read: {exc}")
        if seen.request_id or time.monotonic() > deadline:
            return seen
        time.sleep(0.2)


def _tasks(url: str, user: str, password: str) -> dict[str, dict[str, Any]]:
    credentials = base64.b64encode(f"{user}:{password}".encode()).decode()
    with closing(http.client.HTTPConnection(urlsplit(url).netloc, timeout=5)) as connection:
        connection.request("GET", f"/api/tasks?limit={LIMIT}", headers={"Authorization": f"Basic {credentials}"})
        answer = connection.getresponse()
        body = answer.read()
    if answer.status != http.HTTPStatus.OK:
        raise ValueError(f"it answers {answer.status} {answer.reason}")
    tasks: dict[str, dict[str, Any]] = json.loads(body)
    return tasks


def _seen(tasks: dict[str, dict[str, Any]], request_ids: Collection[str], empty: FlowerSeen) -> FlowerSeen:
    succeeded = sum(task.get("state") == "SUCCESS" for task in tasks.values())
    task_id, name, request_id = next(
        (
            (task_id, str(task.get("name")), found)
            for task_id, task in tasks.items()
            if task.get("state") == "SUCCESS"
            for found in _REQUEST_ID.findall(f"{task.get('kwargs')} {task.get('result')}")
            if found in request_ids
        ),
        ("", "", ""),
    )
    return FlowerSeen(
        url=empty.url,
        user=empty.user,
        password=empty.password,
        tasks=len(tasks),
        succeeded=succeeded,
        task_id=task_id,
        task_name=name,
        request_id=request_id,
    )
