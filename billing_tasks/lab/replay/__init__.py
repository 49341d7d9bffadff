"""Replay: a trace of LLM traffic, run as gateway traffic against real servers, and checked to the last request.

    options.py          what to replay and how
    plan.py             which user asks for what: decided from the seed alone, before anything runs
    accounts.py         users, tokens and channels of a plan, and what they may spend
    requests.py         the planned requests with their accounts' real ids, and what came of them
    gateway_process.py  one process's traffic, as an asyncio gateway would make it
    processes.py        several of them
    endings.py          what the ledger says became of each request, beside what the gateway was told
    settled.py          waiting until everything is booked
    report.py           the figures, and a line per request
    run.py              all of it in order
    problems.py         what can go wrong

Nothing here writes to Redis or PostgreSQL but through Bookkeeper and Accounts.
A replay that is killed leaves accounts that no other replay uses and holds that expire.
"""
