"""Everything that makes billing-tasks run on one machine with nothing installed beside it.

    servers/      PostgreSQL and Valkey from wheels, on private sockets
    processes.py  one child process under supervision
    launch.py     what every child runs first, so that it dies with its parent
    parts.py      the worker, the beat and Flower, as data
    stack.py      all of it together: `billing-tasks up`
    trace.py      traces of LLM traffic, read or made up
    replay/       a trace run as gateway traffic and checked: `billing-tasks replay`
    demo.py       the stack and a replay: `billing-tasks demo`
    flower.py     what Flower has seen
    defaults.py   what all of it does unless told otherwise
    problems.py   what can go wrong here, and what to do about it

Nothing in the package imports this one except the command line and the tests:
production has its own servers, named by BILLING_*.
"""
