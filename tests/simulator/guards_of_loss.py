"""Guards by which a loss is noticed, told exactly, and not made worse."""

from __future__ import annotations

from tests.simulator.cuts import Cut, Guard, guard

_BATCH = "py:billing_tasks.flows.settlement.batch"

OF_LOSS: list[Guard] = [
    guard(
        "settle: numbers when all is kept",
        "a number is accounted for when its event is booked or kept, and not before",
        Cut(
            _BATCH,
            "return replace(self._part(), later=self.cover_later)",
            "return replace(self._part(), when_booked=False)",
        ),
    ),
    guard(
        "settle: the run that booked a batch",
        "the last call of a batch accounts for nothing in another run of PostgreSQL",
        Cut(_BATCH, "server=self.server.name if self.server else None)", "server=None)"),
        survives="the restore must come between two calls of one batch; test_covering.py shows it",
    ),
    guard(
        "settled: run of PostgreSQL",
        "what another run of PostgreSQL booked stays in the outbox",
        Cut("lua:settled", "if ledger ~= '' and seen[4] and seen[4] ~= ledger then return {} end"),
        survives="a drainer must be overtaken between booking and removing; test_postgresql_restored.py shows it",
    ),
    guard(
        "settled: what is known to be booked",
        "Redis remembers how much of an outbox was booked",
        Cut("lua:settled", "if highest_seq > settled_before then", "if false then"),
    ),
    guard(
        "load: run of PostgreSQL",
        "accounts of another run of PostgreSQL are not mixed with today's",
        Cut("lua:load", "if known_ledger and known_ledger ~= ledger then return {'OTHER_LEDGER'} end"),
        survives="versions that lie behind say it, too; test_postgresql_restored.py restarts it with all of them",
    ),
    guard(
        "load: rows of no known run",
        "an account is not cached where nobody could notice that PostgreSQL was restored",
        Cut("lua:load", "elseif not known_ledger then\n  return {'OTHER_LEDGER'}\n"),
    ),
    guard(
        "new_ledger: all is loaded again",
        "what was cached of the run before counts no more",
        Cut("lua:new_ledger", "redis.call('HINCRBY', meta, 'loads', 1)\n"),
    ),
    guard(
        "new_ledger: versions begin anew",
        "versions seen of the run before are forgotten",
        Cut("lua:new_ledger", "redis.call('HDEL', meta, 'version')\n"),
        survives="meet_redis lets later versions begin above it; it matters where that was cut off",
    ),
    guard(
        "meet_redis: what is missing",
        "what Redis saw booked and the books lack is an incident",
        Cut(
            "sql:server_run",
            "v_missing := billing.unaccounted(v_look.shard, v_look.epoch, v_look.settled);",
            "v_missing := '{}';",
        ),
    ),
    guard(
        "meet_redis: later versions",
        "versions go on above all that Redis has seen",
        Cut(
            "sql:server_run",
            "    if v_behind then\n        perform setval(",
            "    if false then\n        perform setval(",
        ),
        survives="all is loaded again in any case; release 0.2.0 compares versions and knows no loads",
    ),
    guard(
        "move_cursor: holes",
        "a number that nothing accounts for is a gap",
        Cut(
            "sql:move_cursor",
            "perform billing.note_gap(p_shard, p_epoch, billing.unaccounted(p_shard, p_epoch, p_first_seq - 1));",
            "null;",
        ),
        Cut("sql:observe_outboxes", "and not billing.numbers(1, c.seen) <@ c.accounted;", "and false;"),
    ),
    guard(
        "observe_outboxes: a look that is told late",
        "a look knows of no number above its own",
        Cut("sql:observe_outboxes", "least(c.seen, v_look.seq)", "c.seen"),
        survives="a watcher must be overtaken by another one and by a drainer; test_accounting.py shows it",
    ),
    guard(
        "observe_outboxes: today's epoch",
        "an older epoch that is told late ends no younger one",
        Cut("sql:observe_outboxes", "            continue when not billing.is_current(v_cursor);\n"),
        survives="Redis must lose a life of which a watcher tells last, one seed in 2,000; test_accounting.py shows it",
    ),
    guard(
        "verify: a restart that no script has seen",
        "an outbox that came back older is no cursor ahead",
        Cut(
            "py:billing_tasks.flows.audit.verify",
            "not _restarted(holds, shard, state.epoch)",
            "True",
        ),
        survives="verify must look between the restart and the first script after it; test_accounting.py shows it",
    ),
]
