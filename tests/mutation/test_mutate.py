"""The mutation tool: each mutant is one change of code, and annotations and docstrings stay."""

import ast
import json
from functools import cache
from pathlib import Path

import pytest
from mutate import FILES, ROOT, TESTS, changes, mutants

SOURCE = '''
def f(x: Float[Array, "B 2"], y=1.5) -> int:
    """Words about 1 + 2."""
    z = x @ y if x <= 3 else -x
    z += g(z, axis=0)
    return z
'''


@cache
def changes_of(file: str) -> list[str]:
    """The changes of a file of the library, by their descriptions."""
    return [what for what, *_ in changes(ast.parse((ROOT / file).read_text("utf-8")))]


def test_every_change_is_named_and_gives_another_source_that_parses():
    changed = list(mutants(SOURCE))
    plain = ast.unparse(ast.parse(SOURCE))
    assert len({source for _, source in changed}) == len(changed)
    assert all(source != plain and ast.parse(source) for _, source in changed)
    assert {what.partition(":")[0] for what, _ in changed} == {"f"}


def test_the_kinds_of_changes():
    names = [what for what, _ in mutants(SOURCE)]
    for expected in (
        "MatMult to Mult",
        "LtE to Lt",
        "LtE to GtE",
        "the other branch",
        "without its sign",
        "removed",
        "without axis",
        "3 to 4",
        "1.5 to",
    ):
        assert any(expected in what for what in names), expected


def test_words_and_annotations_are_left_alone():
    for _, source in mutants(SOURCE):
        assert '"""Words about 1 + 2."""' in source
        assert "Float[Array, 'B 2']" in source


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_every_file_offers_changes(file: Path):
    assert len(changes_of(file.as_posix())) > (60 if file.stem in ("ops", "model") else 10)


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_the_tests_of_every_file_exist(file: Path):
    assert TESTS[file.as_posix()]
    assert all((ROOT / test.partition("::")[0]).is_file() for test in TESTS[file.as_posix()])


RECORD = json.loads((ROOT / "docs" / "proof" / "mutations.json").read_text("utf-8"))


def test_every_file_is_on_record():
    assert list(RECORD) == list(TESTS)


@pytest.mark.parametrize("file", RECORD)
def test_the_record_is_of_this_source(file: str) -> None:
    """docs/proof.md explains the survivors of docs/proof/mutations.json: run the tool again when this fails."""
    names = changes_of(file)
    assert len(names) == RECORD[file]["changes"]
    assert set(RECORD[file]["survivors"]) <= set(names)
