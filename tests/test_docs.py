"""The docs name tests and files that exist, and their links lead somewhere."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PAGES = [
    ROOT / "README.md",
    ROOT / "CONTRIBUTING.md",
    ROOT / "slurm/README.md",
    ROOT / "examples/README.md",
    *sorted((ROOT / "docs").glob("*.md")),
]
FOLDERS = "sslm|tests|docs|configs|slurm|docker|benchmarks|examples"

each_page = pytest.mark.parametrize("page", PAGES, ids=[str(page.relative_to(ROOT)) for page in PAGES])


@each_page
def test_every_test_named_exists(page: Path) -> None:
    for file, name in re.findall(r"\b(tests/[\w/]+\.py)::(\w+)", page.read_text()):
        assert f"def {name}(" in (ROOT / file).read_text(), f"{file}::{name}"


@each_page
def test_every_file_named_exists(page: Path) -> None:
    for name in re.findall(rf"`((?:{FOLDERS})/[\w./-]+|pyproject\.toml)(?:::\w+)?`", page.read_text()):
        assert (ROOT / name).exists(), name


@each_page
def test_every_link_leads_somewhere(page: Path) -> None:
    for target, anchor in re.findall(r"\]\(([^)#\s]*)(?:#([^)\s]*))?\)", page.read_text()):
        if target.startswith(("http:", "https:")):
            continue
        linked = page if not target else page.parent / target
        assert linked.exists(), target
        assert not anchor or anchor in anchors(linked), f"{target}#{anchor}"


@each_page
def test_every_table_is_whole(page: Path) -> None:
    """A row that an empty line parts from its table is shown as text."""
    for block in re.findall(r"(?:^\|.*\n)+", page.read_text(), re.MULTILINE):
        assert re.search(r"\A.*\n\|[-:| ]+\|\n", block), block


def test_docstrings_point_to_lessons_that_exist() -> None:
    titles = set(re.findall(r"^### (.+)$", (ROOT / "docs/lessons.md").read_text(), re.MULTILINE))
    for file in sorted((ROOT / "sslm").rglob("*.py")):
        text = re.sub(r"\s*\n\s*#?\s*", " ", file.read_text())
        for title in re.findall(r"docs/lessons\.md, '([^']+)'", text):
            assert title in titles, f"{file}: {title}"


def anchors(page: Path) -> set[str]:
    """The anchors that GitHub makes of a page's headings."""
    headings = re.findall(r"^#+ (.+)$", page.read_text(), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}
