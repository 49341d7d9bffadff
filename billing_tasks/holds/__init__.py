"""Holds: everything that lives in Redis. No other package speaks Redis.

keys.py      where things live
lua/         one file per atomic operation, each with its contract on top
outcomes.py  the words the scripts answer with
commands.py  an operation as data: which script, which keys, which arguments, how to read the reply
store.py     sends commands, sync;  aio.py  the same for asyncio
"""
