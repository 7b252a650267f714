"""Docstrings: their examples hold, and a documentation page can be made of them."""

import ast
import doctest
import importlib
import pkgutil
import re
import tokenize
from collections.abc import Iterator
from pathlib import Path

import pytest

import sslm

ROOT = Path(__file__).parent.parent
SECTIONS = ("Args:", "Returns:", "Raises:", "Yields:")
FILES = sorted(path for folder in ("sslm", "tests", "benchmarks") for path in (ROOT / folder).rglob("*.py"))

Documented = ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef


def modules_with_examples() -> Iterator[str]:
    """Names of modules of sslm in whose text an example begins."""
    for module in pkgutil.walk_packages(sslm.__path__, "sslm.", onerror=lambda name: None):
        spec = module.module_finder.find_spec(module.name, None)
        lines = Path(spec.origin).read_text().splitlines() if spec and spec.origin else []
        if any(">>> " in line and "doctest: +SKIP" not in line for line in lines):
            yield module.name


@pytest.mark.parametrize("name", list(modules_with_examples()))
def test_examples_hold(name: str) -> None:
    result = doctest.testmod(importlib.import_module(name), extraglobs={"Path": Path}, optionflags=doctest.ELLIPSIS)
    assert result.attempted
    assert not result.failed


def broken_rules(file: Path) -> list[str]:
    """What a file's prose breaks: `line: rule` of each place."""
    text = file.read_text()
    lines = [line.split("  # type: ignore")[0].split("  # noqa")[0] for line in text.splitlines()]
    found = [f"{number}: over 120 characters" for number, line in enumerate(lines, 1) if len(line) > 120]
    with file.open("rb") as source:
        comments = [token for token in tokenize.tokenize(source.readline) if token.type == tokenize.COMMENT]
    found += [f"{token.start[0]}: the formatter is told to skip" for token in comments if "fmt: skip" in token.string]
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, Documented) and (docstring := ast.get_docstring(node)):
            found += [f"{getattr(node, 'lineno', 1)}: {rule}" for rule in broken_by(docstring, node)]
    return found


def broken_by(docstring: str, node: Documented) -> Iterator[str]:
    """Rules that a docstring breaks: a summary first, then sections whose entries are indented and name parameters."""
    lines = docstring.splitlines()
    if lines[0].startswith(SECTIONS):
        yield f"opens with {lines[0]}"
    for number, line in enumerate(lines):
        if line not in SECTIONS:
            continue
        entries = section(lines[number + 1 :])
        if not entries or not entries[0].startswith("    "):
            yield f"nothing is indented under {line}"
        if number and lines[number - 1].strip():
            yield f"no empty line before {line}"
        if line == "Args:" and isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            unknown = parameters_in(entries) - parameters_of(node)
            yield from (f"{node.name} has no parameter {name}" for name in sorted(unknown))


def section(lines: list[str]) -> list[str]:
    """Lines up to the next that is not indented, or to an empty one."""
    end = next((n for n, line in enumerate(lines) if not line.startswith("    ")), len(lines))
    return lines[:end]


def parameters_in(entries: list[str]) -> set[str]:
    """Names that a section `Args:` documents."""
    found = (re.match(r" {4}(\*{0,2}\w+)[^:]*:", entry) for entry in entries)
    return {match[1].lstrip("*") for match in found if match}


def parameters_of(function: ast.FunctionDef | ast.AsyncFunctionDef) -> set[str]:
    arguments = function.args
    every = [*arguments.posonlyargs, *arguments.args, *arguments.kwonlyargs, arguments.vararg, arguments.kwarg]
    return {argument.arg for argument in every if argument is not None}


def test_prose_keeps_the_rules() -> None:
    assert not {str(file.relative_to(ROOT)): rules for file in FILES if (rules := broken_rules(file))}


@pytest.mark.parametrize(
    ("source", "rule"),
    [
        ('def f(a):\n    """Args:\n        a: what."""', "opens with Args:"),
        ('def f(a):\n    """Do.\n\n    Args:\n    a: what."""', "nothing is indented"),
        ('def f(a):\n    """Do.\n    Args:\n        a: what."""', "no empty line"),
        ('def f(a):\n    """Do.\n\n    Args:\n        b: what."""', "no parameter b"),
        ("x = 1  # fmt: skip", "told to skip"),
        (f"x = '{'y' * 120}'", "over 120"),
    ],
)
def test_each_rule_is_noticed(tmp_path: Path, source: str, rule: str) -> None:
    file = tmp_path / "file.py"
    file.write_text(source + "\n")
    found, *_ = broken_rules(file)
    assert rule in found
