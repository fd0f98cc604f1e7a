"""Mutation testing of the source: each small change of the reference,
the vocabulary and the reader of weights must fail a test.

    python tests/mutation/mutate.py --json docs/proof/mutations.json

Changes: another operator, another number, a turned comparison, True for False, a negated condition, a dropped argument,
a removed statement. A child process runs the tests of the file on the changed module until the first failure. Survivors
are printed.
"""

import argparse
import ast
import copy
import json
import os
import resource
import shutil
import sys
import tempfile
import traceback
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import hypothesis  # noqa: F401  (once, for all children)
import ml_dtypes  # noqa: F401
import numpy  # noqa: F401
import pytest

ROOT = Path(__file__).parents[2]
LOOPBACK = "tests/backend/test_loopback.py::test_the_engine_over_the_reference_is_the_model"


def _unit(*names: str) -> list[str]:
    return [f"tests/unit/{name}.py" for name in names]


MODEL = _unit("reference/test_trace", "reference/test_model", "reference/test_cache", "front_doors/test_golden")
TESTS: dict[str, list[str]] = {
    "bloomref/reference/ops.py": [*_unit("reference/test_ops"), *MODEL],
    "bloomref/reference/model.py": [*MODEL, *_unit("vocabulary/test_alibi", "lora/test_lora"), LOOPBACK],
    "bloomref/reference/lora_ops.py": _unit("lora/test_lora"),
    "bloomref/alibi.py": _unit("vocabulary/test_alibi"),
    "bloomref/dtypes.py": _unit("vocabulary/test_dtypes", "reference/test_model"),
    "bloomref/config.py": _unit("vocabulary/test_config", "formats/test_config_json"),
    "bloomref/params.py": _unit("vocabulary/test_params", "lora/test_lora"),
    "bloomref/formats/config_json.py": _unit("formats/test_config_json"),
    "bloomref/formats/safetensors_io.py": _unit("formats/test_formats_safetensors", "formats/test_hostile_files"),
}
"""File -> the fast tests that belong to it, in the order in which they run."""
FILES = [Path(name) for name in TESTS]
SECONDS = 120
"""Processor time after which a child counts as hanging."""

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


Path_ = tuple[tuple[str, int | None], ...]


def mutants(source: str) -> Iterator[tuple[str, str]]:
    """(description, changed source) of every single change."""
    tree = ast.parse(source)
    for what, path, change in changes(tree):
        changed = copy.deepcopy(tree)
        _replace(changed, path, change)
        yield what, ast.unparse(ast.fix_missing_locations(changed))


def changes(tree: ast.Module) -> Iterator[tuple[str, Path_, ast.AST]]:
    """(description, path of a node, the node in its place) of every single change."""
    for path, node in _walk(tree, ()):
        for what, change in (*_changes(node), *_removals(node)):
            yield f"{_scope(tree, path)}: {what}", path, change


def _walk(node: ast.AST, path: Path_) -> Iterator[tuple[Path_, ast.AST]]:
    """Every executed node with its path: no annotations, no docstrings."""
    for name, value in ast.iter_fields(node):
        if name in ("annotation", "returns", "decorator_list"):
            continue
        for i, child in enumerate(value) if isinstance(value, list) else [(None, value)]:
            if isinstance(child, ast.AST) and not _is_text(child):
                yield (*path, (name, i)), child
                yield from _walk(child, (*path, (name, i)))


def _scope(tree: ast.AST, path: Path_) -> str:
    """Name of the function or class around a node, or "module"."""
    names = []
    for name, i in path[:-1]:
        tree = getattr(tree, name) if i is None else getattr(tree, name)[i]
        names += [tree.name] if isinstance(tree, ast.FunctionDef | ast.ClassDef) else []
    return ".".join(names) or "module"


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
    """True if the tests pass on the changed source, in a copy of the repository.

    A child that hangs counts as a failure.
    """
    (copy_of / file).write_text(source, "utf-8")
    child = os.fork()
    if child == 0:
        resource.setrlimit(resource.RLIMIT_CPU, (SECONDS, SECONDS))
        _run_tests(copy_of, tests)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0


def _run_tests(copy_of: Path, tests: list[str]) -> None:
    """Run pytest in the child and exit with its code."""
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


@dataclass(frozen=True)
class Mutant:
    """One changed source of one file."""

    file: Path
    change: str
    source: str


class Workers:
    """Processes with a copy of the repository each, in which they change one file at a time."""

    def __init__(self, folder: Path, count: int) -> None:
        self.folders = [folder / str(i) for i in range(count)]
        for copy_of in self.folders:
            for name in ("bloomref", "tests"):
                shutil.copytree(ROOT / name, copy_of / name, ignore=shutil.ignore_patterns("__pycache__"))
            shutil.copy(ROOT / "pyproject.toml", copy_of)

    def survivors(self, mutants: list[Mutant], report: Callable[[str], None]) -> list[Mutant]:
        """The mutants on which all tests of their file pass; `report` gets a line of progress now and then."""
        alive, done = [], 0
        with ThreadPoolExecutor(len(self.folders)) as pool:
            for mutant, is_alive in pool.map(self._examine, mutants):
                done += 1
                alive += [mutant] if is_alive else []
                if is_alive:
                    report(f"survives: {mutant.file}: {mutant.change}")
                if done % 20 == 0 or done == len(mutants):
                    report(f"{done} of {len(mutants)} changes, {len(alive)} survive")
        return alive

    def _examine(self, mutant: Mutant) -> tuple[Mutant, bool]:
        copy_of = self.folders.pop()
        try:
            return mutant, survives(copy_of, mutant.file, mutant.source, TESTS[mutant.file.as_posix()])
        finally:
            (copy_of / mutant.file).write_text((ROOT / mutant.file).read_text("utf-8"), "utf-8")
            self.folders.append(copy_of)


def examine(files: list[Path], processes: int, only: dict[str, set[str]] | None = None) -> dict[str, Any]:
    """Number of changes and the survivors, by file.

    Args:
        only: file -> the changes to examine; the others count as detected. None: all.
    """
    sources = {file: (ROOT / file).read_text("utf-8") for file in files}
    changes = [Mutant(file, what, changed) for file in files for what, changed in mutants(sources[file])]
    unchanged = [Mutant(file, "no change", ast.unparse(ast.parse(source))) for file, source in sources.items()]
    with tempfile.TemporaryDirectory() as folder:
        workers = Workers(Path(folder), processes)
        passing = {mutant.file for mutant in workers.survivors(unchanged, lambda _: None)}
        if failing := [str(file) for file in files if file not in passing]:
            raise SystemExit(f"{', '.join(failing)}: the tests fail without any change")
        examined = [m for m in changes if only is None or m.change in only[m.file.as_posix()]]
        alive = workers.survivors(examined, lambda line: print(line, flush=True))
    return {
        file.as_posix(): {
            "changes": sum(mutant.file == file for mutant in changes),
            "survivors": [mutant.change for mutant in alive if mutant.file == file],
        }
        for file in files
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--files", nargs="*", type=Path, default=FILES, help="files to change; default: all of TESTS")
    parser.add_argument("--processes", type=int, default=2, help="changes that are examined at a time")
    parser.add_argument("--json", type=Path, help="also write the result there; files not examined keep their entry")
    parser.add_argument(
        "--survivors", action="store_true", help="examine only the survivors in --json, for instance after adding tests"
    )
    options = parser.parse_args()
    sys.dont_write_bytecode = True
    earlier = json.loads(options.json.read_text("utf-8")) if options.json and options.json.exists() else {}
    only = None
    if options.survivors:
        only = {file.as_posix(): set(earlier[file.as_posix()]["survivors"]) for file in options.files}
    result = examine(options.files, options.processes, only)
    for name, record in result.items():
        print(f"{name}: {record['changes'] - len(record['survivors'])} of {record['changes']} changes are detected")
    if options.json:
        merged = {name: entry for name in TESTS if (entry := (earlier | result).get(name))}
        options.json.write_text(json.dumps(merged, indent=2) + "\n", "utf-8")


if __name__ == "__main__":
    main()
