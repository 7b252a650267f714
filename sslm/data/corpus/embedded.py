"""English that every Python carries: the interpreter's own documentation, so that a first run needs no download.

The language reference by topic, then one document of docstrings per module of the standard library: about 2.4 MB.
Nothing is imported or run; the sources are parsed.
"""

import ast
import hashlib
import platform
import sysconfig
import warnings
from collections.abc import Iterator
from pathlib import Path

EMBEDDED = "embedded"
LIBRARY = Path(sysconfig.get_path("stdlib"))
NOT_DOCUMENTATION = {"site-packages", "dist-packages", "test", "tests", "pydoc_data", "__pycache__"}


def embedded_identity() -> str:
    """Hash Python's version and its files' names and sizes: distributions leave parts out."""
    files = [f"{file.relative_to(LIBRARY)} {file.stat().st_size}" for file in _modules()]
    lines = [platform.python_implementation(), platform.python_version(), *files]
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()


def embedded_documents() -> Iterator[tuple[str, bool]]:
    """Read the documentation's documents, each as one piece."""
    from pydoc_data.topics import topics  # 700 kB of text

    for topic in sorted(topics):
        yield topics[topic], True
    for file in _modules():
        try:
            with warnings.catch_warnings(action="ignore"):  # escapes that a later Python will refuse
                tree = ast.parse(file.read_bytes())
        except (SyntaxError, ValueError):
            continue
        if docstrings := list(_docstrings(tree)):
            name = ".".join(file.relative_to(LIBRARY).parts).removesuffix(".py").removesuffix(".__init__")
            yield "\n\n".join([name, *docstrings]), True


def _modules() -> list[Path]:
    return sorted(f for f in LIBRARY.rglob("*.py") if not NOT_DOCUMENTATION & set(f.relative_to(LIBRARY).parts))


def _docstrings(node: ast.AST) -> Iterator[str]:
    """List the docstrings of a module, class or function and of what it holds, each under its name."""
    if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
        text = ast.get_docstring(node)
        if text:
            yield text if isinstance(node, ast.Module) else f"{node.name}: {text}"
    for child in ast.iter_child_nodes(node):
        yield from _docstrings(child)
