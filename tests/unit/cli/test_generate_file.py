"""generate --input --output, in this process: results in order and equal to one call's; resumed runs; refusals."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from bloomref import BloomCausalLM
from bloomref.cli.app import run
from bloomref.cli.option_names import hint_of
from bloomref.generation.many import Completion

PROMPTS = ["Everyone has", "No one", "The", "Everyone has the right to", ""]
OPTIONS = ("-n", "2", "--temperature", "1", "--seed", "5", "--backend", "numpy")
LM = BloomCausalLM.from_preset("bloom_tiny_udhr")


@pytest.fixture(autouse=True)
def one_model(monkeypatch: pytest.MonkeyPatch) -> None:
    """The command loads the model of this module."""
    monkeypatch.setattr("bloomref.cli.shared.load", lambda *_: LM)


@pytest.fixture
def source(tmp_path: Path) -> Path:
    path = tmp_path / "prompts.jsonl"
    lines = [json.dumps({"prompt": prompt, "id": i}) for i, prompt in enumerate(PROMPTS)]
    path.write_text("\n".join(lines) + "\n", "utf-8")
    return path


def generate(source: Path, *options: str) -> int:
    return run(["generate", "--input", str(source), "--output", str(source.with_name("out.jsonl")), *options])


def results(source: Path) -> list[dict[str, Any]]:
    text = source.with_name("out.jsonl").read_text("utf-8")
    return [json.loads(line) for line in text.splitlines()]


@pytest.mark.parametrize("batch", ["2", "16"])
def test_the_results_are_those_of_one_call_in_the_order_of_the_file(source: Path, batch: str) -> None:
    assert generate(source, *OPTIONS, "--batch", batch) == 0
    expected = LM.generate(PROMPTS, max_new_tokens=2, temperature=1.0, seed=5, strip_prompt=True)
    assert [line["continuation"] for line in results(source)] == expected
    assert [(line["index"], line["prompt"], line["id"]) for line in results(source)] == [
        (i, prompt, i) for i, prompt in enumerate(PROMPTS)
    ]
    assert not source.with_name("out.jsonl.partial").exists()


def test_several_results_of_each_prompt(source: Path) -> None:
    assert generate(source, *OPTIONS, "--num-return-sequences", "2", "--batch", "2") == 0
    expected = LM.generate(
        PROMPTS, max_new_tokens=2, temperature=1.0, seed=5, strip_prompt=True, num_return_sequences=2
    )
    assert [text for line in results(source) for text in line["continuations"]] == expected
    assert all(len(line["tokens"]) == 2 for line in results(source))


@pytest.mark.parametrize("cut", [0, 3], ids=["between lines", "within a line"])
def test_an_interrupted_run_continues_where_it_stopped(
    source: Path, cut: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert generate(source, *OPTIONS) == 0
    whole = results(source)
    source.with_name("out.jsonl").unlink()
    each, skipped = LM.generate_each, []

    def interrupted(*arguments: Any, **options: Any) -> Iterator[Any]:
        skipped.append(options["skip"])
        for i, completion in enumerate(each(*arguments, **options)):
            if len(skipped) == 1 and i == 3:
                raise KeyboardInterrupt
            yield completion

    monkeypatch.setattr(LM, "generate_each", interrupted)
    assert generate(source, *OPTIONS, "--batch", "2") == 130
    assert not source.with_name("out.jsonl").exists()
    partial = source.with_name("out.jsonl.partial")
    if cut:
        partial.write_bytes(partial.read_bytes()[:-cut])
    assert generate(source, *OPTIONS, "--batch", "1") == 0
    assert results(source) == whole
    assert [len(indices) for indices in skipped] == [0, 2 if cut else 3]
    assert f"of {len(PROMPTS)} prompts are in" in capsys.readouterr().err


def test_a_partial_file_of_another_run_is_refused(source: Path, capsys: pytest.CaptureFixture[str]) -> None:
    partial = source.with_name("out.jsonl.partial")
    partial.write_text(json.dumps({"input": "0"}) + "\n", "utf-8")
    assert generate(source, *OPTIONS) == 2
    message = capsys.readouterr().err
    assert "expected the same run" in message
    assert "remove that file to begin again" in message
    for damaged in ("[]\n", "nonsense\n"):
        partial.write_text(damaged, "utf-8")
        assert generate(source, *OPTIONS) == 2


def test_other_options_than_those_of_the_partial_file_are_named(
    source: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def one(*_: Any, **__: Any) -> Iterator[Any]:
        yield Completion(0, ["x"], [1])
        raise KeyboardInterrupt

    monkeypatch.setattr(LM, "generate_each", one)
    assert generate(source, *OPTIONS) == 130
    assert generate(source, *OPTIONS, "--top-k", "3") == 2
    assert "top_k null there and 3 here" in capsys.readouterr().err


def test_a_run_without_a_result_leaves_no_file(source: Path) -> None:
    assert generate(source, *OPTIONS, "--min-p", "7") == 2
    assert [path.name for path in source.parent.iterdir()] == [source.name]


def test_lines_of_text_are_prompts(tmp_path: Path) -> None:
    path = tmp_path / "prompts.txt"
    path.write_bytes(b"\xef\xbb\xbfEveryone\r\n\r\nNo one")
    assert generate(path, "-n", "2", "--backend", "numpy") == 0
    assert [line["prompt"] for line in results(path)] == ["Everyone", "No one"]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("prompts.csv", "a", "ends in .jsonl or .txt"),
        ("prompts.jsonl", "\n", "which has none"),
        ("prompts.jsonl", '"a"\n{"text": 1}', "line 2: expected a text, or an object with"),
        ("prompts.jsonl", '{"question": "a", "answer": "b"}', "the keys question, answer"),
        ("prompts.jsonl", '{"prompt": "a", "text": "b"}', "the keys prompt, text"),
        ("prompts.jsonl", "[1]", "got list"),
        ("prompts.jsonl", "{", "invalid JSON"),
        ("prompts.jsonl", '"a"\n"\\ud800"', "line 2: expected valid Unicode"),
        ("prompts.txt", "\udc80", "line 1: invalid start byte"),
    ],
)
def test_files_without_prompts_are_refused(
    tmp_path: Path, name: str, content: str, message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / name
    path.write_bytes(content.encode("utf-8", "surrogateescape"))
    assert generate(path) == 2
    assert message in capsys.readouterr().err


def test_an_output_in_use_needs_force(source: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source.with_name("out.jsonl").write_text("precious", "utf-8")
    assert generate(source, *OPTIONS) == 2
    assert "--force replaces it" in capsys.readouterr().err
    assert source.with_name("out.jsonl").read_text("utf-8") == "precious"
    assert generate(source, *OPTIONS, "--force") == 0
    assert len(results(source)) == len(PROMPTS)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((), "prompt: expected a text, - to read standard input, or --input FILE"),
        (("x", "--input", "a.txt"), "prompt: expected none with --input"),
        (("--input", "a.txt"), "--output: expected a file as well, with --input"),
        (("x", "--output", "a.txt"), "--input: expected a file as well, with --output"),
        (("--input", "missing.txt", "--output", "b.jsonl"), "missing.txt"),
    ],
)
def test_arguments_that_do_not_fit_are_refused(
    arguments: tuple[str, ...], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["generate", *arguments]) == 2
    assert message in capsys.readouterr().err


def test_several_results_of_one_prompt(capsys: pytest.CaptureFixture[str]) -> None:
    options = ("Everyone", "-n", "3", "--num-beams", "3", "--num-return-sequences", "2", "--backend", "numpy")
    assert run(["generate", *options, "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    expected = LM.generate("Everyone", max_new_tokens=3, num_beams=3, num_return_sequences=2)
    assert ["Everyone" + text for text in report["continuations"]] == expected
    assert run(["generate", *options]) == 0
    assert capsys.readouterr().out == "\n\n".join(expected) + "\n"


# --- names of other tools ------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("option", "here"),
    [
        ("--max-tokens", "--max-new-tokens"),
        ("--max_tokens", "--max-new-tokens"),
        ("--top_k", "--top-k"),
        ("--stop-sequence", "--stop"),
        ("--n", "--num-return-sequences"),
        ("--repeat-penalty", "--repetition-penalty"),
    ],
)
def test_an_option_of_another_tool_names_the_one_of_here(
    option: str, here: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["generate", "x", option, "5"]) == 2
    assert f"No such option: {option}; here it is {here}" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [(["presets", "--json=x"], "does not take a value"), (["generate", "x", "-n"], "requires an argument")],
)
def test_an_option_with_too_much_or_too_little_is_not_called_unknown(
    arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(arguments) == 2
    assert message in capsys.readouterr().err


def test_an_option_that_no_tool_has_is_answered_as_before(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["generate", "x", "--top-kk", "5"]) == 2
    assert "Possible options: --" in capsys.readouterr().err
    assert hint_of("--past-key-values", {"seed": "--seed"}) is None
