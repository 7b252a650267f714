"""docs/licences.md names the licence of every requirement, and every package they bring whose licence asks for more."""

import re
import tomllib
from fnmatch import fnmatch
from importlib.metadata import Distribution, PackageNotFoundError, distribution
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parents[1]
PERMISSIVE = {
    "Apache": r"\bapache",
    "BSD": r"\bbsd",
    "ISC": r"\bisc\b",
    "MIT": r"\bmit\b",
    "PSF": r"\bpsf|python software",
}
FAMILIES = PERMISSIVE | {
    "GPL": r"(?<!lesser )(general public|\ba?gpl)",
    "LGPL": r"lesser general|\blgpl",
    "MPL": r"mozilla|\bmpl",
    "proprietary": r"nvidia|proprietary",
    "none": "says none",
}
WORKING_ON_SSLM = ("docs", "dev")
EVERY, MORE = (ROOT / "docs/licences.md").read_text().split("\n## ")


def test_every_requirement_is_listed_with_its_licence() -> None:
    listed = {canonicalize_name(name): licence for name, licence in rows(EVERY)}
    names = {canonicalize_name(each.name) for each in requirements()} - {"sslm"}
    assert sorted(listed) == sorted(names)
    for name in names:
        if found := installed(name):
            assert families(licence_of(found)) <= families(listed[name]), f"{name}: {licence_of(found)}"


def test_every_package_whose_licence_asks_for_more_is_listed() -> None:
    for name, found in closure(requirements(but=WORKING_ON_SSLM)).items():
        said = families(licence_of(found))
        if not said or not said <= set(PERMISSIVE):
            listed = [families(licence) for pattern, licence in rows(MORE) if fnmatch(name, pattern)]
            assert any(said <= each for each in listed), f"{name}: {licence_of(found)!r}"


def rows(text: str) -> list[tuple[str, str]]:
    """A table's packages and licences."""
    return re.findall(r"^\| (?!package)([\w*-]+) \| (.*?) \|", text, re.MULTILINE)


def requirements(but: tuple[str, ...] = ()) -> list[Requirement]:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras = {name: texts for name, texts in project["optional-dependencies"].items() if name not in but}
    return [Requirement(text) for texts in [project["dependencies"], *extras.values()] for text in texts]


def closure(todo: list[Requirement]) -> dict[str, Distribution]:
    """What is installed of these requirements and of all that they require."""
    found: dict[str, Distribution] = {}
    seen = set()
    while todo:
        requirement = todo.pop()
        name, extras = canonicalize_name(requirement.name), frozenset(requirement.extras)
        if (name, extras) in seen or (package := installed(name)) is None:
            continue
        seen.add((name, extras))
        found[name] = package
        further = [Requirement(text) for text in package.requires or []]
        todo += [each for each in further if any(applies(each, extra) for extra in ("", *extras))]
    return found


def applies(requirement: Requirement, extra: str) -> bool:
    return requirement.marker is None or requirement.marker.evaluate({"extra": extra})


def installed(name: str) -> Distribution | None:
    try:
        return distribution(name)
    except PackageNotFoundError:
        return None


def licence_of(package: Distribution) -> str:
    """What its metadata says: an expression, else classifiers, else the first line of a text."""
    about = package.metadata
    classifiers = [text for text in about.get_all("Classifier", []) if text.startswith("License ::")]
    return about.get("License-Expression") or "; ".join(classifiers) or (about.get("License") or "").partition("\n")[0]


def families(licence: str) -> set[str]:
    return {name for name, pattern in FAMILIES.items() if re.search(pattern, licence.lower())}
