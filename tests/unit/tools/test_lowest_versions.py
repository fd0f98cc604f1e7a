"""`tests/lowest.txt`: the lowest versions that pyproject.toml declares, which CI installs."""

import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[3]
EXTRAS = ("keras", "chat", "numba", "conformance", "test")
UNPINNED = {"mypy", "ruff"}
"""Tools, of which the newest version is used."""
NOT_DECLARED = {"click"}


def declared() -> dict[str, str]:
    """Package -> lowest version, of the library and of the extras that the fast tests use."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
    requirements = project["dependencies"] + [r for extra in EXTRAS for r in project["optional-dependencies"][extra]]
    pairs = [requirement.split(">=") for requirement in requirements]
    versions: dict[str, str] = {}
    for name, version in pairs:
        assert versions.setdefault(name, version) == version, f"two bounds of {name}"
    return {name: version for name, version in versions.items() if name not in UNPINNED}


def pinned() -> dict[str, str]:
    lines = (ROOT / "tests/lowest.txt").read_text("utf-8").splitlines()
    return dict(line.split("==") for line in lines if not line.startswith("#"))


def test_every_declared_bound_is_pinned_and_nothing_else() -> None:
    assert pinned().keys() - NOT_DECLARED == declared().keys()


@pytest.mark.parametrize("name", declared())
def test_the_pinned_version_is_the_lowest_one(name: str) -> None:
    bound, version = declared()[name].split("."), pinned()[name].split(".")
    assert version[: len(bound)] == bound
    assert set(version[len(bound) :]) <= {"0"}
