"""The simulator: seeded histories in which gateways, workers, sweepers and operators are preempted at every effect.

One thread, one random.Random, the real Lua in an embedded Valkey and the real SQL in an embedded PostgreSQL.

    runner.py       many seeds, in one process or in several
    history.py      one seed: which actor takes the next step, and what goes wrong with it
    profile.py      how rough a history is
    performing.py   one step of one actor: its effect is performed, or lost, or its actor crashes
    actors.py       a flow that is suspended between two effects
    gateways.py     what applications do
    workers.py      what tasks, sweepers and operators do
    broker.py       messages between them
    accidents.py    time that passes, servers that forget or are away
    world.py        the servers of one process
    stepping.py     transactions that wait before COMMIT
    oracle.py       what must be true, in plain Python
    books.py        ... of PostgreSQL; watched.py tells it what the ledger answers
    shard.py        ... of a shard of Redis
    claims.py       what a history may violate
    final_check.py  after the storm everything drains and is compared
    trace.py        what happened, in words
    mutants.py      each guard of the product removed once: the oracle must notice
    guards.py       the guards; mutations.py removes them

    python -m tests.simulator --seeds 1000 [--first-seed 1] [--processes 2] [--trace]
"""
