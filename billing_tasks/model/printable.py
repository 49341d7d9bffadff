"""Text from outside, made fit for a terminal and a log line."""

from __future__ import annotations

import re
from typing import Final

#: What a terminal obeys and a reader does not see: control codes (C0, DEL, C1), marks that turn the direction of text
#: around, line and paragraph separators, halves of surrogate pairs.
_OBEYED: Final = re.compile(
    "[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff\ufeff]"
)
_BREAKS: Final = re.compile("[\t\n]")


def printable(text: str) -> str:
    """The same text with such characters as escapes, `\\x1b` say. Tabs and line ends stay."""
    return _OBEYED.sub(_escaped, text)


def printable_json(document: str) -> str:
    """The same JSON, such characters in its strings written as JSON writes them; it means the same."""
    return _OBEYED.sub(lambda match: f"\\u{ord(match[0]):04x}", document)


def one_line(text: str) -> str:
    """`printable`, tabs and line ends as escapes, too."""
    return _BREAKS.sub(_escaped, printable(text))


def _escaped(match: re.Match[str]) -> str:
    return match[0].encode("unicode_escape").decode()
