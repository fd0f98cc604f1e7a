"""`bloomref generate --draft`: the same text, and what the draft was worth, on every form of the command."""

import json
from pathlib import Path
from typing import Any

import pytest
from command_line import run

from bloomref import BloomCausalLM

pytest.importorskip("numba", reason="numba is not installed")

OPTIONS = ("-n", "12", "--backend", "numba")


@pytest.fixture(autouse=True, scope="module")
def one_model() -> Any:
    """The command loads one model of this module."""
    lm = BloomCausalLM.from_preset("bloom_tiny_udhr", backend="numba", dtype="float32")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("bloomref.cli.shared.load", lambda *_: lm)
        yield


@pytest.mark.clause("GEN-21")
@pytest.mark.parametrize("options", [(), ("--temperature", "1", "--seed", "3", "--best-of", "2")], ids=["one", "best"])
@pytest.mark.parametrize("draft", ["prompt", "bloom_tiny_udhr"])
def test_the_same_text_and_a_report(draft: str, options: tuple[str, ...]) -> None:
    arguments = ("generate", "Everyone has the right to", *OPTIONS, *options)
    plain, drafted = run(*arguments), run(*arguments, "--draft", draft)
    assert (drafted.returncode, drafted.stdout) == (0, plain.stdout)
    assert " tokens a pass, " in drafted.stderr
    report, without = (json.loads(run(*arguments, "--json", *more).stdout) for more in (("--draft", draft), ()))
    figures = report.pop("draft")
    assert {**report, "seconds": 0} == {**without, "seconds": 0}
    assert figures["tokens"] > 0
    assert figures["tokens_per_pass"] == figures["tokens"] / figures["passes"]


def test_the_prompts_of_a_file(tmp_path: Path) -> None:
    """A run that was begun without a draft may go on with one: it is no condition of the results."""
    source, texts = tmp_path / "prompts.txt", []
    source.write_text("Everyone has\nNo one shall be\nArticle 1\n", "utf-8")
    for name, more in (("plain", ()), ("drafted", ("--draft", "prompt"))):
        output = tmp_path / f"{name}.jsonl"
        result = run("generate", "--input", str(source), "--output", str(output), "--json", *OPTIONS, *more)
        texts.append(output.read_text("utf-8"))
    assert texts[0] == texts[1]
    assert json.loads(result.stdout)["draft"]["passes"] > 0


def test_no_draft_of_that_name() -> None:
    result = run("generate", "Everyone", *OPTIONS, "--draft", "no/such/folder")
    assert result.returncode == 2
    assert "no/such/folder" in result.stderr
