"""The ledger: everything PostgreSQL knows. No other room speaks SQL.

store.py        the Ledger, made of the parts in the files beside it: posting, accounts, top_ups, reads, dead_letters,
                dead_letter_attempts, outboxes, partitions, invariants, comparisons
database.py     transactions, and their retries
models.py       the tables as SQLAlchemy knows them; rows.py and columns.py what is made of their rows
migrations/     from what is there to today's schema; each revision has its SQL in a folder of its name

Nothing is imported here: a process that reads `rows` or books with the Ledger needs no Alembic.
"""
