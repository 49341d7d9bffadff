"""How long each door waits for each server that is broken: measured by `make waits`, bounded by test_waits.py."""
