"""Bugs planted in a program: what is printed leads to the first wrong intermediate, the clause and the mistake."""

import re
import shlex
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest

from bloomref.cli import app
from bloomref.conformance.adapters.program import Program
from bloomref.conformance.cases import Case
from bloomref.conformance.checks.outcome import Failure
from bloomref.conformance.diff.cause import cause
from bloomref.conformance.fixed_cases import FIXED_CASES
from bloomref.conformance.mistakes import MISTAKES
from bloomref.conformance.properties import PROPERTIES
from bloomref.conformance.subject import Subject
from tests.support import planted_program

FILE = Path(planted_program.__file__)
LINES = 30
"""Lines of failure text in which the cause must be."""


@dataclass(frozen=True)
class Lead:
    """The words that lead to a planted bug.

    Args:
        property: the property that shows it.
        words: parts of the text.
        mistake: name of the known mistake, if there is one.
    """

    property: str
    words: tuple[str, ...]
    mistake: str = ""


LEADS = {
    "cache-stride": Lead(
        "cache",
        ("only over a cache with room for", "first wrong intermediate: layers.0.attention.", "KVC-1"),
        "cache-stride",
    ),
    "maximum-over-hidden": Lead(
        "logits",
        ("first wrong intermediate: layers.", "attention.probabilities", "not finite", "(ATT-6, ATT-5, ATT-7)"),
        "max-over-hidden",
    ),
    "rank-pattern": Lead(
        "lora",
        ("first wrong intermediate: ", "LRA-12", "without the adapter the model is right"),
        "lora-rank-pattern-ignored",
    ),
    "tied-gradient": Lead(
        "gradients",
        (
            "first wrong gradient, from the loss backwards: transformer.word_embeddings.weight",
            "(GRD-4, GRD-3)",
            "it is the part of the lookup alone",
        ),
        "tied-gradient",
    ),
    "aliased-trace": Lead(
        "intermediates",
        (
            "embedding_norm",
            "the recording changes after it was made (aliased memory?)",
            "holds the numbers of",
            "MOD-8",
        ),
    ),
}


def command(plant: str) -> str:
    return f"{shlex.quote(sys.executable)} {shlex.quote(str(FILE))} --plant {plant}"


def test_every_plant_has_its_lead():
    assert {"none", *LEADS} == planted_program.PLANTS.keys()


@pytest.mark.slow
@pytest.mark.parametrize("plant", LEADS)
def test_what_conform_prints_leads_to_the_cause(plant, capfd):
    name, lead = LEADS[plant].property, LEADS[plant]
    assert (
        app.run(["conform", "--program", command(plant), "--dtype", "float32", "--examples", "5", "--only", name]) == 1
    )
    text = capfd.readouterr().out
    begin = text.index(f"\n{name}: ")
    shown = "\n".join(text[begin:].splitlines()[: LINES + 1])
    for word in lead.words:
        assert word in shown, shown
    if lead.mistake in {known.name for known in MISTAKES}:
        assert re.search(rf"(it matches|the same effect on this input:).*\b{lead.mistake}\b", shown), shown
    assert "repeat: bloomref diff 'program:" in shown


@pytest.mark.slow
def test_the_printed_command_shows_the_same(capsys):
    program = Program(command("maximum-over-hidden"))
    case = next(case for case in FIXED_CASES if case.name == "sharp attention")
    with pytest.raises(Failure) as caught:
        PROPERTIES["logits"].check(Subject(program, "float32"), case)
    *lines, repeat = cause(Subject(program, "float32"), caught.value)
    program.close()
    words = shlex.split(repeat.removeprefix("repeat: bloomref "))
    assert app.run(words) == 1
    first = lines[0].removeprefix("first wrong intermediate: ").partition(",")[0]
    assert f"differ first at {first}" in " ".join(capsys.readouterr().out.split())


@pytest.mark.slow
@pytest.mark.parametrize("name", ["trace-pieces", "lora", "gradients", "refusals"])
def test_without_a_plant_it_is_right(name):
    program = Program(command("none"))
    case: Case = next(case for case in FIXED_CASES if case.name == ("LoRA over a cache" if name == "lora" else "plain"))
    PROPERTIES[name].check(Subject(program, "float32"), case)
    program.close()
