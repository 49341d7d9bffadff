"""Catalogue: the list prices of models, by provider, as package data (`data/catalogue.json`, `make catalogue`).

A name is looked for as it is, then by the rules of RULES, each of which takes one thing off it. Among providers that
have it the makers of models come before those who resell them.
"""

from __future__ import annotations

import difflib
import json
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from importlib import resources
from typing import Any

from billing_tasks.errors import UnknownModel
from billing_tasks.pricing.exact import check_name, show
from billing_tasks.pricing.sheet import Sheet

#: Who sets a model's list price; whoever is not named here resells it, and comes after them.
MAKERS = ("openai", "anthropic", "google", "deepseek", "x-ai", "mistral", "cohere", "meta", "moonshotai", "zai",
          "minimax", "perplexity", "voyageai", "aws", "azure")  # fmt: skip
#: How other programs call them.
_ALSO = {
    "bedrock": "aws",
    "amazon": "aws",
    "azure_ai": "azure",
    "gemini": "google",
    "vertex_ai": "google",
    "xai": "x-ai",
    "mistralai": "mistral",
    "fireworks_ai": "fireworks",
    "together_ai": "together",
    "moonshot": "moonshotai",
}
#: What is taken off a name, one rule after the other, until the rest is known: its words say what.
RULES: tuple[tuple[str, re.Pattern[str], str], ...] = (
    ("a date at its end", re.compile(r"[-@](?:20\d{2}-?[01]\d-?[0-3]\d)$"), ""),
    ("a version at its end", re.compile(r"(?:-v\d+)?(?::\d+)?(?:-latest|@latest|@default)?$"), ""),
    ("Bedrock's region before it", re.compile(r"^(?:us|eu|apac|jp|au|ca|us-gov|global)\."), ""),
    ("a variant of OpenRouter's", re.compile(r":(?:nitro|floor|online|extended|exacto)$"), ""),
    ("what a fine-tune was called", re.compile(r"^(ft:[^:]+):.*$"), r"\1"),
)


@dataclass(frozen=True, slots=True)
class Listed:
    """A model of the catalogue, and how the name led to it."""

    provider: str
    model: str
    sheet: Sheet
    context_window: int | None  # tokens that a prompt may have; None: not known
    deprecated: bool
    by: tuple[str, ...] = ()  # what was taken off the name


class Catalogue:
    """The list. Read from the package when it is first asked; `Catalogue.shipped()` is the one of this process."""

    def __init__(self, data: Mapping[str, Any]) -> None:
        self.source, self.made = str(data["source"]), str(data["made"])
        self._serves: Mapping[str, list[str]] = data.get("also", {})  # whose models a provider has at their price
        self._rows: list[Mapping[str, Any]] = list(data["models"])
        self._by_provider: dict[str, list[Mapping[str, Any]]] = {}
        self._exact: dict[tuple[str, str], Mapping[str, Any]] = {}
        for row in self._rows:
            self._by_provider.setdefault(row["provider"], []).append(row)
            self._exact.setdefault((row["provider"], row["model"].lower()), row)
        resellers = [name for name in self._by_provider if name not in MAKERS]
        self._order = [name for name in (*MAKERS, *resellers) if name in self._by_provider]

    @staticmethod
    @cache
    def shipped() -> Catalogue:
        """That of the package."""
        text = resources.files(__package__).joinpath("data/catalogue.json").read_text(encoding="utf-8")
        return Catalogue(json.loads(text))

    def __len__(self) -> int:
        return len(self._rows)

    def __iter__(self) -> Iterator[Listed]:
        return (_listed(row) for row in self._rows)

    @property
    def providers(self) -> list[str]:
        """Makers first."""
        return list(self._order)

    def find(self, model: str, provider: str | None = None) -> Listed:
        """The list price of a model.

        `model` may carry its provider: "openai/gpt-5". Raises UnknownModel, which names the nearest names there are,
        and InvalidRequest for a name that none can be.
        """
        name = check_name(model, field="model").strip().lower()
        asked = None if provider is None else self._provider(provider)
        for candidate, by in _candidates(name):
            row = self._look(candidate, asked)
            if row is not None:
                return _listed(row, by)
        raise UnknownModel(f"There is no list price of {show(model)}{self.nearest(name)}.")

    def _provider(self, name: str) -> str:
        known = _ALSO.get(name.lower(), name.lower())
        if known not in self._by_provider:
            raise UnknownModel(f"The price list has no provider {show(name)}; it has {', '.join(self._order)}.")
        return known

    def _look(self, name: str, asked: str | None) -> Mapping[str, Any] | None:
        """At the provider before its first slash, then by its whole name: at one provider, or at all of them."""
        before, slash, rest = name.partition("/")
        if slash and asked is None and _ALSO.get(before, before) in self._by_provider:
            found = self._look(rest, _ALSO.get(before, before))
            if found is not None:
                return found
        order = self._order if asked is None else [asked, *self._serves.get(asked, ())]
        for provider in order:
            if (row := self._exact.get((provider, name))) is not None:
                return row
        for provider in order:
            for row in self._by_provider[provider]:
                if _fits(row["names"], name):
                    return row
        return None

    def nearest(self, name: str, more: Iterable[str] = ()) -> str:
        """The names that are most like it, in words; nothing if none is. `more`: names beside those of the list."""
        known = list(dict.fromkeys([*more, *(row["model"].lower() for row in self._rows)]))
        near = difflib.get_close_matches(name.rpartition("/")[2], known, n=3)
        return f"; the nearest names are {', '.join(near)}" if near else ""


def _candidates(name: str) -> Iterator[tuple[str, tuple[str, ...]]]:
    """The name, and what is left of it after each rule."""
    yield name, ()
    by: tuple[str, ...] = ()
    for what, pattern, rest in RULES:
        shorter = pattern.sub(rest, name, count=1)
        if shorter and shorter != name:
            name, by = shorter, (*by, what)
            yield name, by


def _fits(clause: list[Any], name: str) -> bool:
    kind, *rest = clause
    match kind:
        case "equals":
            return bool(name == rest[0])
        case "starts":
            return name.startswith(rest[0])
        case "ends":
            return name.endswith(rest[0])
        case "contains":
            return rest[0] in name
        case "regex":
            return re.search(rest[0], name) is not None
        case "any":
            return any(_fits(one, name) for one in rest)
        case _:
            return all(_fits(one, name) for one in rest)


def _listed(row: Mapping[str, Any], by: tuple[str, ...] = ()) -> Listed:
    sheet = Sheet.read(row["sheet"])
    return Listed(row["provider"], row["model"], sheet, row.get("context"), row.get("deprecated", False), by)
