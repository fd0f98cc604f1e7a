"""Rules for files, parameters and docstrings: names that say what a value is, sentences that stand alone.

Each check can fail.
"""

import ast
import tomllib
from collections.abc import Iterator, Mapping
from itertools import pairwise
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
Trees = Mapping[str, ast.Module]
"""Path from the root of the repository -> syntax tree."""


def parse(*folders: str) -> Trees:
    paths = [path for folder in folders for path in sorted((ROOT / folder).rglob("*.py"))]
    return {path.relative_to(ROOT).as_posix(): ast.parse(path.read_text("utf-8")) for path in paths}


@pytest.fixture(scope="module")
def shipped() -> Trees:
    """Of this module alone: where trees are kept, every garbage collection walks them."""
    return parse("bloomref", "accel")


@pytest.fixture(scope="module")
def trees(shipped: Trees) -> Trees:
    return shipped | parse("tools")


# --- files -------------------------------------------------------------------------------------------------------


def test_the_wheel_has_the_two_packages_and_nothing_else():
    targets = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["tool"]["hatch"]["build"]["targets"]
    assert targets["wheel"]["packages"] == ["bloomref", "accel"]
    assert all(place.startswith("bloomref/") for place in targets["wheel"]["force-include"].values())


# --- parameters --------------------------------------------------------------------------------------------------

VAGUE = {"found", "seen", "wanted", "given", "kept", "told"}


def public_parameters(tree: ast.Module) -> Iterator[tuple[str, str]]:
    """(function, parameter) of public functions and methods, and (class, field) of public classes."""
    blocks: list[tuple[str, list[ast.stmt]]] = [("", tree.body)]
    for prefix, block in blocks:
        for node in block:
            if isinstance(node, ast.ClassDef) and not node.name.startswith("_"):
                blocks.append((f"{prefix}{node.name}.", node.body))
                fields = [
                    item.target.id
                    for item in node.body
                    if isinstance(item, ast.AnnAssign) and isinstance(item.target, ast.Name)
                ]
                yield from ((f"{prefix}{node.name}", field) for field in fields)
            if isinstance(node, ast.FunctionDef) and (not node.name.startswith("_") or node.name.endswith("__")):
                arguments = node.args
                listed = [
                    *arguments.posonlyargs,
                    *arguments.args,
                    *arguments.kwonlyargs,
                    arguments.vararg,
                    arguments.kwarg,
                ]
                yield from ((prefix + node.name, argument.arg) for argument in listed if argument)


def vague_parameters(trees: Trees) -> list[str]:
    return [
        f"{path}: {name}({parameter})"
        for path, tree in trees.items()
        for name, parameter in public_parameters(tree)
        if parameter in VAGUE
    ]


def test_public_parameters_are_named_for_their_values(shipped):
    assert vague_parameters(shipped) == []


@pytest.mark.parametrize(
    "source",
    [
        "def f(found): ...",
        "class A:\n    def __init__(self, *, seen): ...",
        "class A:\n    class B:\n        def f(self, *told): ...",
        "class A:\n    kept: int = 1",
    ],
)
def test_a_vague_parameter_is_found(source):
    assert vague_parameters({"a.py": ast.parse(source)})


def test_private_functions_and_locals_are_free():
    source = "def _f(found): ...\nclass _A:\n    seen: int\ndef f(x):\n    kept = x\n    return lambda given: given"
    assert vague_parameters({"a.py": ast.parse(source)}) == []


# --- docstrings --------------------------------------------------------------------------------------------------

CLAUSES = ("What ", "Whether ", "How ", "so ")
"""Openings of a relative clause, or of a sentence that needs the one before it."""


def docstrings(tree: ast.Module) -> Iterator[tuple[int, str]]:
    """(line, text) of the docstrings of modules, classes, functions, and of the values that they define."""
    for node in ast.walk(tree):
        body = getattr(node, "body", None)
        if not isinstance(body, list):
            continue
        documented = isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef)
        texts = body[:1] if documented else []
        texts += [text for item, text in pairwise(body) if isinstance(item, ast.Assign | ast.AnnAssign)]
        for text in texts:
            if (
                isinstance(text, ast.Expr)
                and isinstance(text.value, ast.Constant)
                and isinstance(text.value.value, str)
            ):
                yield text.lineno, text.value.value


def dependent_docstrings(trees: Trees) -> list[str]:
    return [
        f"{path}:{line}: {text.splitlines()[0]}"
        for path, tree in trees.items()
        for line, text in docstrings(tree)
        if text.lstrip().startswith(CLAUSES)
    ]


def test_a_docstring_is_a_sentence_or_a_noun(trees):
    assert dependent_docstrings(trees) == []


@pytest.mark.parametrize(
    "source",
    [
        '"""What a module has."""',
        'class A:\n    """How it works."""',
        'class A:\n    x: int = 1\n    """Whether x."""',
        'def f():\n    def g():\n        """so are they"""',
        'x = 1\n"""What x is."""',
    ],
)
def test_a_relative_clause_is_found(source):
    assert dependent_docstrings({"a.py": ast.parse(source)})


def test_other_docstrings_pass():
    assert (
        dependent_docstrings(
            {"a.py": ast.parse('"""Whatever."""\ndef f():\n    x = 1\n    "What"\n    return "What f"')}
        )
        == []
    )
