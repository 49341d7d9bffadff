"""Writes a page for each public class, from its docstrings and signatures: `make reference`. A test compares them."""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable, Iterator
from importlib import import_module
from pathlib import Path
from typing import Any

import billing_tasks
from billing_tasks import admin
from billing_tasks.admin.in_threads import Awaited, Iterated

FOLDER = Path(__file__).parent / "reference" / "classes"
WIDTH = 100
#: The parts of Admin by the class that each is; a part is the attribute that its module is named after.
PARTS = (
    *("accounts.Accounts", "entries.Entries", "dead_letters.DeadLetters", "imports.Imports"),
    *("incidents.Incidents", "audit.Audit", "neighbours.Neighbours"),
)
ERRORS = "What the errors mean, and what to do: [Errors](../errors.md)."
#: Classes whose fields have a page of their own.
FIELDS_ELSEWHERE = {"ConsumeLog": "consume-log.md", "Settings": "settings.md"}
#: What pydantic gives to its models is in its own documentation.
BASES = ("pydantic", "pydantic_settings", "builtins", "typing")


def public() -> dict[str, Any]:
    """Every public class and function by its name, with those that make up Admin."""
    found = {name: getattr(billing_tasks, name) for name in billing_tasks.__all__}
    found |= {name: getattr(admin, name) for name in ("Admin", "AsyncAdmin")}
    for part in PARTS:
        module, name = part.split(".")
        found[name] = getattr(import_module(f"billing_tasks.admin.{module}"), name)
    return dict(sorted(found.items()))


def members(cls: type) -> Iterator[tuple[str, Any]]:
    """Public methods, properties and declared attributes, in the order of the source, those of our bases included."""
    seen: set[str] = set()
    for base in (cls, *cls.__mro__[1:]):
        if base.__module__.split(".")[0] in BASES:
            continue
        for name, member in vars(base).items():
            function = member if isinstance(member, property) else _function(member)
            told = isinstance(function, property) or inspect.isfunction(function)
            if told and not name.startswith("_") and name not in seen:
                seen.add(name)
                yield name, member


def _function(member: Any) -> Any:
    """The function that was written: under decorators, as a classmethod, or awaited in a thread."""
    if isinstance(member, (Awaited, Iterated)):
        return member._method
    return inspect.unwrap(getattr(member, "__func__", member))


def page_of(name: str, what: Any) -> str:
    """The page of one class, or of one function."""
    where = "billing_tasks" if name in billing_tasks.__all__ else what.__module__
    if name in ("Admin", "AsyncAdmin"):
        where = "billing_tasks.admin"
    parts = [f"# {name}", f"```python\nfrom {where} import {name}\n```"]
    if not inspect.isclass(what):
        return "\n\n".join([*parts, _code(name, what), _prose(what)]) + "\n"
    parts.append(_prose(what))
    parts += [
        _prose(base) for base in what.__mro__[1:] if base.__name__ == f"{what.__name__.removeprefix('Async')}Base"
    ]
    if what in (admin.Admin, admin.AsyncAdmin):
        parts.append(_parts_of_admin(awaited=what is admin.AsyncAdmin))
    if name in FIELDS_ELSEWHERE:
        parts.append(f"Its fields: [{FIELDS_ELSEWHERE[name]}](../{FIELDS_ELSEWHERE[name]}).")
    elif fields := _fields(what):
        parts.append(fields)
    first_member = len(parts)
    for member, value in members(what):
        parts.append(f"## {member}")
        if isinstance(value, property):
            returns = inspect.signature(value.fget).return_annotation if value.fget else ""
            parts += [f"```python\n{member}: {_annotation(returns)}\n```", _prose(value)]
        else:
            parts += [_code(member, value), _prose(value)]
    if re.search(r"\b[Rr]aises? [A-Z]", " ".join(parts)):
        parts.insert(first_member, ERRORS)
    return "\n\n".join(parts) + "\n"


def _parts_of_admin(*, awaited: bool) -> str:
    """What `admin.accounts` and the others are. Of AsyncAdmin no page per part: they say what Admin's say."""
    lines = ["| part | what it does |", "|---|---|"]
    for part in PARTS:
        module, name = part.split(".")
        cls = getattr(import_module(f"billing_tasks.admin.{module}"), name)
        does = (inspect.getdoc(cls) or "").partition(". ")[0].rstrip(".")
        if awaited:
            twin = vars(getattr(import_module("billing_tasks.admin.async_admin"), f"Async{name}"))
            iterated = [f"`{method}`" for method, value in twin.items() if isinstance(value, Iterated)]
            does = "its methods, awaited" + (f"; `async for` over {', '.join(iterated)}" if iterated else "")
        lines.append(f"| `{module}` | [{name}]({name}.md): {does} |")
    how = "How pages, filters and cursors work, with examples that run: [the operator's API](../admin.md)."
    return "\n".join(lines) + f"\n\n{how}"


def _fields(cls: type) -> str:
    """Attributes that are declared with a type, and the remark behind each."""
    lines = []
    for base in reversed(cls.__mro__):
        for name, annotation in inspect.get_annotations(base).items():
            if name.startswith("_") or base.__module__.split(".")[0] in BASES:
                continue
            remark = re.search(rf"^    {name}: .*?  # (.+)$", inspect.getsource(base), re.MULTILINE)
            kind = _annotation(annotation).replace(" | ", " or ")  # a bar would end the cell
            lines.append(f"| `{name}` | `{kind}` | {remark[1] if remark else ''} |")
    return "\n".join(["| attribute | type | |", "|---|---|---|", *lines]) if lines else ""


def _annotation(annotation: Any) -> str:
    text = annotation if isinstance(annotation, str) else getattr(annotation, "__name__", str(annotation))
    return "" if annotation is inspect.Signature.empty else str(text)


def _code(name: str, member: Any) -> str:
    function: Callable[..., Any] = getattr(member, "__func__", getattr(member, "_method", member))
    signature = inspect.signature(function)
    words = list(_parameters(signature))
    returns = _annotation(signature.return_annotation)
    arrow = f" -> {returns}" if returns else ""
    awaited = inspect.iscoroutinefunction(function) or isinstance(member, Awaited)
    prefix = "async def " if awaited else "def "
    line = f"{prefix}{name}({', '.join(words)}){arrow}"
    if len(line) > WIDTH:
        line = f"{prefix}{name}(\n" + "".join(f"    {word},\n" for word in words) + f"){arrow}"
    line = line.replace("'", '"')  # as the formatter of this project wants it
    return f"```python norun\n{line}: ...\n```"


def _parameters(signature: inspect.Signature) -> Iterator[str]:
    starred = False
    for parameter in signature.parameters.values():
        if parameter.name in ("self", "cls"):
            continue
        if parameter.kind is parameter.VAR_POSITIONAL:
            starred = True
        if parameter.kind is parameter.KEYWORD_ONLY and not starred:
            starred = True
            yield "*"
        star = {parameter.VAR_POSITIONAL: "*", parameter.VAR_KEYWORD: "**"}.get(parameter.kind, "")
        kind = f": {_annotation(parameter.annotation)}" if parameter.annotation is not parameter.empty else ""
        given = "" if parameter.default is parameter.empty else repr(parameter.default)
        given = "..." if given.startswith("<") else given  # an object of ours, which has no words
        equals = f" = {given}" if kind else f"={given}"
        yield f"{star}{parameter.name}{kind}{equals if given else ''}"


def _prose(what: Any) -> str:
    """A docstring as paragraphs, wrapped as it is in the source; indented lines become code."""
    text = inspect.getdoc(what) or ""
    if refers := re.fullmatch(r"See (\w+)\.(\w+)\.", text):
        there = f"As [{refers[1]}.{refers[2]}]({refers[1]}.md#{refers[2].lower()})"
        return f"{there}:\n\n{inspect.getdoc(getattr(public()[refers[1]], refers[2]))}"
    return re.sub(r"(?m)^( {4,}.*(?:\n {4,}.*)*)", r"```text\n\1\n```", text)


def pages() -> dict[str, str]:
    """Each page's text by its file's name."""
    return {f"{name}.md": page_of(name, what) for name, what in public().items()}


def write() -> None:
    """All of them; what is no class any more goes."""
    FOLDER.mkdir(exist_ok=True)
    for old in FOLDER.glob("*.md"):
        old.unlink()
    for name, text in pages().items():
        (FOLDER / name).write_text(text, encoding="utf-8")


if __name__ == "__main__":
    write()
