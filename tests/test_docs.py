"""The documents are true: Python blocks run, shell blocks parse, paths exist,
generated tables are current, no block goes unchecked.

A block that cannot be checked says why on the line before its fence: `<!-- skip: reason -->`.
"""

import doctest
import importlib.util
import json
import pkgutil
import re
import shlex
import tomllib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tools import spec_tables

ROOT = Path(__file__).parents[1]
DOCUMENTS = [ROOT / "README.md", *sorted((ROOT / "specs").glob("*.md")), *sorted((ROOT / "docs").rglob("*.md"))]

FENCE = re.compile(r"(?:^<!-- skip: ([^\n]+) -->\n)?^( *)```(\w*)[^\n]*\n(.*?)^\2```$", re.MULTILINE | re.DOTALL)


@dataclass(frozen=True)
class Block:
    line: int
    language: str
    code: str
    skip: str | None


def blocks(text: str) -> Iterator[Block]:
    for found in FENCE.finditer(text):
        reason, indent, language, code = found.groups()
        yield Block(text[: found.start(3)].count("\n") + 1, language, re.sub(f"(?m)^{indent}", "", code), reason)


# --- checks by language; each raises ------------------------------------------------------------------------------


def run_python(block: Block, namespace: dict[str, Any], name: str) -> None:
    padding = "\n" * block.line  # so that a traceback shows the document's line
    if block.code.startswith(">>>"):
        test = doctest.DocTestParser().get_doctest(block.code, namespace, name, name, block.line)
        result = doctest.DocTestRunner(optionflags=doctest.ELLIPSIS).run(test, clear_globs=False)
        assert result.failed == 0
        namespace.update(test.globs)
    else:
        exec(compile(padding + block.code, name, "exec"), namespace)


def commands(code: str) -> Iterator[list[str]]:
    """The simple commands of a shell block, without prompts, comments, redirections and variable settings."""
    for line in code.replace("\\\n", " ").splitlines():
        lexer = shlex.shlex(line.removeprefix("$ "), posix=True, punctuation_chars="|&;<>")
        lexer.whitespace_split = True
        words: list[str] = []
        for word in [*lexer, ";"]:
            if set(word) <= set("|&;"):
                yield from [words] if words else []
                words = []
            elif words or not re.fullmatch(r"\w+=.*", word):
                words.append(word)


def parse_cli(arguments: list[str]) -> None:
    """Raise unless the command line would be accepted; nothing is executed."""
    import typer

    from bloomref.cli.app import app

    main: Any = typer.main.get_command(app)
    try:
        with main.make_context("bloomref", list(arguments)) as context:
            name, command, rest = main.resolve_command(context, [*context._protected_args, *context.args])
            command.make_context(name, rest, parent=context)
    except typer.Exit:  # --help, --version
        pass


def check_python_command(arguments: list[str]) -> None:
    if arguments[:1] == ["-m"]:
        assert importlib.util.find_spec(arguments[1]) is not None, arguments[1]
    elif arguments and not arguments[0].startswith("-"):
        assert (ROOT / arguments[0]).exists(), arguments[0]


TOOLS: dict[str, Callable[[list[str]], object]] = {
    "bloomref": parse_cli,
    "python": check_python_command,
    **dict.fromkeys(
        ("pip", "git", "cd", "sh", "source", "export", "pytest", "ruff", "mypy", "head", ".ci/run"), lambda _: None
    ),
}


def check_shell(block: Block, *_: object) -> None:
    for name, *arguments in commands(block.code):
        assert name in TOOLS, f"unknown command {name!r}: add it to TOOLS, or a skip comment"
        TOOLS[name](arguments[: min([i for i, a in enumerate(arguments) if set(a) <= set("<>")], default=None)])


def check_output(block: Block, *_: object) -> None:
    """Sample output cannot be checked, but must not hide commands."""
    assert not re.search(r"^(\$|>>>|bloomref|python|pip) ", block.code, re.MULTILINE), block.code


CHECKS: dict[str, Callable[[Block, dict[str, Any], str], object]] = {
    "python": run_python,
    "bash": check_shell,
    "sh": check_shell,
    "text": check_output,
    "json": lambda block, *_: json.loads(block.code),
    "toml": lambda block, *_: tomllib.loads(block.code),
}


def check(text: str, name: str) -> None:
    namespace: dict[str, Any] = {"__name__": "document"}
    for block in blocks(text):
        if block.skip is None:
            assert block.language in CHECKS, f"{name}:{block.line}: nobody checks a block of {block.language!r}"
            CHECKS[block.language](block, namespace, name)


# --- names in the text -------------------------------------------------------------------------------------------

SPAN = re.compile(r"(?<!`)`([^`\n]+)`(?!`)")
FOLDERS = ("accel", "benchmarks", "bloomref", "docs", "specs", "tests", "tools")
FILE = re.compile(rf"(?:{'|'.join(FOLDERS)})(?:/[\w.*-]+)+/?")
MODULE = re.compile(r"(?:bloomref|tools)(?:\.\w+)+")
ENTRY_POINTS = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]["entry-points"]


def spans(text: str) -> list[str]:
    """The code spans of a text, without its blocks."""
    return SPAN.findall(FENCE.sub("", text))


def missing_paths(text: str) -> list[str]:
    """Code spans that look like a path of the repository, where no file matches."""
    return [span for span in spans(text) if FILE.fullmatch(span) and not any(ROOT.glob(span.rstrip("/")))]


def missing_modules(text: str) -> list[str]:
    """Code spans that look like a module, or a name in one, and cannot be imported."""
    names = [span for span in spans(text) if MODULE.fullmatch(span) and span not in ENTRY_POINTS]
    return [name for name in names if not is_importable(name)]


def is_importable(name: str) -> bool:
    try:
        pkgutil.resolve_name(name)
    except (ImportError, AttributeError):
        return False
    return True


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_paths_and_modules_exist(path):
    text = path.read_text("utf-8")
    assert missing_paths(text) == []
    assert missing_modules(text) == []


# --- the documents -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_blocks(path, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    check(path.read_text("utf-8"), str(path))


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_no_fence_is_overlooked(path):
    text = path.read_text("utf-8")
    assert len(re.findall(r"^\s*```", text, re.MULTILINE)) == 2 * len(list(blocks(text)))


def test_generated_tables_are_current():
    old = spec_tables.stale(spec_tables.tables())
    assert [path.name for path in old] == [], "run python -m tools.spec_tables"


def test_every_topic_has_an_example_that_runs():
    for path in sorted((ROOT / "specs").glob("[0-9]*.md")):
        assert [b for b in blocks(path.read_text("utf-8")) if b.language == "python" and not b.skip], path.name


# --- each check can fail -----------------------------------------------------------------------------------------


def fenced(language: str, code: str, before: str = "") -> str:
    return f"{before}```{language}\n{code}\n```\n"


@pytest.mark.parametrize(
    ("text", "error"),
    [
        (fenced("python", "assert 1 + 1 == 3"), AssertionError),
        (fenced("python", ">>> 1 + 1\n3"), AssertionError),
        (fenced("python", "x = 1") + fenced("python", "y"), NameError),
        (fenced("bash", "bloomref generate --no-such-option"), Exception),
        (fenced("bash", "bloomref no-such-command"), Exception),
        (fenced("bash", "echo a && bloomref presets"), AssertionError),
        (fenced("bash", "pip install . | bloomref no-such-command"), Exception),
        (fenced("bash", "python -m bloomref.no_such_module"), AssertionError),
        (fenced("bash", "python no/such/file.py"), AssertionError),
        (fenced("json", "{'a': 1}"), ValueError),
        (fenced("toml", "a ="), ValueError),
        (fenced("", "anything"), AssertionError),
        (fenced("rust", "anything"), AssertionError),
        (fenced("text", "$ bloomref presets"), AssertionError),
    ],
)
def test_a_false_block_is_found(text, error):
    with pytest.raises(error):
        check(text, "planted")


def test_a_missing_path_or_module_is_found():
    text = (
        "`tests/numba`, `docs/no_such.md`, `docs/*.nothing`, `tests/test_docs.py`, `docs/`, `docs/*.md`, `logits/hole`"
    )
    assert missing_paths(text + "\n" + fenced("text", "`tests/block`")) == [
        "tests/numba",
        "docs/no_such.md",
        "docs/*.nothing",
    ]
    text = "`bloomref.no_such_module`, `bloomref.alibi.slopes`, `bloomref.alibi.slope`, `tools.spec_tables`, `bloomref.x()`"
    assert missing_modules(text) == ["bloomref.no_such_module", "bloomref.alibi.slope"]


def test_true_and_skipped_blocks_pass():
    check(fenced("python", "x = 1") + fenced("python", ">>> x + 1\n2") + fenced("python", "assert x == 1"), "planted")
    check(fenced("bash", "$ A=1 bloomref presets > out.txt  # a comment\nbloomref --help"), "planted")
    check(fenced("text", "what was printed"), "planted")
    check(fenced("python", "assert False", "<!-- skip: needs a network -->\n"), "planted")


def test_a_stale_table_is_found(tmp_path):
    path = tmp_path / "a.md"
    path.write_text("# A\n<!-- generated: t -->\nold\n<!-- end generated -->\nrest\n", "utf-8")
    assert spec_tables.stale({path: ("t", "new\n")}) == {path: path.read_text("utf-8").replace("old", "new")}
    assert spec_tables.stale({path: ("t", "old\n")}) == {}
    with pytest.raises(ValueError, match="no generated section 'other'"):
        spec_tables.stale({path: ("other", "new\n")})


def test_the_command_reports_and_writes(monkeypatch, capsys, tmp_path):
    path = tmp_path / "a.md"
    path.write_text("<!-- generated: t -->\n<!-- end generated -->\n", "utf-8")
    monkeypatch.setattr(spec_tables, "tables", lambda: {path: ("t", "| new |\n")})
    monkeypatch.setattr(spec_tables, "ROOT", tmp_path)
    assert spec_tables.main(["--check"]) == 1
    assert "| new |" not in path.read_text("utf-8")
    assert spec_tables.main([]) == 0
    assert spec_tables.main(["--check"]) == 0
    assert "| new |" in path.read_text("utf-8")
    assert capsys.readouterr().out == "a.md: out of date\na.md: written\n"
