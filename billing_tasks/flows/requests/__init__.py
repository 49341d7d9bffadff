"""One request: reserve, consume, release, refund, renew, expire."""
