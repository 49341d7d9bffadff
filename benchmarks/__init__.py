"""Benchmarks: the product beside what people would use instead and beside the physical limit, in one run.

    python -m benchmarks --quick              make bench QUICK=1
    python -m benchmarks --only reserve,drain --json figures.json --svg figures.svg

    measures/           what is measured, one file each; `measures/__init__.py` lists them
    opponents/          what it is measured against: the reference's SQL, a plain Celery port, one write, bare posting
    sql/                the statements that fill in accounts and history
    targets.py          what the ratios should be; the last thing that is printed
    figures.py          the arithmetic: medians, spreads, ratios
    environment.py      servers, databases, accounts, and the guarantees after each measure
    population.py       accounts and history, filled in by whole sets
    backlog.py          requests that wait in the outbox
    clock.py            calls timed one by one, from threads and from asyncio
    gateway_process.py  processes that make whole requests
    workers.py          real Celery workers, and the processor time they take
    sizes.py            how much is measured;  machine.py  where;  session.py  what every measure is handed
    run.py              one run;  report.py  tables and JSON;  plot.py  bars;  __main__.py  the command line

Both sides of a pair run on the same servers with the disk settings of production,
alternately, round by round; a ratio is the median of the rounds' own ratios. After
each measure the guarantees are checked (flows/audit/verify.py); if one is broken, its
figures count as zero and are printed as wrong.
"""
