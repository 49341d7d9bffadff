"""The spool: what neither Redis nor PostgreSQL took, on this machine's disk."""
