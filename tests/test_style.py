"""Rules of style: letters of the dimension key, linters, sizes, and no paths of a machine.

Each check can fail.
"""

import ast
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import bloomref.shapes

ROOT = Path(__file__).parents[1]
CODE = [path for folder in ("bloomref", "accel") for path in sorted((ROOT / folder).rglob("*.py"))]
EVERY_FILE = CODE + [
    path for folder in ("tools", "benchmarks", "tests") for path in sorted((ROOT / folder).rglob("*.py"))
]


def by_name(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


# --- letters -----------------------------------------------------------------------------------------------------


def key_letters(text: str) -> set[str]:
    """The letters of the key: the first and the third cell of each row of the table."""
    rows = [line.split("|")[1:-1] for line in text.splitlines() if line.startswith("|")]
    return set(re.findall(r"\b[A-Z]\b", " ".join(cell for row in rows for cell in row[::2])))


LETTERS = key_letters(bloomref.shapes.__doc__ or "")
AXIS = re.compile(r"\b[A-Z]\b")


def annotated_axes(tree: ast.AST) -> Iterator[tuple[int, str]]:
    """(line, axes) of every `Float[Array, "B T D"]`."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Subscript) and getattr(node.value, "id", "") in ("Float", "Int", "Bool"):
            elements = node.slice.elts if isinstance(node.slice, ast.Tuple) else []
            yield from ((node.lineno, e.value) for e in elements if isinstance(e, ast.Constant))


def einsum_calls(tree: ast.AST) -> Iterator[tuple[int, str, list[str]]]:
    """(line, subscripts, operands) of every einsum."""
    for node in ast.walk(tree):
        name = getattr(node.func, "attr", getattr(node.func, "id", "")) if isinstance(node, ast.Call) else ""
        if isinstance(node, ast.Call) and name.endswith("einsum") and node.args:
            subscripts, *operands = node.args
            if isinstance(subscripts, ast.Constant):
                yield node.lineno, subscripts.value, [ast.unparse(operand) for operand in operands]


def misused_letters(source: str) -> list[str]:
    """Axes that are not in the key, and operands whose suffix (`query_BTHK`) is not what their einsum says."""
    tree, found = ast.parse(source), []
    for line, axes in annotated_axes(tree):
        found += [f"{line}: {axis}" for axis in axes.split() if not set(re.findall(r"[A-Za-z]", axis)) <= LETTERS]
    for line, subscripts, operands in einsum_calls(tree):
        found += [f"{line}: {letter}" for letter in sorted(set(re.findall(r"[A-Za-z]", subscripts)) - LETTERS)]
        for operand, axes in zip(operands, subscripts.split("->")[0].split(","), strict=False):
            suffix = re.search(r"_([A-Z]{2,})$", operand)
            found += [f"{line}: {operand} as {axes}"] if suffix and suffix[1] != axes.strip() else []
    return found


def test_axes_are_letters_of_the_key():
    found = {by_name(path): misused_letters(path.read_text("utf-8")) for path in CODE}
    assert {name: letters for name, letters in found.items() if letters} == {}


def test_the_key_is_the_one_of_the_specification():
    assert set("BTSPVLHKCDFRMN") == LETTERS == key_letters((ROOT / "specs/00-notation.md").read_text("utf-8"))


@pytest.mark.parametrize(
    "source",
    [
        'def f(x: Float[Array, "B T Q"]): ...',
        'x: Int[Array, "batch T"]',
        'np.einsum("BTHK,BSHK->BHTZ", a, b)',
        'np.einsum("BTHK,BSHK->BHTS", query_BTHK, key_BHSK)',
    ],
)
def test_a_wrong_letter_is_found(source):
    assert misused_letters(source)


def test_right_letters_pass():
    assert (
        misused_letters('x: Float[Array, "*N"] = np.einsum("BTHK,BSHK->BHTS", q_BTHK, k)\ny: Bool[Array, "B #H 1 S"]')
        == []
    )


# --- linters -----------------------------------------------------------------------------------------------------


def run(tool: str, *arguments: str, cwd: Path = ROOT) -> subprocess.CompletedProcess[str]:
    beside = Path(sys.executable).with_name(tool)
    command = str(beside) if beside.exists() else shutil.which(tool)
    if command is None:
        pytest.skip(f"{tool} is not installed: pip install bloomref[test]")
    return subprocess.run([command, *arguments], cwd=cwd, capture_output=True, text=True, check=False)


@pytest.mark.parametrize("arguments", [("check",), ("format", "--check")], ids=" ".join)
def test_ruff(arguments):
    result = run("ruff", *arguments, ".")
    assert result.returncode == 0, result.stdout + result.stderr


@pytest.mark.slow
def test_mypy():
    result = run("mypy")  # strict, on the packages that pyproject.toml names
    assert result.returncode == 0, result.stdout + result.stderr


def test_the_linters_find_something(tmp_path):
    (tmp_path / "bad.py").write_text("import os\nx = [1,2]\n", "utf-8")
    assert "F401" in run("ruff", "check", "bad.py", cwd=tmp_path).stdout
    assert run("ruff", "format", "--check", "bad.py", cwd=tmp_path).returncode == 1
    (tmp_path / "worse.py").write_text("def f(x): return x + 1\n", "utf-8")
    assert "no-untyped-def" in run("mypy", "--strict", "worse.py", cwd=tmp_path).stdout


# --- sizes -------------------------------------------------------------------------------------------------------


def lines(path: Path) -> int:
    return len(path.read_text("utf-8").splitlines())


def too_long(paths: list[Path], limit: int) -> list[str]:
    return [f"{path.name}: {lines(path)}" for path in paths if lines(path) > limit]


def test_no_file_is_longer_than_500_lines():
    assert too_long(EVERY_FILE, 500) == []


def test_a_long_file_is_found(tmp_path):
    path = tmp_path / "long.py"
    path.write_text("\n" * 501, "utf-8")
    assert too_long([path], 500) == ["long.py: 501"]


# --- traces of a machine -----------------------------------------------------------------------------------------

MACHINE_PATH = re.compile(r"(?<![\w.])/(?:home|root|Users|work|mnt|scratch)/[\w.-]+|[A-Z]:\\Users\\")


def text_files() -> list[Path]:
    """Files that git tracks or would add; without git, every file."""
    git = ["git", "ls-files", "--cached", "--others", "--exclude-standard"]
    listed = subprocess.run(git, cwd=ROOT, capture_output=True, text=True, check=False) if shutil.which("git") else None
    found = (
        [ROOT / name for name in listed.stdout.splitlines()] if listed and listed.returncode == 0 else ROOT.rglob("*")
    )
    return [path for path in found if path.is_file() and b"\0" not in path.read_bytes()[:4096]]


def machine_paths(text: str) -> list[str]:
    return MACHINE_PATH.findall(text)


def test_no_file_names_a_path_of_some_machine():
    found = {by_name(path): machine_paths(path.read_text("utf-8", errors="replace")) for path in text_files()}
    assert {name: paths for name, paths in found.items() if paths} == {}
    assert len(found) > 50


def test_a_machine_path_is_found():
    assert machine_paths("see /" + "home/somebody/x.py, C:" + "\\Users\\me") == [
        "/" + "home/somebody",
        "C:" + "\\Users\\",
    ]
    assert machine_paths("bloomref/reference/model.py https://a.b/home/page ./work/x") == []
