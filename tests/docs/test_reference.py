"""The reference says what the code says: settings, errors, tasks, scripts, tables."""

from __future__ import annotations

import inspect
import re
from collections.abc import Iterator

from billing_tasks import errors
from billing_tasks.broker import names
from billing_tasks.celery import app
from billing_tasks.ledger.models import DeadLetterRecord
from billing_tasks.model.consume_log import ConsumeLog
from billing_tasks.settings import Settings
from docs import make_classes
from docs.make_reference import PAGE, with_table
from tests.docs.conftest import PAGES, ROOT

REFERENCE = ROOT / "docs" / "reference"


def rows(name: str) -> Iterator[list[str]]:
    """The cells of every table row of a page of the reference."""
    for line in (REFERENCE / name).read_text(encoding="utf-8").splitlines():
        if line.startswith("| `"):
            yield [cell.strip() for cell in line.strip("|").split(" | ")]


def test_every_setting_is_in_the_reference_with_its_default() -> None:
    said = {cells[0].strip("| `"): cells[1].strip("`") for cells in rows("settings.md")}
    true = {
        f"BILLING_{name.upper()}": "none" if field.default is None else str(field.default)
        for name, field in Settings.model_fields.items()
    }
    assert said == true


def test_no_page_names_a_setting_that_does_not_exist() -> None:
    known = {f"BILLING_{name.upper()}" for name in Settings.model_fields}
    known |= {"BILLING_ENV_FILE", "BILLING_LAB_PUBLIC_FOLDER"}
    named = {name for page in PAGES for name in re.findall(r"BILLING_[A-Z_]*[A-Z]", page.read_text(encoding="utf-8"))}
    assert named - known == set()


def test_every_error_is_in_the_reference_with_its_code_and_status() -> None:
    said = {cells[0].strip("| `"): (cells[1].strip("`"), int(cells[2])) for cells in rows("errors.md")}
    branches = (errors.Refused, errors.Unavailable)
    ours = {kind for branch in branches for kind in branch.__subclasses__() if kind.__module__ == errors.__name__}
    leaves = ours | {kind for one in ours for kind in one.__subclasses__() if kind.__module__ == errors.__name__}
    assert said == {kind.__name__: (kind.code, kind.http_status) for kind in leaves}
    page = (REFERENCE / "errors.md").read_text(encoding="utf-8")
    assert all(f"`{kind.code}`" in page for kind in (errors.BillingError, *branches))


def test_every_task_is_in_the_reference() -> None:
    app.loader.import_default_modules()
    ours = {name for name in app.tasks if name.startswith("billing.")}
    assert ours == {value for name, value in vars(names).items() if name.isupper()}
    assert {cells[0].strip("| `") for cells in rows("tasks.md")} & ours == ours


def test_the_fields_of_a_consume_are_in_the_reference_as_the_class_has_them() -> None:
    page = PAGE.read_text(encoding="utf-8")
    assert page == with_table(page), "make reference writes the table anew"
    assert {cells[0].strip("| `") for cells in rows(PAGE.name)} == set(ConsumeLog.model_fields)


def test_the_page_of_each_public_class_is_what_its_docstrings_say() -> None:
    written = {page.name: page.read_text(encoding="utf-8") for page in make_classes.FOLDER.glob("*.md")}
    assert written == make_classes.pages(), "make reference writes them anew"
    index = (ROOT / "docs" / "README.md").read_text(encoding="utf-8")
    assert [name for name in written if f"(reference/classes/{name})" not in index] == []


def test_every_public_method_says_what_it_does() -> None:
    """A sentence each."""
    assert [
        name
        for name, text in docstrings().items()
        if len(text.split()) < (2 if text.startswith("See ") else 3) or not text.endswith((".", ":"))
    ] == []


#: They reach no server and check nothing, or end what there was.
RAISE_NOTHING = {"close", "to_strings", "kept_in"}


def test_every_public_method_says_what_it_raises() -> None:
    """Itself, or its class for all of them, or the method it refers to."""
    public = make_classes.public()
    silent = []
    for name, text in docstrings(properties=False).items():
        of, member = name.split(".")
        told = text + (inspect.getdoc(public[of]) or "")
        if member not in RAISE_NOTHING and not text.startswith("See ") and not re.search(r"\b[Rr]aises?\b", told):
            silent.append(name)
    assert silent == []


def test_errors_that_docstrings_name_exist() -> None:
    known = {name for name, value in vars(errors).items() if inspect.isclass(value)}
    for name, text in docstrings().items():
        told = re.findall(r"[Rr]aises? ((?:[A-Z]\w+(?:, | and |, and | or |; )?)+)", text)
        named = {word for words in told for word in re.findall(r"[A-Z][a-z]+[A-Z]\w+", words)}
        assert named - known == set(), name


def test_every_attribute_on_a_page_says_what_it_is() -> None:
    """But for those whose name says all."""
    text = "".join(make_classes.pages().values())
    assert set(re.findall(r"^\| `(\w+)` \| .* \|  \|$", text, re.MULTILINE)) <= {"user_id"}


def docstrings(*, properties: bool = True) -> dict[str, str]:
    """Of every public method, and property, by Class.name."""
    return {
        f"{name}.{member}": inspect.getdoc(value) or ""
        for name, what in make_classes.public().items()
        if inspect.isclass(what)
        for member, value in make_classes.members(what)
        if properties or not isinstance(value, property)
    }


def test_every_script_is_in_the_reference() -> None:
    page = (REFERENCE / "redis-keys.md").read_text(encoding="utf-8")
    scripts = {path.name for path in (ROOT / "billing_tasks" / "holds" / "lua").glob("*.lua")}
    assert {name for name in scripts if f"`{name}`" not in page} == set()


def test_every_table_is_in_the_reference() -> None:
    page = (REFERENCE / "tables.md").read_text(encoding="utf-8")
    assert {
        name for name in DeadLetterRecord.metadata.tables if f"`{name.removeprefix('billing.')}`" not in page
    } == set()


def test_every_decision_has_a_decision_line_and_is_listed() -> None:
    folder = ROOT / "docs" / "decisions"
    index = (folder / "README.md").read_text(encoding="utf-8")
    for page in folder.glob("[0-9]*.md"):
        assert re.search(r"^\*\*Decision: .+\*\*$", page.read_text(encoding="utf-8"), re.MULTILINE), page.name
        assert f"({page.name})" in index
