"""Connections to Redis: who gets one, and which run of the server is at its other end."""
