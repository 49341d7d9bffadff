"""What the product is measured against, each at its best.

reference.py   the SQL that one-api sends, by pgbench, beside what a Go program would add
plain_app.py   a plain Celery port: one task per consume, SQLAlchemy, one transaction
plain_port.py  ... and what drives it
one_write.py   the limit of the inline path: a script that does one HINCRBY
posting.py     the limit of posting: the batched SQL alone, without Redis and Celery
"""
