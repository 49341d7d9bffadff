"""One scenario while it is played: the calls of a gateway, a worker and an operator, and what each was answered.

A call becomes one line of the trace: its name, its arguments, and its answer or refusal. Only what stays public is
used: the package's own names, tasks by their names, the console script, SQL and Redis commands.
"""

from __future__ import annotations

import asyncio
import base64
import io
import json
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stdout
from importlib.metadata import entry_points
from typing import Any

import psycopg
import redis

from billing_tasks import Accounts, AsyncBookkeeper, Bookkeeper, ConsumeLog, Reservation, Settings
from billing_tasks.celery import app
from billing_tasks.errors import BillingError
from tests.releases.state import ROWS, rows_of
from tests.releases.templates import Names
from tests.releases.values import ENTRY, refusal, written

app.loader.import_default_modules()
(_console_script,) = set(entry_points(group="console_scripts", name="billing-tasks"))
command_line: Callable[[], None] = _console_script.load()

#: What a scenario uses unless it says otherwise.
USER, TOKEN, CHANNEL = 42, 7, 3


class Play:
    """Doors, names and the trace of one scenario."""

    def __init__(self, settings: Settings, names: Names | None = None) -> None:
        self.settings = settings
        self.names = names or Names()
        self.lines: list[dict[str, Any]] = []
        self._opened: list[Any] = []
        self.bookkeeper = self.another(Bookkeeper)
        self.accounts = self.another(Accounts)
        for url, name in (
            (settings.cache_url, "redis"),
            (settings.redis_url, "redis"),
            (settings.database_url, "postgresql"),
        ):
            self.names.call(url, name)

    def another(self, door: type, **settings: Any) -> Any:
        """A door of its own, with other settings."""
        made = door.from_settings(self.settings.model_copy(update=settings))  # type: ignore[attr-defined]
        self._opened.append(made)
        return made

    def close(self) -> None:
        """Give connections back, and have rings that wait sent."""
        while self._opened:
            door = self._opened.pop()
            if not isinstance(door, AsyncBookkeeper):  # those end with their event loop
                door.close()

    # -- the trace ----------------------------------------------------------------------------------------

    def say(self, **line: Any) -> None:
        """One line of the trace."""
        self.lines.append({name: written(value, self.names) for name, value in line.items()})

    @property
    def text(self) -> str:
        """The trace as a file has it."""
        return "".join(json.dumps(line, sort_keys=True) + "\n" for line in self.lines)

    def id(self, name: str, **when: int) -> str:
        """The request id of this name."""
        return self.names.id(name, **when)

    def calling(self, call: str, arguments: dict[str, Any], do: Callable[[], Any]) -> Any:
        """Do it, and write what came of it. None if it was refused."""
        try:
            answer = do()
        except BillingError as exc:
            self.lines.append({**self._call(call, arguments), "refusal": refusal(exc, self.names)})
            return None
        self.lines.append({**self._call(call, arguments), "answer": written(answer, self.names)})
        return answer

    def _call(self, call: str, arguments: dict[str, Any]) -> dict[str, Any]:
        brief = {
            name: f"<reservation {value.request_id}>" if isinstance(value, Reservation) else value
            for name, value in arguments.items()
        }
        return {"call": call, "arguments": written(brief, self.names)}

    # -- what a gateway does ------------------------------------------------------------------------------

    def price(self, **arguments: Any) -> Any:
        """What a model costs a group."""
        return self.calling("price", arguments, lambda: self.bookkeeper.price(**arguments))

    def reserve(self, quota: Any, name: str = "", *, door: Any = None, **more: Any) -> Any:
        """pre_consume_quota under the id of this name."""
        arguments = {"quota": quota, "user_id": USER, "token_id": TOKEN, **more}
        if name:
            arguments["request_id"] = self.id(name)
        time.sleep(0.002)  # holds due in the same millisecond expire in the order of their ids, which is chance
        return self.calling(
            "pre_consume_quota", arguments, lambda: (door or self.bookkeeper).pre_consume_quota(**arguments)
        )

    def consume(self, quota: Any, name: str = "", *, door: Any = None, **more: Any) -> Any:
        """A ConsumeLog under the id of this name, consumed."""
        log = {"quota": quota, "user_id": USER, "token_id": TOKEN, "channel_id": CHANNEL, **more}
        if name:
            log["request_id"] = self.id(name)
        return self.calling("consume", {"log": log}, lambda: (door or self.bookkeeper).consume(ConsumeLog(**log)))

    def use(self, reservation: Reservation, **usage: Any) -> Any:
        """What a reservation was used for, consumed."""
        log = {"channel_id": CHANNEL, **usage}
        arguments = {"reservation": reservation, "log": log}
        return self.calling("consume", arguments, lambda: self.bookkeeper.consume(reservation.log(**log)))

    def refund_quota(self, reservation: Any = None, name: str = "", *, door: Any = None, **more: Any) -> Any:
        """Give a hold back, by its reservation or by the id of this name."""
        arguments = dict(more)
        if reservation is not None:
            arguments["reservation"] = reservation
        if name:
            arguments = {"user_id": USER, "request_id": self.id(name), **more}
        return self.calling("refund_quota", arguments, lambda: (door or self.bookkeeper).refund_quota(**arguments))

    def refund_charge(self, name: str, refund_id: Any, *, door: Any = None, **more: Any) -> Any:
        """Give a charge back."""
        arguments = {"user_id": USER, "request_id": self.id(name), "refund_id": refund_id, **more}
        return self.calling("refund_charge", arguments, lambda: (door or self.bookkeeper).refund_charge(**arguments))

    def renew(self, reservation: Reservation, ttl_seconds: Any = None) -> None:
        """Keep a hold; the trace says whether it now ends later than it would have."""
        arguments = {"reservation": reservation, "ttl_seconds": ttl_seconds}

        def do() -> dict[str, bool]:
            until = self.bookkeeper.renew(reservation, ttl_seconds)
            return {"later": until > reservation.expires_at_ms}

        self.calling("renew", arguments, do)

    def ask(self, call: str, **arguments: Any) -> Any:
        """A method of Bookkeeper or Accounts by its name."""
        door = self.bookkeeper if hasattr(self.bookkeeper, call) else self.accounts
        return self.calling(call, arguments, lambda: getattr(door, call)(**arguments))

    def entries(self, **filters: Any) -> None:
        """Accounts.entries, in an order that depends on no clock."""
        found = [written(entry, self.names) for entry in self.accounts.entries(**filters)]
        self.say(call="entries", arguments=filters, answer=sorted(found, key=json.dumps))

    @contextmanager
    def block(self, call: str, arguments: dict[str, Any]) -> Iterator[None]:
        """A `with` block of charge: what it raised is written down and goes no further."""
        try:
            yield
        except Exception as exc:
            raised = {"type": type(exc).__name__, "text": str(exc), "notes": getattr(exc, "__notes__", [])}
            self.say(call=call, arguments=arguments, raised=raised)

    def asynchronously(self, story: Callable[[AsyncBookkeeper], Any]) -> None:
        """A story told with an AsyncBookkeeper, in an event loop of its own."""

        async def tell() -> None:
            async with self.another(AsyncBookkeeper) as door:
                await story(door)

        asyncio.run(tell())

    # -- what a worker does -------------------------------------------------------------------------------

    def task(self, task: str, /, *args: Any, task_id: str | None = None, **kwargs: Any) -> Any:
        """A task by its name, in this process."""

        def do() -> Any:
            message = json.loads(json.dumps([args, kwargs]))  # as it would come out of the broker
            done = app.tasks[task].apply(args=message[0], kwargs=message[1], task_id=task_id)
            if not done.successful():
                raise getattr(done.result, "exc", None) or done.result  # of a Retry: what it is for
            return done.result

        # The time of use is a moment, and 0.1.0 did not send it.
        said = {name: value for name, value in kwargs.items() if name != "used_at_ms"}
        arguments = {**said, **({"task_id": task_id} if task_id else {}), **({"args": args} if args else {})}
        return self.calling(task, arguments, do)

    def settle(self, user_id: int = USER) -> None:
        """Book the outbox of this user's shard."""
        self.task("billing.settle", shard=user_id % self.settings.shards, request_id="")

    def until_due(self, *reservations: Reservation) -> None:
        """Wait until these holds may expire."""
        due = max(reservation.expires_at_ms for reservation in reservations) / 1000
        time.sleep(max(0.0, due - time.time()) + 0.05)

    def deliver(self) -> None:
        """Run what lies in the broker's list, but for rings, whose number is a matter of time."""
        with redis.Redis.from_url(self.broker_url) as broker:
            while raw := broker.rpop(self.settings.queue):
                message = json.loads(raw)
                headers = message["headers"]
                if headers["task"] == "billing.settle":
                    continue
                args, kwargs, _ = json.loads(base64.b64decode(message["body"]))
                known = headers["id"] if ":" in headers["id"] else None
                self.task(headers["task"], *args, task_id=known, **kwargs)

    def quiet(self) -> None:
        """Have every ring that is under way sent, and forget them all."""
        self.bookkeeper.close()
        self.bookkeeper = self.another(Bookkeeper)
        with redis.Redis.from_url(self.broker_url) as broker:
            broker.delete(self.settings.queue)

    @property
    def broker_url(self) -> str:
        """Celery's messages, in redis-py's spelling."""
        return self.settings.cache_url.removesuffix("1") + "0"

    def send(self, task: str, **kwargs: Any) -> None:
        """Send a task to the broker, as another program would."""
        app.send_task(task, kwargs=kwargs)
        self.say(call="send", arguments={"task": task, "kwargs": kwargs})

    # -- what an operator does ----------------------------------------------------------------------------

    def command(self, *words: str) -> Any:
        """What `billing-tasks ... --json` prints, and its exit status."""
        before, printed, status = sys.argv, io.StringIO(), 0
        sys.argv = ["billing-tasks", *words, "--json"]
        try:
            with redirect_stdout(printed):
                command_line()
        except SystemExit as exit_:
            status = exit_.code if isinstance(exit_.code, int) else 0
        finally:
            sys.argv = before
        return {"exit": status, "printed": json.loads(printed.getvalue() or "null")}

    def sql(self, statement: str, *values: object) -> None:
        """Plain SQL from another program."""
        with psycopg.connect(self.settings.database_url, autocommit=True) as connection:
            try:
                connection.execute(statement, values or None)  # type: ignore[arg-type]
                self.say(sql=statement, values=list(values))
            except psycopg.Error as exc:
                self.say(sql=statement, values=list(values), refused=str(exc).splitlines()[0])

    def redis(self, *words: object) -> Any:
        """One raw command on the quota database."""
        with redis.Redis.from_url(self.settings.cache_url) as client:
            return client.execute_command(*words)

    def rows(self, *which: str) -> None:
        """Rows of tables and views, one line each."""
        for name in which or ROWS:
            found = [written(row, self.names) for row in rows_of(self.settings.database_url, ROWS[name])]
            if "order by" not in ROWS[name]:
                found.sort(key=json.dumps)
            for row in found:
                self.say(row=name, values=row)

    def end(self) -> None:
        """Book what waits, then balances, rows, the log and the verdict."""
        for shard in self._waiting_shards():
            self.task("billing.settle", shard=shard, request_id="")
        self.look()

    def _waiting_shards(self) -> list[int]:
        """Shards whose outbox has events. Which keys a shard has is for the release to say; its events name users."""
        with redis.Redis.from_url(self.settings.cache_url) as client:
            first = [client.xrange(key, count=1) for key in client.scan_iter("*:outbox", _type="stream")]
        users = [int(entries[0][1][b"event"].split()[2]) for entries in first if entries]
        return sorted(user_id % self.settings.shards for user_id in users)

    def shard_key(self, user_id: int, name: str) -> str:
        """A key of the shard that has this user, whose account is cached."""
        with redis.Redis.from_url(self.settings.cache_url) as client:
            (account,) = client.scan_iter(f"{self.settings.key_prefix}:*:user:{user_id}")
        return f"{account.decode().removesuffix(f'user:{user_id}')}{name}"

    def look(self) -> None:
        """What a scenario ends with."""
        self.rows()
        for user in self.accounts.users(limit=1000):
            self.ask("balance", user_id=user.id)
            self.command_balance(user.id)
        log = self.command("log", "--limit", "1000")
        for entry in sorted((self._entry(one) for one in log["printed"]), key=json.dumps):
            self.say(command="log", entry=entry)
        report = self.command("verify")
        said = {"ok": report["printed"]["ok"], "findings": report["printed"]["findings"]}
        self.say(command="verify", answer=said, exit=report["exit"])

    def command_balance(self, user_id: int) -> None:
        """`billing-tasks balance`."""
        said = self.command("balance", str(user_id))
        answer = {name: said["printed"][name] for name in ("available", "held", "unposted")}
        self.say(command="balance", user_id=user_id, answer=answer, exit=said["exit"])

    def _entry(self, printed: dict[str, Any]) -> Any:
        return written({name: printed[name] for name in ENTRY}, self.names)
