"""Connections to Redis: which caller gets one, and which run of the server is at its other end."""
