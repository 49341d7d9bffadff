"""Flows: what happens to a request, one story per file.

A flow is a coroutine that awaits effects (effects.py, holds/commands) and other flows, and nothing else. Its runner
performs each effect and sends the answer back, so that the same story runs in threads, under asyncio, and step by step
in the tests.

requests/      reserve, renew, consume, release, refund, expire, balance; without_redis: what Redis can't take;
               intake: messages of other programs
settlement/    settle: book an outbox; ring: call workers for outboxes that none drains
dead_letters/  record, select, preview, retry, resolve
audit/         verify: the guarantees as code; reconcile: repairs in Redis; backlog: how much waits

`answers.py` in the last two is what they answer with, as data that loads no server's library.

account_cache.py   accounts from PostgreSQL into Redis
effects.py         what a flow may await beside commands for Redis

A folder imports no other one but dead_letters, where what can't be booked is kept (the layers are in pyproject.toml).
"""
