"""The operator's API: accounts, entries, dead letters, status, incidents, audit. Doors present it."""
