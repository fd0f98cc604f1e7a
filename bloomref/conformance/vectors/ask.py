"""Ask an implementation the test vectors.

Any implementation is asked what the methods of `implementation.Model` can answer.
Vectors about files, configs and the choice
of tokens are asked of bloomref only: the kit has no method for them.
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from bloomref.backbone import BloomBackbone
from bloomref.causal_lm import BloomCausalLM
from bloomref.conformance.adapters.installed_backend import Backend
from bloomref.conformance.checks.outcome import Failure, NotAsked, conclude
from bloomref.conformance.checks.rerun import verdict
from bloomref.conformance.oracle.budgets import Judgement
from bloomref.conformance.run.results import Counts
from bloomref.conformance.run.waivers import Waivers
from bloomref.conformance.subject import PROBE, Raised, Subject
from bloomref.conformance.vectors import exact_answers
from bloomref.conformance.vectors.judge import judge
from bloomref.conformance.vectors.read import Vector, locate, read
from bloomref.errors import Unsupported
from bloomref.shapes import Array

NAME = "vectors"
"""Name of the vectors in reports and waivers, in place of the name of a property."""
Outputs = Mapping[str, Array]
"""Output tensors by name."""


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
    case = vector.case if "model" in entry and vector.topic != "weights" else PROBE
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
    """Waivers that match the vector, or the property that asks the same of random cases."""
    if vector.entry["ask"] not in PROPERTY:
        return []
    names = (NAME, PROPERTY[vector.entry["ask"]](vector))
    return list(dict.fromkeys(each for name in names for each in waivers.covering(name, subject.dtype, vector.case)))


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


# --- questions to any implementation ----------------------------------------------------------------------------------


def _answer(subject: Subject, vector: Vector) -> Iterator[Judgement]:
    question = vector.entry["ask"]
    if question in OWN:
        yield from _own(subject, vector)
        return
    reason = subject.missing(vector.case)
    if reason is None and "adapter" in vector.entry and not subject.offers(PROBE, "adapted"):
        reason = f"{subject.implementation.name} has no method adapted"
    if reason is not None:
        raise NotAsked(reason, bounds=not subject.is_inexact(vector.case))
    if question == "call" and "output" in vector.entry:
        shape = _call(subject, vector)["logits"].shape
        expected = tuple(vector.entry["output"]["shape"])
        yield verdict(shape == expected, f"expected logits of shape {expected}, got {shape}")
        return
    yield from _best(subject, vector, OUTPUTS[question](subject, vector))


def _best(subject: Subject, vector: Vector, outputs: Outputs) -> list[Judgement]:
    """Judge by the first answer that the outputs pass, or else by the specification's, which is the first."""
    tier = vector.tiers.index(subject.tier.stored)
    by_answer = [judge(outputs, tensors, tier, vector.inputs[1]) for _, tensors in vector.answers()]
    return next((each for each in by_answer if all(judgement.verdict != "fail" for judgement in each)), by_answer[0])


def _logits(subject: Subject, vector: Vector) -> Outputs:
    """Ask for the logits, and for the other expected tensors if the implementation shows them."""
    case, [(_, expected), *_] = vector.case, vector.answers()
    outputs: dict[str, Array] = {"logits": np.asarray(subject.ask(case, "logits", case.token_ids, case.is_real))}
    if "final_norm" in expected and subject.offers(case, "hidden"):
        outputs["final_norm"] = np.asarray(subject.ask(case, "hidden", case.token_ids, case.is_real))
    if expected.keys() - outputs.keys() and subject.offers(case, "trace"):
        trace = subject.ask(case, "trace", case.token_ids, case.is_real)
        outputs = {name: np.asarray(value) for name, value in trace.items()} | outputs
    return outputs


def _in_pieces(subject: Subject, vector: Vector) -> Outputs:
    _need(subject, vector, "in_pieces")
    case, capacity = vector.case, vector.arguments["capacity"]
    return {"logits": np.asarray(subject.ask(case, "in_pieces", case.token_ids, case.is_real, case.cuts, capacity))}


def _call(subject: Subject, vector: Vector) -> Outputs:
    """Call the public API with arrays of the dtypes that the vector names."""
    _need(subject, vector, "call")
    arguments = vector.arguments
    shape = arguments.get("token_shape", np.shape(arguments["token_ids"]))
    ids = np.array(arguments["token_ids"], arguments["token_dtype"]).reshape(shape)
    mask = np.array(arguments["padding_mask"], arguments["mask_dtype"]) if "padding_mask" in arguments else None
    return {"logits": np.asarray(subject.ask(vector.case, "call", ids, mask))}


def _loss(subject: Subject, vector: Vector) -> Outputs:
    _need(subject, vector, "loss_and_gradients")
    able = subject.implementation.capabilities
    if subject.dtype not in able.trains_in:
        raise NotAsked(f"{subject.implementation.name} declares no gradients in {subject.dtype}")
    token_ids, mask, labels = (np.array(vector.arguments[name]) for name in ("token_ids", "padding_mask", "labels"))
    loss, gradients = subject.ask(vector.case, "loss_and_gradients", token_ids, mask.astype(bool), labels)
    outputs = {"loss": np.asarray(loss)} | {name: np.asarray(value) for name, value in gradients.items()}
    [(_, expected)] = vector.answers()
    absent = [name for name in expected if name not in outputs]
    if absent:
        raise Raised(f"no gradient of {', '.join(absent[:3])}")
    return outputs


def _need(subject: Subject, vector: Vector, method: str) -> None:
    if not subject.offers(vector.case, method):
        raise NotAsked(f"{subject.implementation.name} has no method {method}")


OUTPUTS: dict[str, Callable[[Subject, Vector], Outputs]] = {
    "logits": _logits,
    "adapter": _logits,
    "in_pieces": _in_pieces,
    "call": _call,
    "loss_and_gradients": _loss,
}


def _refusal(subject: Subject, vector: Vector) -> Iterator[Judgement]:
    """Ask what must be refused.

    bloomref must raise the class that the vector names; any exception will do elsewhere.
    """
    question, expected = vector.entry["ask"], vector.entry["error"]
    try:
        if question == "call":
            _call(subject, vector)
        else:
            _own_output(subject, vector)
    except Raised as error:
        raised = type(error.__cause__).__name__
        right = raised == expected or not isinstance(subject.implementation, Backend)
        yield verdict(right, f"expected {expected}, got {raised}")
    else:
        yield verdict(False, f"expected {expected}, got a result")


# --- questions to bloomref only ---------------------------------------------------------------------------------------


def _own(subject: Subject, vector: Vector) -> Iterator[Judgement]:
    output = _own_output(subject, vector)
    if "output" not in vector.entry:
        yield from _best(subject, vector, output)
        return
    expected = dict(vector.entry["output"])
    certain = expected.pop("certain_in", [subject.tier.stored])
    if subject.tier.stored not in certain:
        yield Judgement(vector.id, "inconclusive", 0.0, (0, 0), "rounding may change the choice")
    else:
        yield verdict(dict(output) == expected, f"expected {expected}, got {output}")


def _own_output(subject: Subject, vector: Vector) -> Any:
    if not isinstance(subject.implementation, Backend):
        raise NotAsked(f"vectors that ask {vector.entry['ask']!r} are for bloomref only", bounds=False)
    try:
        question = vector.entry["ask"]
        return (OWN if question in OWN else REFUSING)[question](subject, vector)
    except Exception as error:
        raise Raised(f"bloomref raised {type(error).__name__}: {error}") from error


def _backbone(subject: Subject, vector: Vector) -> BloomBackbone:
    path = vector.path("model")
    return BloomBackbone.from_preset(path, dtype=subject.dtype, backend=subject.implementation.name)


def _own_logits(backbone: BloomBackbone, vector: Vector) -> Outputs:
    batch = {
        name: np.array(vector.arguments[name]) for name in ("token_ids", "padding_mask") if name in vector.arguments
    }
    hidden = backbone(batch)
    return {"final_norm": hidden, "logits": backbone.engine.logits(hidden)}


def _load_adapter(subject: Subject, vector: Vector) -> None:
    _backbone(subject, vector).load_adapter(vector.path("adapter"))


def _loss_of_labels(subject: Subject, vector: Vector) -> None:
    BloomCausalLM(_backbone(subject, vector)).loss_and_gradients(vector.arguments)


OWN: dict[str, Callable[[Subject, Vector], Any]] = {
    "config": lambda _, vector: exact_answers.read_config(vector.arguments),
    "slopes": lambda _, vector: exact_answers.read_slopes(vector.arguments),
    "choose": lambda _, vector: exact_answers.choose(vector.arguments),
    "round": lambda _, vector: exact_answers.round_to(vector.arguments),
    "policy": lambda _, vector: exact_answers.policy(vector.arguments),
    "generate": lambda subject, vector: exact_answers.generate(
        BloomCausalLM(_backbone(subject, vector)), vector.arguments
    ),
    "load": lambda subject, vector: _own_logits(_backbone(subject, vector), vector),
}
"""Questions that only bloomref is asked -> its answer."""
REFUSING: dict[str, Callable[[Subject, Vector], None]] = {
    "adapter": _load_adapter,
    "loss_and_gradients": _loss_of_labels,
}
"""Questions that bloomref's public API must refuse; the kit's methods take valid input only."""
