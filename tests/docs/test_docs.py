"""The documentation is true: its code runs, its links lead somewhere, and it leaves nothing out."""

from __future__ import annotations

import ast
import dataclasses
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import meter_agent
from docs import _generate
from meter_agent import DeadLetter, Stats
from meter_agent._config import SETTINGS, Setting
from meter_agent._dead_letters import DeadLetterReason
from meter_agent._ledger import DropReason
from meter_agent._log import LOG_EVENTS
from meter_agent.sandbox import Fault, Sandbox
from meter_agent.sandbox.server import SandboxServer
from tests.patience import PATIENCE_SECONDS

DOCS = _generate.DOCS
ROOT = DOCS.parent
README = ROOT / "README.md"
PAGES = sorted(path for path in DOCS.rglob("*.md") if "_build" not in path.parts)
FILES = {
    "web-servers.md": "hosts",
    "celery.md": "hosts",
    "test-your-code.md": "testing",
    "django.md": "integrations",
    "fastapi.md": "integrations",
    "flask.md": "integrations",
}
"""Pages whose Python are files with a name, and the folder of the tests that run them.

What starts a server is run in `hosts`, whichever page shows it.
"""
GUIDES = [
    README,
    DOCS / "index.md",
    *sorted(page for page in (DOCS / "howto").glob("*.md") if page.name not in FILES),
]
"""Pages whose Python is a script: the blocks of one page, one after another."""


_FENCE = re.compile(r"^```(?P<info>[^\n]*)\n(?P<code>.*?)^```$", re.MULTILINE | re.DOTALL)
_LINK = re.compile(r"\[[^\]]*\]\((?P<target>[^)\s]+)\)")
_HEADING = re.compile(r"^#+ (?P<text>.+)$", re.MULTILINE)


def name_of(path: Path) -> str:
    return str(path.relative_to(ROOT))


def blocks(page: Path, info: str) -> list[str]:
    return [found["code"] for found in _FENCE.finditer(page.read_text()) if found["info"] == info]


def text_without_code(page: Path) -> str:
    return _FENCE.sub("", page.read_text())


def anchors(page: Path) -> set[str]:
    """Return what the headings of *page* are called in links."""
    headings = (found["text"].lower() for found in _HEADING.finditer(text_without_code(page)))
    return {re.sub(r"[^\w\- ]", "", text).replace(" ", "-") for text in headings}


def links() -> Iterator[tuple[Path, str]]:
    for page in [README, ROOT / "CHANGELOG.md", *PAGES]:
        for found in _LINK.finditer(text_without_code(page)):
            if "://" not in found["target"]:
                yield page, found["target"]


def reference(name: str) -> str:
    return (DOCS / "reference" / name).read_text()


@pytest.mark.parametrize("page", GUIDES, ids=name_of)
def test_the_python_of_a_guide_runs_and_says_nothing_on_stderr(page: Path, tmp_path: Path) -> None:
    script = "\n".join(blocks(page, "python"))
    sandbox = Sandbox()
    sandbox.add_fault(Fault("poison", match={"event_name": "no_such_meter"}, times=1))
    with SandboxServer(sandbox) as server:
        done = subprocess.run(
            [sys.executable, "-W", "error", "-c", script],
            env=os.environ | {"METER_AGENT_SANDBOX_URL": server.url, "NO_PROXY": "127.0.0.1"},
            cwd=tmp_path,
            capture_output=True,
            text=True,
            timeout=PATIENCE_SECONDS,
            check=False,
        )
    assert (done.returncode, done.stderr) == (0, "")
    assert sandbox.totals()["accepted"] > 0


def test_the_readme_shows_no_python_that_is_not_run() -> None:
    fences = _FENCE.finditer(README.read_text())
    infos = {found["info"] for found in fences}
    assert infos == {"console", "text", "python"}


def test_the_readme_shows_the_demo_then_the_tests_then_the_three_lines() -> None:
    text = README.read_text()
    landmarks = ["make demo", "make test", "import meter_agent", "## Settings", "## Guarantees"]
    places = [text.index(landmark) for landmark in landmarks]
    assert places == sorted(places)
    assert len([line for line in blocks(README, "python")[0].splitlines() if line]) == 3
    assert len(text.splitlines()) < 150


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_the_python_of_every_page_is_python(page: Path) -> None:
    for found in _FENCE.finditer(page.read_text()):
        if found["info"].startswith("python"):
            compile(found["code"], str(page), "exec")


@pytest.mark.parametrize("name", FILES)
def test_every_file_that_a_page_shows_is_run(name: str) -> None:
    infos = {found["info"] for found in _FENCE.finditer((DOCS / "howto" / name).read_text())}
    files = {info.removeprefix("python ") for info in infos if info.startswith("python ")}
    files -= {"notest"}
    folders = [ROOT / "tests" / FILES[name], ROOT / "tests" / "hosts"]
    tests = "".join(path.read_text() for folder in folders for path in folder.glob("test_*.py"))
    assert files
    assert {file for file in files if f'"{file}"' not in tests} == set()


@pytest.mark.parametrize(
    ("page", "target"),
    [pytest.param(*link, id=f"{name_of(link[0])}:{link[1]}") for link in links()],
)
def test_a_link_leads_to_a_page_and_a_heading_that_exist(page: Path, target: str) -> None:
    path, _, anchor = target.partition("#")
    leads_to = (page.parent / path).resolve() if path else page
    assert leads_to.exists()
    assert not anchor or anchor in anchors(leads_to)


def test_every_page_is_in_the_table_of_contents() -> None:
    listed = {
        line
        for tree in re.findall(
            r"^```{toctree}\n(.*?)^```$", (DOCS / "index.md").read_text(), re.MULTILINE | re.DOTALL
        )
        for line in tree.splitlines()
        if line and not line.startswith(":")
    }
    pages = {str(page.relative_to(DOCS).with_suffix("")) for page in PAGES}
    assert listed == pages - {"index"}


def test_the_generated_pages_are_up_to_date() -> None:
    assert _generate.stale_pages() == []


@pytest.mark.parametrize("setting", SETTINGS, ids=[setting.name for setting in SETTINGS])
def test_every_setting_is_documented(setting: Setting) -> None:
    assert f"| `{setting.name}` | `{setting.variable}` |" in reference("settings.md")


@pytest.mark.parametrize("field", [field.name for field in dataclasses.fields(Stats)])
def test_every_field_of_the_statistics_is_documented(field: str) -> None:
    assert f"| `{field}` |" in reference("stats.md")


@pytest.mark.parametrize("reason", DropReason)
def test_every_reason_for_a_drop_is_documented(reason: DropReason) -> None:
    assert f"| `{reason.value}` |" in reference("stats.md")


@pytest.mark.parametrize("field", [field.name for field in dataclasses.fields(DeadLetter)])
def test_every_field_of_a_dead_letter_is_documented(field: str) -> None:
    assert f"| `{field}` |" in reference("dead-letters.md")


@pytest.mark.parametrize("reason", DeadLetterReason)
def test_every_reason_of_a_dead_letter_is_documented_with_what_to_do(
    reason: DeadLetterReason,
) -> None:
    assert f"| `{reason.value}` |" in reference("dead-letters.md")
    assert f"| `{reason.value}` |" in (DOCS / "howto" / "dead-letters.md").read_text()


@pytest.mark.parametrize("event", LOG_EVENTS)
def test_every_log_event_is_documented(event: str) -> None:
    assert f"| `{event}` |" in reference("logs.md")


@pytest.mark.parametrize("name", meter_agent.__all__)
def test_every_public_name_is_in_the_reference_of_the_api(name: str) -> None:
    page = reference("api.md")
    directive = re.search(rf"^\.\. auto\w+:: {re.escape(name)}$", page, re.MULTILINE)
    assert directive or f"`meter_agent.{name}`" in page


@pytest.mark.parametrize("name", [name for name in meter_agent.__all__ if name.endswith("Error")])
def test_every_error_has_a_section_and_a_place_in_the_tree(name: str) -> None:
    page = reference("errors.md")
    assert f"## {name}\n" in page
    assert name in blocks(DOCS / "reference" / "errors.md", "text")[0]


@pytest.mark.parametrize("number", range(1, 9))
def test_each_guarantee_names_tests_that_exist(number: int) -> None:
    text = (DOCS / "explanation" / "guarantees.md").read_text()
    section = text.split(f"\n## G{number} ")[1].split("\n## ")[0]
    files = re.findall(r"`(tests/[\w/]+\.py)`", section)
    tests = re.findall(r"`(test_\w+)`", section)
    assert files
    assert "Not promised" in section
    source = "".join((ROOT / file).read_text() for file in files)
    assert all(f"def {test}(" in source for test in tests)


@pytest.mark.parametrize("page", ["guarantees.md", "security.md"])
def test_every_place_of_tests_that_is_named_is_there_and_has_tests(page: str) -> None:
    text = (DOCS / "explanation" / page).read_text()
    folders = re.findall(r"`(tests/\w+)/`", text)
    assert folders
    assert all((ROOT / folder / "__init__.py").is_file() for folder in folders)
    assert all((ROOT / file).is_file() for file in re.findall(r"`(tests/[\w/]+\.py)`", text))


def test_the_guarantees_name_every_folder_that_tests_the_agent() -> None:
    text = (DOCS / "explanation" / "guarantees.md").read_text()
    applications = {"cli", "docs", "sandbox"}
    folders = {path.parent.name for path in (ROOT / "tests").glob("*/__init__.py")} - applications
    assert {folder for folder in folders if f"`tests/{folder}/`" not in text} == set()


def log_fields() -> dict[str, set[str]]:
    """Return the fields of each log event, as the source says them; "" for computed names."""
    fields: dict[str, set[str]] = {"": set()}
    for path in (ROOT / "meter_agent").glob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Call) and node.args:
                named = {keyword.arg for keyword in node.keywords if keyword.arg}
                texts = [n.value for n in ast.walk(node.args[0]) if isinstance(n, ast.Constant)]
                events = [text for text in texts if text in LOG_EVENTS]
                for event in events or ([""] if "reason" in named else []):
                    fields.setdefault(event, set()).update(named)
    return fields


def test_the_failure_modes_name_every_log_event_and_only_fields_that_it_has() -> None:
    text = (DOCS / "explanation" / "failure-modes.md").read_text()
    named = set(re.findall(r"`(meter_agent\.\w+)`", text))
    assert named == set(LOG_EVENTS)
    fields = log_fields()
    told = re.findall(r"`(meter_agent\.\w+)`[^|(]*\(([^)]*)\)", text)
    assert len(told) > 10
    for event, names in told:
        known = fields.get(event) or fields[""]
        assert set(re.findall(r"`(\w+)`", names)) <= known, event


def test_the_failure_modes_name_fields_that_the_statistics_have() -> None:
    text = (DOCS / "explanation" / "failure-modes.md").read_text()
    rows = [line.split("|") for line in text.splitlines() if line.startswith("| ")]
    shown = {name for row in rows for name in re.findall(r"`(\w+)`", row[2])}
    known = {field.name for field in dataclasses.fields(Stats)}
    assert {"retries", "dead_lettered", "uncertain", "buffered"} <= shown
    settings = {setting.name for setting in SETTINGS}
    assert shown <= known | settings | {"stats"}
    reasons = set(re.findall(r'`dropped\["(\w+)"\]`', text))
    assert reasons == {reason.value for reason in DropReason} - {"disabled"}


def test_the_design_gives_every_module_a_room() -> None:
    text = (DOCS / "explanation" / "design.md").read_text()
    package = ROOT / "meter_agent"
    modules = {path.name for path in package.glob("*.py")} - {"__init__.py"}
    assert {name for name in modules if f"`{name}`" not in text} <= {"_version.py"}


def test_the_changelog_tells_of_this_version() -> None:
    changelog = (ROOT / "CHANGELOG.md").read_text()
    assert f"\n## [{meter_agent.__version__}] - " in changelog


@pytest.mark.parametrize("page", [README, ROOT / "CHANGELOG.md", *PAGES], ids=name_of)
def test_no_page_names_a_path_of_somebodys_machine(page: Path) -> None:
    assert not re.search(r"/(?:home|work|tmp|root|Users)/", page.read_text())
