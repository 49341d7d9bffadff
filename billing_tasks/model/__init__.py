"""Plain data, one form of each thing. Nothing here knows a server."""
