"""The house: each folder imports only what lies on a lower floor, and nothing imports in a circle."""

import ast
from graphlib import TopologicalSorter
from pathlib import Path

ROOT = Path(__file__).parent.parent / "sslm"
FLOORS = [
    {"train", "__main__"},
    {"cli"},
    {"evaluation", "ui"},
    {"objectives"},
    {"training"},
    {"parallel"},
    {"runs"},
    {"data", "models"},
    {"config"},
    {"system"},
]
"""From the top; what stands on one floor does not know its neighbours."""
FLOOR_OF = {name: -number for number, names in enumerate(FLOORS) for name in names}


def modules_in(folder: Path) -> dict[str, Path]:
    """Dotted name -> file of all modules in a folder, at any depth."""
    return {dotted(file): file for file in folder.rglob("*.py")}


def dotted(file: Path) -> str:
    parts = file.relative_to(ROOT.parent).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def imports_of(file: Path) -> set[str]:
    """Dotted names of our modules that a file imports, at its top or anywhere else in it."""
    names = set()
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            whole = {f"{node.module}.{alias.name}" for alias in node.names}
            names |= {name if name in MODULES else node.module for name in whole}
    return {name for name in names if name in MODULES} - {dotted(file)}


MODULES = modules_in(ROOT)


def test_a_file_imports_only_its_own_folder_and_lower_floors() -> None:
    for name, file in MODULES.items():
        room = file.relative_to(ROOT).parts[0].removesuffix(".py")
        if room == "__init__":
            continue
        for other in imports_of(file) - {"sslm"}:  # the version
            there = other.split(".")[1]
            assert there == room or FLOOR_OF[there] < FLOOR_OF[room], f"{name} imports {other}"


def test_commands_are_imported_by_the_front_doors_alone() -> None:
    for name, file in MODULES.items():
        commands = {other.split(".")[2] for other in imports_of(file) if other.startswith("sslm.cli.")}
        commands -= {"parse", "texts"}
        own = name.split(".")[2] if name.startswith("sslm.cli.") else None
        if name in ("sslm.train", "sslm.__main__"):
            continue
        allowed = {"plan"} if name == "sslm.cli.train" else set()  # --dry_run shows the plan
        assert commands - {own} <= allowed, f"{name} imports {commands}"


def test_nothing_imports_in_a_circle() -> None:
    """Neither the files of a folder, nor its folders."""
    for folder in [ROOT, *(path for path in ROOT.rglob("*") if path.is_dir() and path.name != "__pycache__")]:
        prefix = dotted(folder / "__init__.py")
        graph: dict[str, set[str]] = {}
        for name, file in modules_in(folder).items():
            entry = name.removeprefix(prefix + ".").partition(".")[0] if name != prefix else "__init__"
            if entry == "__init__" and folder == ROOT:
                continue
            below = {other for other in imports_of(file) if other.startswith(prefix + ".")}
            graph.setdefault(entry, set()).update(other.removeprefix(prefix + ".").partition(".")[0] for other in below)
        for entry, others in graph.items():
            others.discard(entry)
        TopologicalSorter(graph).prepare()  # raises where there is a circle


def test_the_root_has_twelve_entries() -> None:
    entries = {path.stem for path in ROOT.iterdir() if path.suffix == ".py" or (path / "__init__.py").is_file()}
    assert {entry for entry in entries if not entry.startswith("__")} == set().union(*FLOORS) - {"__main__"}
