"""Holds: everything that lies in Redis. No other room speaks Redis.

keys.py         the names of all keys, and which shard has them
lua/            one file per atomic operation, each with its contract on top; lua/include what several share
scripts.py      the files as Redis gets them
outcomes.py     the words that scripts answer with
replies.py      what replies mean
commands/       an operation as data: which script, which keys, which arguments, how to read the reply
connection/     connections that know which run of the server they lead to, and their pool
store.py        sends commands, sync; async_store.py the same for asyncio
audit.py        what is in Redis beside what explains it; repairs.py what may be set right
"""
