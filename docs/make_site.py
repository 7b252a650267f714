"""Build the pages of this repository as a site, in `site/`: `make docs`.

The Markdown files stay where GitHub shows them. They are copied, in the same folders, to `build/pages/`, with the files
that they link to; two pages are written there from the code: the flags, by the parser, and the public names, by their
docstrings. zensical makes HTML of it (`zensical.toml` has the navigation), and then every link is followed.
"""

import argparse
import ast
import io
import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import redirect_stdout, suppress
from functools import cache
from html import escape
from html.parser import HTMLParser
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from urllib.parse import unquote, urlsplit

from jsonargparse import ArgumentParser

from sslm.cli import VERBS
from sslm.cli.parse import default_of, flag_parser, settings_parser
from sslm.objectives import OBJECTIVES

ROOT = Path(__file__).parent.parent
PAGES = ROOT / "build/pages"
SITE = ROOT / "site"
SOURCES = ("*.md", "docs/*.md", "docs/site.css", "slurm/*.md", "examples/*.md", "benchmarks/*.md")
TAKEN = (
    "sslm.training.module.Objective",
    "sslm.config.training.OptimConfig",
    "sslm.config.training.GroupConfig",
    "sslm.config.training.RobustConfig",
    "sslm.config.training.AnomalyConfig",
)
"""Classes that the public ones take or are made of."""


def main() -> int:
    """Build the site and say where it is; return 0, 1 if zensical fails or a link leads nowhere, 2 without zensical."""
    if find_spec("zensical") is None:
        print("The site needs zensical: `make docs` installs it, or pip install 'sslm[docs]'", file=sys.stderr)
        return 2
    stage()
    (PAGES / "flags.md").write_text("\n".join(flags_page()))
    (PAGES / "api.md").write_text("\n".join(api_page()))
    done = subprocess.run([sys.executable, "-m", "zensical", "build", "--clean", "--strict"], cwd=ROOT)
    if done.returncode:
        return 1
    (SITE / "search.js").write_text(search_script())
    problems = [f"{page.relative_to(SITE)}: {what}" for page in sorted(SITE.rglob("*.html")) for what in wrong_in(page)]
    print("\n".join(problems or [f"{SITE / 'index.html'}: every link leads somewhere"]))
    return 1 if problems else 0


def stage() -> None:
    """Copy the pages, and the files that they link to, into the same folders of PAGES."""
    shutil.rmtree(PAGES, ignore_errors=True)
    shutil.rmtree(SITE, ignore_errors=True)
    pages = {path for pattern in SOURCES for path in ROOT.glob(pattern)}
    for path in pages | {target for page in pages for target in linked_files(page)}:
        copy = PAGES / path.relative_to(ROOT)
        copy.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(path, copy)


def linked_files(page: Path) -> Iterator[Path]:
    """Yield the files of the repository that a page links to."""
    for target in re.findall(r"\]\(([^)#\s]+)", page.read_text()):
        path = (page.parent / target).resolve()
        if path.is_file() and path.is_relative_to(ROOT):
            yield path


def flags_page() -> Iterator[str]:
    """Yield the lines of the page of flags: a table for each section and objective, then other verbs' help."""
    parser = flag_parser()
    yield f"# Flags\n\n`python -m sslm.train`, and `sslm finetune`. {parser.epilog}"
    yield from tables(parser)
    for name in OBJECTIVES:
        own = settings_parser(name)
        if own is not None:
            yield from tables(own)
    for verb in VERBS:
        if verb not in ("train", "finetune"):
            said = help_of(verb)
            yield f"\n## sslm {verb}\n\n```text\n{said}\n```"
            for own in re.findall(r"^    ([a-z]+) ", said, re.MULTILINE) if "VERB ..." in said else ():
                yield f"\n### sslm {verb} {own}\n\n```text\n{help_of(verb, own)}\n```"


def tables(parser: ArgumentParser) -> Iterator[str]:
    """Yield a heading and a table of flags for each group of a parser that shows any."""
    for group in parser._action_groups:
        shown = [each for each in group._group_actions if each.help != argparse.SUPPRESS and each.dest != "help"]
        if shown:
            yield f"\n## {'Files' if group.title == 'options' else group.title}\n"
            yield "| flag | what | default |\n|---|---|---|"
            yield from (row(action) for action in shown)


def row(action: argparse.Action) -> str:
    """Return a flag's line of a table."""
    default = default_of(action)
    what = re.sub(r"([|*_`\\])", r"\\\1", escape(" ".join((action.help or "").split()), quote=False))
    return f"| `{action.option_strings[-1]}` | {what} | {f'`{default}`' if default else ''} |"


def help_of(verb: str, *words: str) -> str:
    """Return what `sslm VERB … --help` prints on a terminal of 80 columns."""
    said = io.StringIO()
    os.environ["COLUMNS"] = "80"
    with redirect_stdout(said), suppress(SystemExit):
        import_module(f"sslm.cli.{verb.replace('-', '_')}").main([*words, "--help"])
    return said.getvalue().strip()


def api_page() -> Iterator[str]:
    """Yield the lines of the page of public names, and of what they take, each described by its docstring."""
    nodes = ast.parse((ROOT / "sslm/__init__.pyi").read_text()).body
    imports = [node for node in nodes if isinstance(node, ast.ImportFrom)]
    public = sorted((alias.name, f"{node.module}.{alias.name}") for node in imports for alias in node.names)
    yield "# Python\n\nThe names of `from sslm import …`: [in use](README.md#in-your-own-lightning-code)."
    yield from (described(path) for _, path in public)
    yield "\n## What they take\n\nThe class of all objectives, and settings of `sslm.config`."
    yield from (described(path) for path in TAKEN)


def described(path: str) -> str:
    """Return what mkdocstrings makes a class's description of; of settings' defaults, the page of flags tells."""
    return f"\n::: {path}\n    options: {{show_signature: {str(not path.startswith('sslm.config.')).lower()}}}"


def search_script() -> str:
    """Return what lets the search work from the disk: zensical's page loads it there, if it is there, for the index.

    Browsers start no worker of a file on the disk, but one whose text the page has.
    """
    index = (SITE / "search.json").read_text()
    [worker] = (SITE / "assets/javascripts/workers").glob("search.*.js")
    return f"""var __index = {index};
{{
  const OfServer = window.Worker, source = {json.dumps(worker.read_text())};
  window.Worker = function () {{
    return new OfServer(URL.createObjectURL(new Blob([source], {{ type: "text/javascript" }})));
  }};
}}
"""


class Page(HTMLParser):
    """The links of a page, what it loads, and its anchors."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.links: list[str] = []
        self.loaded: list[str] = []
        self.anchors = {""}
        self.feed(path.read_text())

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = {name: value or "" for name, value in attrs}
        self.anchors |= {given[name] for name in ("id", "name") if name in given}
        if "href" in given and tag == "a":
            self.links.append(given["href"])
        elif "src" in given or "href" in given:
            self.loaded.append(given.get("src", given.get("href", "")))


@cache
def page_of(path: Path) -> Page:
    """Read a page of the site, once."""
    return Page(path)


def wrong_in(path: Path) -> Iterator[str]:
    """Yield a sentence for each link of a page that leads nowhere, and for each file that it loads from a server."""
    page = page_of(path)
    for target in page.loaded:
        if urlsplit(target).netloc:
            yield f"loads {target}"
    for target in page.links + page.loaded:
        link = urlsplit(target)
        if link.scheme or link.netloc:
            continue
        folder = SITE if link.path.startswith("/") else path.parent  # 404.html's begin with /
        file = (folder / unquote(link.path).lstrip("/")).resolve() if link.path else path
        if not file.is_file():
            yield f"{target}: there is no such file"
        elif link.fragment and file.suffix == ".html" and unquote(link.fragment) not in page_of(file).anchors:
            yield f"{target}: there is no such place"


if __name__ == "__main__":
    sys.exit(main())
