"""Addresses of servers: checked before anything connects, and shown without their passwords."""

from __future__ import annotations

import re
from typing import Final
from urllib.parse import parse_qsl, unquote, urlsplit

#: `user:password@` of a URL. To the last @, because a password that nobody quoted may hold one, a slash, too.
_USERINFO: Final = re.compile(r"(://[^:@/?\s]*:)(.*)(?=@)", re.DOTALL)
#: `password=...` in a query or in a libpq string, quoted or not.
_NAMED: Final = re.compile(
    r"((?:\b|_)(?:password|passwd|pass|pwd|secret|sslpassword)\s*=\s*)('(?:[^'\\]|\\.)*'|[^&\s;]*)", re.IGNORECASE
)
#: Shorter pieces of a password say nothing, and would blot out half of a sentence.
_SHORTEST_PIECE: Final = 3


def redact(address: str) -> str:
    """The address without its passwords, however it is written, for output."""
    return _NAMED.sub(r"\1***", _USERINFO.sub(r"\1***", address))


def scrub(text: str, address: str) -> str:
    """What a driver said about an address, without its passwords: it may have quoted a piece of one."""
    secrets = [match[2].strip("'") for pattern in (_USERINFO, _NAMED) for match in pattern.finditer(address)]
    pieces = {piece for secret in secrets for form in (secret, unquote(secret)) for piece in _pieces(form)}
    for piece in sorted(pieces, key=len, reverse=True):
        text = text.replace(piece, "***")
    return redact(text)


def _pieces(secret: str) -> list[str]:
    found = [secret, *re.split(r"[@:/?#%]", secret)]
    return [piece for piece in found if len(piece) >= _SHORTEST_PIECE or piece == secret != ""]


def check_port(address: str) -> str:
    """The address. Raises ValueError if it is a URL whose port is none, without saying what is in it."""
    if "://" in address and ";" not in address and "," not in address:  # lists of servers are the driver's to read
        try:
            parts = urlsplit(address)
        except ValueError:
            return address  # no URL at all: the driver says so
        try:
            _ = parts.port
        except ValueError:
            raise ValueError("the port is no number from 0 to 65535 (is an @ or / in the password unquoted?)") from None
    return address


def check_redis_url(url: str) -> str:
    """The URL. Raises ValueError for what would lead elsewhere than it says."""
    scheme, separator, _ = url.partition("://")
    if not separator or scheme not in ("redis", "rediss", "unix"):
        if scheme in ("sentinel", "redis+sentinel", "rediss+sentinel"):
            raise ValueError(
                "sentinel:// is not supported; lead a redis:// address to the primary, by DNS or a proxy (and set"
                " BILLING_REDIS_PROXY=true for a proxy)"
            )
        raise ValueError("it must begin with redis://, rediss:// or unix://")
    check_port(url)
    try:
        parts = urlsplit(url)
    except ValueError:
        raise ValueError("it can't be read as a URL") from None
    names = dict(parse_qsl(parts.query, keep_blank_values=True))
    db = names.get("db", names.get("virtual_host", "")) or ("" if scheme == "unix" else parts.path.strip("/"))
    if db not in ("", "0"):
        raise ValueError(
            "it must name no db: db 0 is the broker's and db 1 has quota. Give a second installation a"
            " BILLING_KEY_PREFIX and a BILLING_QUEUE of its own"
        )
    return url
