"""Plain data, one form of each fact. Nothing here knows a server."""
