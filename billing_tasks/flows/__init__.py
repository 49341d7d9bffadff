"""Flows: one story each, and no flow imports another.

A flow is a generator. It yields what it wants done (a command for Redis, a call
of the ledger, a ring of the doorbell) and gets the answer sent back, so that the
same story runs sync, under asyncio, and step by step under a simulator.

reserve.py  open a hold                    refund.py     give back a hold or a charge
consume.py  close it, file what was used   expire.py     release what nobody came back for
settle.py   book the outbox                retry.py      dead letters, once more
rehearse.py what a retry would do           decide.py    a person discards or reopens a dead letter
renew.py   keep a hold open               ring.py      outboxes that nobody drains
balance.py what a user has available      watch.py     how much waits
verify.py  the guarantees as code

Shared: effects.py (what a flow may ask for), copies.py (accounts into Redis),
dead letters.py (dead letters), choosing.py (which of them), releases.py (the event that a hold ended unused).
"""
