"""The simulator: seeded histories in which gateways, workers, sweepers and operators are preempted at every effect.

One thread, one random.Random, the real Lua in an embedded Valkey and the real SQL in an embedded PostgreSQL.

    history.py     one seed: who takes the next step, and what goes wrong with it
    actors.py      a flow that is suspended between two effects
    gateways.py    what applications do;  workers.py  tasks, sweepers, operators;  broker.py  their messages
    accidents.py   time that passes, servers that forget or are away
    world.py       the servers of one process;  stepping.py  transactions that wait before COMMIT
    oracle.py      what must be true, over books.py (PostgreSQL) and shard.py (Redis), in plain Python
    mutants.py     each guard of the product removed once: the oracle must notice

    python -m tests.simulator --seeds 1000 [--first-seed 1] [--processes 2] [--trace]
"""
