"""Ask an implementation the test vectors, judge its answers, and count the outcomes."""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from bloomref.conformance.checks.outcome import Failure, conclude
from bloomref.conformance.checks.rerun import verdict
from bloomref.conformance.oracle.budgets import Judgement
from bloomref.conformance.run.counts import Counts
from bloomref.conformance.run.waivers import Waivers
from bloomref.conformance.subject import PROBE, NotAsked, Raised, Subject
from bloomref.conformance.vectors import questions
from bloomref.conformance.vectors.judge import judge
from bloomref.conformance.vectors.read import Vector, locate, read
from bloomref.errors import BadWeights, Unsupported, describe
from bloomref.shapes import Array

NAME = "vectors"
"""Name of the vectors in reports and waivers, in place of the name of a property."""


@dataclass(eq=False)
class VectorFailure(Failure):
    """A vector that an implementation fails.

    Args:
        others: ids of the other vectors of the topic that it fails.
    """

    others: tuple[str, ...] = ()

    def __str__(self) -> str:
        text = f"{self.name}: {self.says} ({', '.join(self.clauses)}, {self.dtype})\n  {self.judgement.explanation}"
        return "\n  and ".join([text, *self.others])


def check(subject: Subject, vector: Vector) -> float:
    """Return the largest Z of one vector.

    Raises:
        VectorFailure: an answer is wrong; Inconclusive: no number can be judged; Unsupported: it cannot be asked.
    """
    look = _refusal if vector.entry["expect"] == "invalid" else _answer
    return conclude(lambda: look(subject, vector), lambda judgement: _failure(subject, vector, judgement))


def _failure(subject: Subject, vector: Vector, judgement: Judgement) -> VectorFailure:
    entry = vector.entry
    has_case = "model" in entry and vector.topic != "weights" and entry["expect"] != "invalid"
    case = vector.case if has_case else PROBE  # a refused input is not run again
    return VectorFailure(vector.id, entry["comment"], tuple(entry["clauses"]), subject.dtype, case, judgement)


def ask(subject: Subject, vector: Vector, waivers: Waivers, counts: Counts) -> Failure | None:
    """Ask one vector and count the outcome; return the failure, unless a waiver covers it."""
    return counts.record(lambda: check(subject, vector), _covering(subject, vector, waivers))


def ask_all(subject: Subject, topic: str, waivers: Waivers, counts: Counts, folder: Path | None = None) -> None:
    """Ask every vector of a topic and count the outcomes.

    Raises:
        VectorFailure: for the first vector that fails; it names the others.
    """
    failures = failures_of(subject, topic, waivers, counts, folder)
    if failures:
        failures[0].others = tuple(failure.name for failure in failures[1:])
        raise failures[0]


def failures_of(
    subject: Subject, topic: str, waivers: Waivers, counts: Counts, folder: Path | None = None
) -> list[VectorFailure]:
    """Ask every vector of a topic, count the outcomes, and return the failures that no waiver covers.

    If the installation has no vectors, that reason is counted.
    """
    try:
        vectors = [vector for vector in read(locate(folder)) if vector.topic == topic]
    except Unsupported as error:
        counts.record_not_asked(NotAsked(str(error), bounds=False))
        return []
    return [f for vector in vectors if isinstance(f := ask(subject, vector, waivers, counts), VectorFailure)]


def _covering(subject: Subject, vector: Vector, waivers: Waivers) -> list[str]:
    """Waivers that match the vector by its id, or the property that asks the same of random cases."""
    names, case = [NAME, f"{NAME}/{vector.id}"], PROBE
    if vector.entry["ask"] in PROPERTY:
        names.append(PROPERTY[vector.entry["ask"]](vector))
        case = vector.case
    return list(dict.fromkeys(each for name in names for each in waivers.covering(name, subject.dtype, case)))


def _property_of_call(vector: Vector) -> str:
    if vector.entry["expect"] == "invalid":
        return "refusals"
    if "output" in vector.entry:
        return "empty"
    return "masks" if vector.arguments["token_dtype"] == "int64" else "id-dtypes"


PROPERTY: dict[str, Callable[[Vector], str]] = {
    "logits": lambda _: "logits",
    "in_pieces": lambda vector: "lora" if "adapter" in vector.entry else "pieces",
    "adapter": lambda _: "lora",
    "call": _property_of_call,
    "loss_and_gradients": lambda _: "gradients",
}
"""Question that any implementation may be asked -> the property that asks the same of random cases."""

# --- judging ----------------------------------------------------------------------------------------------------------


def _answer(subject: Subject, vector: Vector) -> Iterator[Judgement]:
    question = vector.entry["ask"]
    if "answers" in vector.entry:
        yield from _best(subject, vector, questions.tensors(subject, vector))
    elif question == "call":
        shape, expected = questions.tensors(subject, vector)["logits"].shape, tuple(vector.entry["output"]["shape"])
        yield verdict(shape == expected, f"expected logits of shape {expected}, got {shape}")
    else:
        yield _exact(subject, vector)


def _best(subject: Subject, vector: Vector, outputs: Mapping[str, Array]) -> list[Judgement]:
    """Judge by the first answer that the outputs pass, or else by the specification's, which is the first."""
    if subject.tier.stored not in vector.tiers:
        raise BadWeights(
            describe(f"{vector.topic}: {vector.id}: tiers", f"a list with {subject.tier.stored}", list(vector.tiers))
        )
    tier = vector.tiers.index(subject.tier.stored)
    by_answer = [judge(outputs, tensors, tier, vector.inputs[1]) for _, tensors in vector.answers()]
    return next((each for each in by_answer if all(judgement.verdict != "fail" for judgement in each)), by_answer[0])


def _exact(subject: Subject, vector: Vector) -> Judgement:
    expected = dict(vector.entry["output"])
    certain = expected.pop("certain_in", [subject.tier.stored])
    output = questions.exact(subject, vector)
    if subject.tier.stored not in certain:
        return Judgement(vector.id, "inconclusive", 0.0, (0, 0), "rounding may change the choice")
    return verdict(output == expected, f"expected {expected}, got {output}")


def _refusal(subject: Subject, vector: Vector) -> Iterator[Judgement]:
    """Ask what must be refused: with the class that the vector names by an implementation that declares
    `error_classes`, by any exception elsewhere. Unsupported in place of another class says nothing there."""
    expected, by_class = vector.entry["error"], getattr(subject.implementation, "error_classes", False)
    questions.prepare(subject, vector)
    try:
        questions.refusable(subject, vector)
    except Unsupported:
        if expected != "Unsupported" and not by_class:
            raise
        yield verdict(expected == "Unsupported", f"expected {expected}, got Unsupported")
    except Raised as error:
        raised = type(error.__cause__).__name__
        yield verdict(raised == expected or not by_class, f"expected {expected}, got {raised}")
    else:
        yield verdict(False, f"expected {expected}, got a result")
