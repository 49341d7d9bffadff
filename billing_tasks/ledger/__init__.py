"""The ledger: everything PostgreSQL knows. Only this package speaks SQL.

`store.py` has the Ledger, made of the parts in the files beside it; `sql/` the functions
that run inside PostgreSQL; `migrations/` the way from an empty database to the tables.

Nothing is imported here: who reads `rows` or books with the Ledger needs no Alembic.
"""
