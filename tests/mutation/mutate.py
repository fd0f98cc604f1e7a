"""Is every line of the reference held by a test? Each small change of its source must make one fail.

    python tests/mutation/mutate.py

Changes: an operator for another, a number for another, a comparison turned, True for False, a condition negated, an argument
dropped, a statement removed. A child process runs the tests on the changed module until the first failure; survivors are printed.
"""

import argparse
import ast
import copy
import json
import os
import shutil
import signal
import sys
import tempfile
import time
import traceback
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import hypothesis  # noqa: F401  (once, for all children)
import ml_dtypes  # noqa: F401
import numpy  # noqa: F401
import pytest

ROOT = Path(__file__).parents[2]
UNITS = [
    *(f"reference/test_{name}" for name in ("ops", "trace", "cache", "model")),
    "vocabulary/test_alibi",
    "front_doors/test_golden",
    "lora/test_lora",
]
LOOPBACK = "tests/backend/test_loopback.py::test_the_engine_over_the_reference_is_the_model"
TESTS = [*(f"tests/unit/{name}.py" for name in UNITS), LOOPBACK]
FILES = [Path("bloomref/reference/ops.py"), Path("bloomref/reference/model.py")]
SECONDS = 120

OPERATORS: dict[type[ast.AST], tuple[type[ast.AST], ...]] = {
    ast.Add: (ast.Sub,),
    ast.Sub: (ast.Add,),
    ast.Mult: (ast.Div,),
    ast.Div: (ast.Mult,),
    ast.MatMult: (ast.Mult,),
    ast.BitAnd: (ast.BitOr,),
    ast.LtE: (ast.Lt, ast.GtE),
    ast.Lt: (ast.LtE, ast.GtE),
    ast.Eq: (ast.NotEq,),
    ast.Is: (ast.IsNot,),
    ast.IsNot: (ast.Is,),
    ast.And: (ast.Or,),
    ast.Or: (ast.And,),
}


def mutants(source: str) -> Iterator[tuple[str, str]]:
    """(what was changed, the changed source) of every single change."""
    tree = ast.parse(source)
    for path, node in _walk(tree, ()):
        for what, change in (*_changes(node), *_removals(node)):
            changed = copy.deepcopy(tree)
            _replace(changed, path, change)
            yield f"line {getattr(node, 'lineno', 0)}: {what}", ast.unparse(ast.fix_missing_locations(changed))


Path_ = tuple[tuple[str, int | None], ...]


def _walk(node: ast.AST, path: Path_) -> Iterator[tuple[Path_, ast.AST]]:
    """Every node that is executed, with the way to it: no annotations, no docstrings."""
    for name, value in ast.iter_fields(node):
        if name in ("annotation", "returns", "decorator_list"):
            continue
        for i, child in enumerate(value) if isinstance(value, list) else [(None, value)]:
            if isinstance(child, ast.AST) and not _is_text(child):
                yield (*path, (name, i)), child
                yield from _walk(child, (*path, (name, i)))


def _is_text(node: ast.AST) -> bool:
    return isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)


def _changes(node: ast.AST) -> Iterator[tuple[str, ast.AST]]:
    match node:
        case ast.BinOp(op=op) | ast.AugAssign(op=op) | ast.BoolOp(op=op):
            for other in OPERATORS.get(type(op), ()):
                yield f"{ast.unparse(node)}: {type(op).__name__} to {other.__name__}", _with(node, op=other())
        case ast.Compare(ops=[op]):
            for other in OPERATORS.get(type(op), ()):
                yield f"{ast.unparse(node)}: {type(op).__name__} to {other.__name__}", _with(node, ops=[other()])
        case ast.UnaryOp(op=ast.USub() | ast.Invert()):
            yield f"{ast.unparse(node)}: without its sign", node.operand
        case ast.IfExp():
            yield f"{ast.unparse(node)}: the other branch", _with(node, body=node.orelse, orelse=node.body)
        case ast.Constant(value=bool() | int() | float()):
            yield from ((f"{node.value} to {other}", ast.Constant(other)) for other in _numbers(node.value))


def _removals(node: ast.AST) -> Iterator[tuple[str, ast.AST]]:
    if isinstance(node, ast.Assign | ast.AugAssign | ast.Expr) and not isinstance(
        node.__dict__.get("value"), ast.Constant
    ):
        yield f"{ast.unparse(node)}: removed", ast.Pass()
    if isinstance(node, ast.Call) and node.keywords:
        for i, keyword in enumerate(node.keywords):
            rest = node.keywords[:i] + node.keywords[i + 1 :]
            yield f"{ast.unparse(node)}: without {keyword.arg}", _with(node, keywords=rest)


def _numbers(value: object) -> list[object]:
    if isinstance(value, bool):
        return [not value]
    return [value + 1] if isinstance(value, int) or value == 0.0 else [value * 1.01]  # type: ignore[operator]


def _with(node: ast.AST, **fields: object) -> ast.AST:
    changed = copy.copy(node)
    for name, value in fields.items():
        setattr(changed, name, value)
    return changed


def _replace(tree: ast.AST, path: Path_, change: ast.AST) -> None:
    for name, i in path[:-1]:
        tree = getattr(tree, name) if i is None else getattr(tree, name)[i]
    name, i = path[-1]
    if i is None:
        setattr(tree, name, change)
    else:
        getattr(tree, name)[i] = change


# --- running -----------------------------------------------------------------------------------------------------


def survives(copy_of: Path, file: Path, source: str, tests: list[str]) -> bool:
    """Whether the tests pass on the changed source, in a copy of the repository. A child that hangs has noticed."""
    (copy_of / file).write_text(source, "utf-8")
    child = os.fork()
    if child == 0:
        _run_tests(copy_of, tests)
    end = time.monotonic() + SECONDS
    while time.monotonic() < end:
        done, status = os.waitpid(child, os.WNOHANG)
        if done:
            return os.waitstatus_to_exitcode(status) == 0
        time.sleep(0.02)
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    return False


def _run_tests(copy_of: Path, tests: list[str]) -> None:
    """In the child: leaves with pytest's exit code."""
    silence = os.open(os.devnull, os.O_WRONLY)
    os.dup2(silence, 1)
    os.dup2(silence, 2)
    os.chdir(copy_of)
    sys.path.insert(0, str(copy_of))
    try:
        code = int(
            pytest.main(
                ["-x", "-q", "--assert=plain", "-p", "no:cacheprovider", "-m", "not slow and not network", *tests]
            )
        )
    except BaseException:
        traceback.print_exc()
        code = 1
    os._exit(code)


def examine(copy_of: Path, file: Path, tests: list[str]) -> dict[str, Any]:
    """Every change of one file."""
    right = (ROOT / file).read_text("utf-8")
    if not survives(copy_of, file, ast.unparse(ast.parse(right)), tests):
        raise SystemExit(f"{file}: the tests fail without any change")
    found = list(mutants(right))
    alive = []
    for what, source in found:
        if survives(copy_of, file, source, tests):
            alive.append(what)
            print(f"  survives: {what}", flush=True)
    (copy_of / file).write_text(right, "utf-8")
    print(f"{file}: {len(found) - len(alive)} of {len(found)} changes noticed", flush=True)
    return {"changes": len(found), "survivors": alive}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("files", nargs="*", type=Path, default=FILES)
    parser.add_argument("--tests", nargs="*", default=TESTS)
    parser.add_argument("--json", type=Path, help="also write the survivors there")
    options = parser.parse_args()
    sys.dont_write_bytecode = True
    with tempfile.TemporaryDirectory() as folder:
        copy_of = Path(folder)
        for name in ("bloomref", "tests"):
            shutil.copytree(ROOT / name, copy_of / name, ignore=shutil.ignore_patterns("__pycache__"))
        shutil.copy(ROOT / "pyproject.toml", copy_of)
        result = {file.as_posix(): examine(copy_of, file, options.tests) for file in options.files}
    if options.json:
        options.json.write_text(json.dumps(result, indent=2) + "\n", "utf-8")


if __name__ == "__main__":
    main()
