"""The guards: where each one is, what it reads like, and what is left when it is gone.

A change of the product that moves one of these lines breaks `make mutants` with the line that is missing.
"""

from __future__ import annotations

from tests.simulator.cuts import Cut, Guard, guard
from tests.simulator.guards_of_loss import OF_LOSS

_POST = "sql:post_batch_v2"
_SETTLE = "py:billing_tasks.flows.settlement.settle"

LUA: list[Guard] = [
    guard(
        "load: version",
        "an older row never replaces a newer cached account",
        Cut("lua:load", "if comparable and tonumber(known[1]) > tonumber(version) then return {'OLDER'} end"),
    ),
    guard(
        "load: epoch",
        "a row read in another run of Redis is not loaded",
        Cut("lua:load", "if current_epoch ~= epoch then return {'OTHER_EPOCH'} end", "epoch = current_epoch"),
    ),
    guard(
        "load: too late",
        "a row read long ago is not loaded",
        Cut("lua:load", "if math.abs(now_ms - began_ms) > 5000 then return {'TOO_LATE'} end"),
        survives="such an account is dated back, so reserve loads it anew; unless PostgreSQL is away just then",
    ),
    guard(
        "reserve: epoch",
        "an account cached in an older run of Redis is not used",
        Cut("lua:reserve", "if u[6] ~= epoch or t[6] ~= epoch or not (u[4] and t[4])", "if not (u[4] and t[4])"),
    ),
    guard(
        "fence: run_id",
        "run_id is compared",
        Cut("lua:*", "if run_id ~= ARGV[#ARGV] or replid ~= ARGV[#ARGV - 1] then", "if not run_id then"),
    ),
    guard(
        "fence: replid",
        "the replication id is compared: an old primary that is promoted again keeps its run_id",
        Cut("lua:*", "if run_id ~= ARGV[#ARGV] or replid ~= ARGV[#ARGV - 1] then", "if run_id ~= ARGV[#ARGV] then"),
    ),
    guard(
        "reserve: check of the user",
        "the user's available quota is checked",
        Cut(
            "lua:reserve",
            "if available < wanted then return 'INSUFFICIENT_USER_QUOTA', available, user_age end",
        ),
    ),
    guard(
        "reserve: unposted",
        "usage that is not booked yet counts",
        Cut(
            "lua:reserve",
            "local available = tonumber(u[1]) - tonumber(u[2] or 0) - tonumber(u[3] or 0)\n  if available < wanted",
            "local available = tonumber(u[1]) - tonumber(u[2] or 0)\n  if available < wanted",
        ),
    ),
    guard(
        "reserve: a busy account stays",
        "an account with a hold does not expire",
        Cut("lua:reserve", "if tonumber(u[2] or 0) + tonumber(u[3] or 0) == 0 then redis.call('PERSIST', user) end"),
    ),
    guard(
        "extend: check of the payer",
        "a hold grows within what is available",
        Cut("lua:extend", "  if refusal then return answer(refusal, a, b) end"),
    ),
    guard(
        "extend: its owner",
        "no user changes another user's hold",
        Cut(
            "lua:extend",
            "if held_user ~= user_id or held_token ~= token_id then return answer('IDEMPOTENCY_CONFLICT') end",
        ),
        survives="no gateway of a history names another user's request; test_extend.py does",
    ),
    guard(
        "extend: what was asked for first",
        "a reservation that is repeated is the same after its hold has grown",
        Cut("lua:extend", "asked or 'asked:' .. held", "'-'"),
    ),
    guard(
        "extend: closed holds",
        "a hold that has ended is not opened again",
        Cut("lua:extend", "if state ~= 'held' then return answer('HOLD_CLOSED', state) end"),
    ),
    guard(
        "extend: a busy account stays",
        "an account with a hold does not expire",
        Cut("lua:extend", "redis.call('PERSIST', user)\nredis.call('PERSIST', token)\n"),
    ),
    guard(
        "consume: a busy account stays",
        "an account with usage does not expire",
        Cut("lua:consume", "  redis.call('PERSIST', user)\n"),
    ),
    guard(
        "consume: tombstone",
        "a consume that is repeated is not filed again",
        Cut(
            "lua:consume",
            "if state == 'consumed' and held_fingerprint == fingerprint then return {'ALREADY_CONSUMED', 0, 0} end",
        ),
        Cut("lua:consume", "if state == 'consumed' or (state and", "if (state and"),
    ),
    guard(
        "release: tombstone",
        "a hold is given back once",
        Cut("lua:release", "if state ~= 'held' then return {'ALREADY_RELEASED', 0, 0} end"),
    ),
    guard(
        "expire: due",
        "only what is due expires",
        Cut("lua:expire", "if expires_at and tonumber(expires_at) > now_ms then return {'NOT_DUE', 0, 0} end"),
    ),
    guard(
        "expire: weight",
        "expired quota waits for its booked release",
        Cut("lua:expire", "held, asked, held, payload", "held, asked, '0', payload"),
    ),
    guard(
        "settled: version",
        "an older row never replaces a newer cached account",
        Cut(
            "lua:settled",
            "elseif (loaded_epoch ~= epoch and floor_epoch ~= epoch) or known_version <= tonumber(row_version) then",
            "else",
        ),
    ),
    guard(
        "settled: floor",
        "rows of another run of Redis tell what is too old to load",
        Cut("lua:settled", "if not trusted or known_version < tonumber(row_version) then", "if false then"),
    ),
    guard(
        "settled: epoch",
        "rows read in another run of Redis are not cached in this one",
        Cut("lua:settled", "local fresh = current_epoch == epoch and", "epoch = current_epoch\nlocal fresh ="),
    ),
    guard(
        "settled: removal",
        "weight leaves with its event",
        Cut("lua:settled", "#leaving > 0 and redis.call('XDEL', outbox, unpack(leaving)) or 0", "#leaving"),
    ),
    guard(
        "settled: weight from the caller",
        "weight is the entry's own, if it is still there",
        Cut(
            "lua:settled",
            "    gone = gone + 1",
            "    gone = gone + 1\n"
            "    local u, t, w = string.match(ARGV[at + 1], '^%a+ %S+ (%d+) (%d+) (%d+) ')\n"
            "    if w then add(key_of('user', u), tonumber(w)) add(key_of('token', t), tonumber(w)) end",
        ),
    ),
    guard(
        "leave: looks once more",
        "a drainer leaves an empty outbox only",
        Cut("lua:leave", "if redis.call('XLEN', outbox) > 0 then return {'NOT_EMPTY'} end"),
    ),
]

_ALL_EVENTS = (
    "(select user_id, sum(used_quota)::bigint as quota, count(*) as requests\n"
    "              from entry where kind = 'consume' group by user_id)"
)

SQL: list[Guard] = [
    guard(
        "post_batch: sums of inserted rows",
        "only rows that were inserted are charged",
        Cut(
            _POST,
            _ALL_EVENTS,
            "(select e.user_id, sum(e.quota)::bigint as quota, count(*) as requests\n"
            "              from unnest(v_events) as e where e.kind = 'consume' group by e.user_id)",
        ),
    ),
    guard(
        "post_batch: unique key",
        "an entry's id is the request's",
        Cut(
            _POST,
            "select e.request_id, e.kind, e.request_id, e.user_id",
            "select billing.new_entry_id(), e.kind, e.request_id, e.user_id",
        ),
    ),
    guard(
        "post_batch: token's owner",
        "no user pays with another user's token",
        Cut(
            _POST,
            "where e.user_id = (select t.user_id from billing.tokens as t where t.id = e.token_id)\n          and",
            "where",
        ),
    ),
    guard(
        "post_batch: row locks",
        "two batches of one user queue",
        Cut(_POST, "perform from billing.users where id = any (v_user_ids) order by id for no key update;"),
        Cut(
            _POST,
            "perform from billing.tokens where id = any (v_token_ids) order by id for no key update;",
        ),
        survives="Redis must come back older while a consume waits before COMMIT; test_concurrency.py shows it",
    ),
    guard(
        "post_batch: a hold that was used",
        "a hold that was consumed is not released as well",
        Cut(_POST, "and (e.kind = 'consume' or e.request_id <> all (v_used))"),
    ),
    guard(
        "post_batch: a hold that was released",
        "a hold that was released is not consumed as well",
        Cut(
            _POST,
            "case when e.request_id = any (v_unused) then 0 else coalesce(e.held_quota, 0) end",
            "coalesce(e.held_quota, 0)",
        ),
    ),
    guard(
        "post_refund: row lock",
        "two refunds of one charge queue",
        Cut(
            "sql:post_refund_v2",
            "perform from billing.users where id = v_event.user_id for no key update;",
            "perform from billing.users where id = v_event.user_id;",
        ),
        Cut("sql:post_refund_v2", "perform from billing.tokens where id = v_charge.token_id for no key update;"),
    ),
    guard(
        "post_refund: limit",
        "refunds stay within the charge",
        Cut("sql:post_refund_v2", "if v_quota > v_left or v_left = 0 then", "if v_quota <= 0 then"),
    ),
    guard(
        "post_refund: refund_id",
        "a refund_id is booked once",
        Cut(
            "sql:post_refund_v2",
            "select * into v_booked from billing.refunds where refund_id = p_event.refund_id;\n"
            "    if not found then\n        select p_charge",
            "v_entry_id := billing.new_entry_id(); p_event.refund_id := p_event.refund_id || v_entry_id;\n"
            "    if true then\n        select p_charge",
        ),
    ),
    guard(
        "edits elsewhere: version",
        "another program's edit gets a version",
        Cut(
            "sql:guard_versions",
            "        new.version := billing.next_version(old.version);\n"
            "        if not v_drawn then\n"
            "            perform billing.book_user_change(",
            "        if not v_drawn then\n            perform billing.book_user_change(",
        ),
    ),
    guard(
        "move_cursor: new epoch",
        "an outbox that began anew is an incident",
        Cut("sql:move_cursor", "    if found and not exists (select", "    if false and not exists (select"),
    ),
]

FLOWS: list[Guard] = [
    guard(
        "settle: dead letters first",
        "a dead letter is kept before its event leaves the outbox",
        Cut(
            _SETTLE,
            "    batch.numbers = await record.keep(batch.refused)  # before their events leave the outbox\n",
        ),
        Cut(
            _SETTLE,
            "    replies = await together(calls)\n",
            "    replies = await together(calls)\n    batch.numbers = await record.keep(batch.refused)\n",
        ),
    ),
    guard(
        "settle: cached accounts with the removal",
        "cached accounts are written no later than their events leave",
        Cut(_SETTLE, "users=users,\n                tokens=tokens,", "users=[],\n                tokens=[],"),
        Cut(
            _SETTLE,
            "    replies = await together(calls)\n",
            "    replies = await together(calls)\n"
            "    from billing_tasks.flows.account_cache import push_accounts\n"
            "    await push_accounts(\n"
            "        batch.lease, users=batch.users.values(), tokens=batch.tokens.values(), commands=d.commands)\n",
        ),
    ),
    guard(
        "settle: PostgreSQL first",
        "events leave the outbox after they are booked",
        Cut(
            _SETTLE,
            "        await _post(batch.bookable, batch, meanwhile)\n",
            "        await _settled(batch, meanwhile.d)\n        await _post(batch.bookable, batch, meanwhile)\n",
        ),
    ),
    guard(
        "settle: refunds after charges",
        "a batch's refunds are booked after its consumes",
        Cut(
            _SETTLE,
            "    for event in batch.refunds:  # after the batch's consumes: a refund's charge may be among them\n"
            "        await _post_refund(event, batch)\n",
        ),
        Cut(
            _SETTLE,
            "        await _post(batch.bookable, batch, meanwhile)\n",
            "        for event in batch.refunds:\n"
            "            await _post_refund(event, batch)\n"
            "        await _post(batch.bookable, batch, meanwhile)\n",
        ),
        survives="a refund that comes too early becomes a dead letter, which is tried again",
    ),
    guard(
        "consume: booked at once without Redis",
        "usage is booked when Redis does not answer",
        Cut(
            "py:billing_tasks.flows.requests.consume",
            "        return await _without_redis(event, exc, commands.keys.shard_of(event.user_id))",
            "        return Receipt(event.request_id, event.quota)",
        ),
    ),
    guard(
        "consume: a refusal is kept",
        "what PostgreSQL refuses at once is kept as a dead letter",
        Cut(
            "py:billing_tasks.flows.requests.without_redis",
            "        if not outcome.booked:\n            await keep([await of_refusal(event, outcome)])\n",
        ),
    ),
    guard(
        "top up: once per id",
        "an id that was booked is not booked again",
        Cut("py:billing_tasks.ledger.top_ups", "    if claimed is not None:\n", "    if True:\n"),
    ),
]

GUARDS = LUA + SQL + FLOWS + OF_LOSS
