"""What lies in Redis: keys, outbox entries and Celery's messages, written down with names and put back.

Raw commands only. `restore` puts keys and outboxes of a recorded release into an empty server, as that release left
them; `deliverable` makes messages that a worker takes from the broker's list.
"""

from __future__ import annotations

import base64
import json
import re
from collections.abc import Iterable
from datetime import datetime
from typing import Any

import redis

from tests.releases.dump import know_payload
from tests.releases.templates import Names

_SHARD = re.compile(r"\{[st](\d+)\}")
#: Of a message's headers: who sent it.
_ORIGIN = re.compile(r"gen\d+@[^\"]+")
Line = dict[str, Any]


def name_epochs(client: redis.Redis, names: Names) -> None:
    """The epochs that shards know of, what the server calls its run and its history, and what PostgreSQL called its."""
    for raw in client.scan_iter("*:meta"):
        key, found = raw.decode(), client.hgetall(raw)
        shard = _SHARD.search(key)
        assert shard, key
        names.know_epochs(int(shard[1]), [int(found[field]) for field in (b"epoch", b"before_epoch") if field in found])
        if b"ledger" in found:  # <installation>.<run>; whoever loads this is another run
            names.call(found[b"ledger"].decode().partition(".")[2], "server run")
    names.call(client.info("server")["run_id"], "run_id")
    names.call(client.info("replication")["master_replid"], "replid")


def outbox_lines(client: redis.Redis, names: Names) -> list[Line]:
    """Every entry of every stream: its key, its id, its fields."""
    entries = [
        (key.decode(), entry_id.decode(), fields)
        for key in sorted(client.scan_iter(_type="stream"))
        for entry_id, fields in client.xrange(key)
    ]
    for _, _, fields in entries:
        know_payload(fields.get(b"payload", b""), names)
    return [
        {
            "key": key,
            "id": names.within(entry_id, clocks=True),
            "fields": {name.decode(): names.within(value.decode(), clocks=True) for name, value in fields.items()},
        }
        for key, entry_id, fields in entries
    ]


def key_lines(client: redis.Redis, names: Names) -> list[Line]:
    """Every key: its type, whether it will go by itself, and what is in it. Entries of streams are outbox.jsonl's."""
    lines = []
    for raw in client.scan_iter():
        kind = client.type(raw).decode()
        value = _value(client, kind, raw)
        line = {"key": raw.decode(), "type": kind, "expires": client.pttl(raw) > 0, "value": value}
        named = json.loads(names.within(json.dumps(line, ensure_ascii=False), clocks=True))
        lines.append(_without_versions(named))
    return sorted(lines, key=lambda line: line["key"])


def _value(client: redis.Redis, kind: str, key: bytes) -> Any:
    match kind:
        case "string":
            return client.get(key).decode()
        case "hash":
            return {name.decode(): value.decode() for name, value in client.hgetall(key).items()}
        case "zset":
            members = client.zrange(key, 0, -1, withscores=True)
            return {member.decode(): str(int(score)) for member, score in members}
        case "set":
            return sorted(member.decode() for member in client.smembers(key))
        case "list":
            return {"length": client.llen(key)}
        case "stream":
            return {"length": client.xlen(key)}
        case _:
            raise ValueError(f"{key!r} is a {kind}, which is not recorded yet")


def _without_versions(line: Line) -> Line:
    """An account's version counts all changes of all accounts; 0 is older than every version of a loaded dump."""
    if line["type"] == "hash" and "version" in line["value"]:
        line["value"]["version"] = "0"
    return line


def message_lines(broker: redis.Redis, queue: str, names: Names) -> list[Line]:
    """The messages in the broker's list, bodies as text; sorted, because a ring's turn is a matter of time."""
    lines = []
    for raw in broker.lrange(queue, 0, -1):
        message = json.loads(raw)
        message["body"] = base64.b64decode(message["body"]).decode()
        lines.append(message)

    def what(message: Line) -> str:
        return names.within(message["headers"]["task"] + message["body"])

    return [_message_named(message, names) for message in sorted(lines, key=what)]


def _message_named(message: Line, names: Names) -> Line:
    names.number_unknown_ids()
    text = _ORIGIN.sub("<origin>", json.dumps(message, ensure_ascii=False, sort_keys=True))
    named: Line = json.loads(names.within(text))
    return named


def as_text(lines: Iterable[Line]) -> str:
    """Lines as a file has them."""
    return "".join(_line(line) + "\n" for line in lines)


def as_array(lines: Iterable[Line]) -> str:
    """The same as one JSON document, a line each."""
    return "[\n" + ",\n".join(map(_line, lines)) + "\n]\n"


def _line(line: Line) -> str:
    return json.dumps(line, sort_keys=True, ensure_ascii=False)


def restore(client: redis.Redis, keys: str, outbox: str, names: Names, *, now: datetime) -> None:
    """Put recorded keys and outbox entries (the texts of both files) into an empty server."""
    run_id, replid = client.info("server")["run_id"], client.info("replication")["master_replid"]

    def filled(line: Line) -> Any:
        return _each(line, lambda one: names.filled(one, now=now, run_id=run_id).replace("<replid>", replid))

    for line in map(filled, json.loads(keys)):
        key, value = line["key"], line["value"]
        match line["type"]:
            case "string":
                client.set(key, value)
            case "hash":
                client.hset(key, mapping=value)
            case "zset":
                client.zadd(key, {member: int(score) for member, score in value.items()})
        if line["expires"]:
            client.pexpire(key, 600_000)
    for entry in map(filled, map(json.loads, outbox.splitlines())):
        client.xadd(entry["key"], entry["fields"], id=entry["id"])


def deliverable(line: Line, names: Names, *, now: datetime) -> str:
    """A recorded message as it lies in the broker's list: LPUSH it."""
    message = _each(line, lambda one: names.filled(one, now=now))
    message["body"] = base64.b64encode(message["body"].encode()).decode()
    return json.dumps(message)


def _each(value: Any, change: Any) -> Any:
    match value:
        case str():
            return change(value)
        case dict():
            return {change(key): _each(one, change) for key, one in value.items()}
        case list():
            return [_each(one, change) for one in value]
    return value
