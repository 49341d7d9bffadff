"""Chaos: the whole stack under traffic while faults are injected into its processes and servers; then the books are
compared with what the gateways were told.

    options.py          how long, how fast, which seed
    faults.py           what is going to happen and when: decided from the seed alone
    inject.py           doing it
    processes.py        processes that are killed or frozen and come back
    environment.py      the servers and processes of a run
    population.py       which accounts pay, rich and poor, and what they ask for
    gateway_process.py  one gateway process: clients.py makes its calls, traffic.py its requests, top_ups.py its top-ups
    journal.py          what a gateway was about to do and what it was told, a line per step
    stories.py          the journals put together, request by request
    books.py            what PostgreSQL and Redis have at the end
    judge.py            stories beside books: lost, charged twice, leaked, overspent
    running.py          balances in the order of their booking
    liveness.py         whether the workers answer
    settling.py         waiting until nothing is on its way any more
    report.py           the figures
    run.py              all of it in order
    command.py          the command line, `python -m chaos`

The judge reads for itself, by plain SQL and from the journals; `verify` runs beside it.
Nothing here is imported by the product.
"""
