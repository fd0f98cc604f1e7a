"""Surface: every option and argument of every command, with hostile values, in this process."""

import os
import shutil
from pathlib import Path
from typing import Any

from numpy.random import Generator

from bloomref import BloomForSequenceClassification
from tools.faults.damage import pick
from tools.faults.talking_model import write_talker
from tools.faults.trials import Surface, Trial, command

VALUES = (
    *(
        "",
        " ",
        "-",
        "--",
        "-1",
        "0",
        "1",
        "2",
        "1.5",
        "1e3",
        "1e400",
        "-0.0",
        "nan",
        "inf",
        "-inf",
        "007",
        "0x10",
        "１",
    ),
    *(
        "2147483647",
        "2147483648",
        "9223372036854775808",
        "1" * 400,
        "9" * 5000,
        "1_000",
        "1,2",
        "1 2",
        ",",
        ",,",
        "a,b",
    ),
    *("x", "x" * 300, "x" * 100_000, "a\nb", "a\rb", "\x1b[2J", "\u202eabc", "\udc80", "é", "意", "\ufeff", "%s", "{}"),
    *("[/x]", "[bold]", "*", "?", "[", "(.|.)*", "**", ".", "..", "../x", "missing/deep/x", "~nosuchuser/x", "$HOME"),
    *("None", "null", "true", "auto", "float32", "float99", "int8", "numpy", "cupy", "nosuch", "oracle", "program:"),
    *("program:'", "program:false", "module:x", "mistake:x", "hf://", "hf://a/b", "hf://../..", "kaggle://a", "s3://x"),
    *("bloom_560m_multi", "{{", "{{ 1/0 }}", "[]", "{}", '{"a": 1}', "[[1,2]]", "data.txt", "model", "-h", "--json"),
)
"""Texts without devices and absolute paths: a command may write to what it is called with."""
_UNBOUNDED = {"jobs", "examples", "steps", "epochs"}
"""Options that may ask for any amount of work: no large numbers are tried."""
_COMMANDS: dict[str, list[str]] = {
    "generate": ["Everyone", "-m", "model", "--max-new-tokens", "2"],
    "score": ["Everyone has", "-m", "model"],
    "classify": ["Everyone", "-m", "classifier"],
    "finetune": ["data.txt", "-o", "out", "-m", "model", "--steps", "1", "--context", "16"],
    "presets": [],
    "backends": [],
    "info": ["model"],
    "trace": ["Everyone", "-o", "trace.safetensors", "-m", "model"],
    "diff": ["numpy", "oracle", "--layers", "1", "--heads", "2", "--rows", "1", "--time", "4"],
    "download": ["model"],
    "convert": ["model", "out"],
    "conform": ["--backend", "numpy", "--dtype", "float32", "--examples", "1", "--only", "hole"],
    "vectors": ["--backend", "numpy", "--dtype", "float32", "--timeout", "5"],
}
"""Command -> arguments with which it succeeds, in a folder with a model, a classifier and a text."""


def _write(folder: Path) -> None:
    write_talker(folder / "model")
    classifier = BloomForSequenceClassification.from_preset(folder / "model", num_labels=2)
    classifier.save_to_preset(folder / "classifier")
    (folder / "data.txt").write_text("Everyone has the right to education.\n", "utf-8")
    command(
        ["generate", "Everyone", "-m", str(folder / "model"), "--max-new-tokens", "2"]
    )  # compiles, which is no hang


def _parameters(name: str) -> list[Any]:
    import typer

    from bloomref.cli.app import app

    group: Any = typer.main.get_command(app)
    return list(group.commands[name].params)


def arguments_of(rng: Generator) -> tuple[list[str], tuple[str, ...]]:
    """A command line with one hostile value, and what its message may name."""
    name = pick(rng, [*_COMMANDS])
    parameter = pick(rng, _parameters(name))
    value = pick(rng, VALUES)
    if parameter.name in _UNBOUNDED and any(digit in value for digit in "23456789e1"):
        value = "x"
    base = list(_COMMANDS[name])
    if parameter.param_type_name == "argument":
        place = [p.name for p in _parameters(name) if p.param_type_name == "argument"].index(parameter.name)
        line = [*base[:place], value, *base[place + 1 :]]
    elif parameter.is_flag:
        line = [*base, parameter.opts[0]] if rng.random() < 0.5 else [*base, f"{parameter.opts[0]}={value}"]
    elif rng.random() < 0.5:
        line = [*base, parameter.opts[0], value]
    else:
        line = [*base, f"{max(parameter.opts, key=len)}={value}"]
    spellings = [parameter.name, parameter.name.replace("_", "-"), *(option.strip("-") for option in parameter.opts)]
    own = [value[:30].strip(), value[:30].encode("unicode_escape").decode()] if value.strip() else []
    if value.startswith("-"):
        own.append(value[:2])  # the parser reads a group of options, and names the first
    if parameter.name in ("model", "source"):
        spellings.append("preset")
    return [name, *line], tuple(word for word in (*spellings, *own) if len(word) > 1 or word == value)


def _trial(base: Path, scratch: Path, rng: Generator) -> Trial:
    shutil.copytree(base, scratch / "deep" / "here")
    line, names = arguments_of(rng)

    def ask() -> str:
        before = Path.cwd()
        os.chdir(scratch / "deep" / "here")
        try:
            return command(line)
        finally:
            os.chdir(before)

    return Trial(" ".join(word[:60] for word in line), ask, names=names)


SURFACES = (Surface("options", "command line, every option", _write, _trial),)
