"""Audit: the guarantees are verified, Redis is reconciled, the backlog is measured."""
