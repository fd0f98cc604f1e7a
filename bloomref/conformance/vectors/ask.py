"""Asks an implementation the vectors. Any adapter is asked what `implementation.Model` can answer; files, configs and choices of tokens
are asked of bloomref alone, since the kit's adapters have no such question."""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from bloomref.backbone import BloomBackbone
from bloomref.causal_lm import BloomCausalLM
from bloomref.conformance.adapters.installed_backend import Backend
from bloomref.conformance.checks.gradients import ONLY, UNITS
from bloomref.conformance.checks.outcome import Failure, conclude
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
"""In the place of a property, in reports and waivers."""
Outputs = Mapping[str, Array]


@dataclass(eq=False)
class VectorFailure(Failure):
    """A vector that does not hold.

    Args:
        others: the ids of those of the topic that do not hold either.
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
    """Every vector of a topic. Where there are none, the counts says so.

    Raises:
        VectorFailure: the first one; it names the others.
    """
    try:
        vectors = [vector for vector in read(locate(folder)) if vector.topic == topic]
    except Unsupported as error:
        counts.add_reason(str(error))
        return
    failures = [f for vector in vectors if isinstance(f := ask(subject, vector, waivers, counts), VectorFailure)]
    if failures:
        failures[0].others = tuple(failure.name for failure in failures[1:])
        raise failures[0]


def _covering(subject: Subject, vector: Vector, waivers: Waivers) -> list[str]:
    """The waivers for `vectors`, and for the property that asks the same of drawn cases."""
    if vector.entry["ask"] not in PROPERTY:
        return []
    names = (NAME, PROPERTY[vector.entry["ask"]](vector))
    found = [each for name in names for each in waivers.covering(name, subject.dtype, vector.case)]
    return list(dict.fromkeys(found))


def _of_call(vector: Vector) -> str:
    if vector.entry["expect"] == "invalid":
        return "refusals"
    if "output" in vector.entry:
        return "empty"
    return "masks" if vector.given["token_dtype"] == "int64" else "id-dtypes"


PROPERTY: dict[str, Callable[[Vector], str]] = {
    "logits": lambda _: "logits",
    "in_pieces": lambda vector: "lora" if "adapter" in vector.entry else "pieces",
    "adapter": lambda _: "lora",
    "call": _of_call,
    "loss_and_gradients": lambda _: "gradients",
}


# --- what any implementation is asked --------------------------------------------------------------------------------


def _answer(subject: Subject, vector: Vector) -> Iterator[Judgement]:
    question = vector.entry["ask"]
    if question in OWN:
        yield from _own(subject, vector)
        return
    reason = subject.missing(vector.case)
    if reason is None and "adapter" in vector.entry and not subject.offers(PROBE, "adapted"):
        reason = f"{subject.implementation.name} has no method adapted"
    if reason is not None:
        raise Unsupported(reason)
    if question == "call" and "output" in vector.entry:
        shape = _call(subject, vector)["logits"].shape
        wanted = tuple(vector.entry["output"]["shape"])
        yield verdict(shape == wanted, f"expected logits of shape {wanted}, got {shape}")
        return
    yield from _best(subject, vector, OUTPUTS[question](subject, vector))


def _best(subject: Subject, vector: Vector, got: Outputs) -> list[Judgement]:
    """The judgements by the first answer that fits, or by the specification's."""
    tier, all_found = vector.tiers.index(subject.tier.name), []
    for _, tensors in vector.answers():
        all_found.append(judge(got, tensors, tier, vector.inputs[1]))
        if not any(found.verdict == "fail" for found in all_found[-1]):
            return all_found[-1]
    return all_found[0]


def _logits(subject: Subject, vector: Vector) -> Outputs:
    """As much as the implementation shows of what is expected."""
    case, [(_, expected), *_] = vector.case, vector.answers()
    found: dict[str, Array] = {"logits": np.asarray(subject.ask(case, "logits", case.token_ids, case.is_real))}
    if "final_norm" in expected and subject.offers(case, "hidden"):
        found["final_norm"] = np.asarray(subject.ask(case, "hidden", case.token_ids, case.is_real))
    if expected.keys() - found.keys() and subject.offers(case, "trace"):
        seen = subject.ask(case, "trace", case.token_ids, case.is_real)
        found = {name: np.asarray(value) for name, value in seen.items()} | found
    return found


def _in_pieces(subject: Subject, vector: Vector) -> Outputs:
    _need(subject, vector, "in_pieces")
    case, capacity = vector.case, vector.given["capacity"]
    return {"logits": np.asarray(subject.ask(case, "in_pieces", case.token_ids, case.is_real, case.cuts, capacity))}


def _call(subject: Subject, vector: Vector) -> Outputs:
    """Through the front door, in the dtypes that the vector tells."""
    _need(subject, vector, "call")
    given = vector.given
    ids = np.array(given["token_ids"], given["token_dtype"]).reshape(
        given.get("token_shape", np.shape(given["token_ids"]))
    )
    mask = np.array(given["padding_mask"], given["mask_dtype"]) if "padding_mask" in given else None
    return {"logits": np.asarray(subject.ask(vector.case, "call", ids, mask))}


def _loss(subject: Subject, vector: Vector) -> Outputs:
    _need(subject, vector, "loss_and_gradients")
    if subject.dtype not in UNITS:
        raise Unsupported(ONLY)
    given = {name: np.array(vector.given[name]) for name in ("token_ids", "padding_mask", "labels")}
    arguments = given["token_ids"], given["padding_mask"].astype(bool), given["labels"]
    loss, gradients = subject.ask(vector.case, "loss_and_gradients", *arguments)
    found = {"loss": np.asarray(loss)} | {name: np.asarray(value) for name, value in gradients.items()}
    [(_, expected)] = vector.answers()
    absent = [name for name in expected if name not in found]
    if absent:
        raise Raised(f"no gradient of {', '.join(absent[:3])}")
    return found


def _need(subject: Subject, vector: Vector, method: str) -> None:
    if not subject.offers(vector.case, method):
        raise Unsupported(f"{subject.implementation.name} has no method {method}")


OUTPUTS: dict[str, Callable[[Subject, Vector], Outputs]] = {
    "logits": _logits,
    "adapter": _logits,
    "in_pieces": _in_pieces,
    "call": _call,
    "loss_and_gradients": _loss,
}


def _refusal(subject: Subject, vector: Vector) -> Iterator[Judgement]:
    """bloomref refuses with the class that is named; of another implementation any exception will do."""
    question, wanted = vector.entry["ask"], vector.entry["error"]
    try:
        if question == "call":
            _call(subject, vector)
        else:
            _own_output(subject, vector)
    except Raised as error:
        got = type(error.__cause__).__name__
        right = got == wanted or not isinstance(subject.implementation, Backend)
        yield verdict(right, f"expected {wanted}, got {got}")
    else:
        yield verdict(False, f"expected {wanted}, got a result")


# --- what bloomref alone is asked ------------------------------------------------------------------------------------


def _own(subject: Subject, vector: Vector) -> Iterator[Judgement]:
    got = _own_output(subject, vector)
    if "output" not in vector.entry:
        yield from _best(subject, vector, got)
        return
    expected = dict(vector.entry["output"])
    certain = expected.pop("certain_in", [subject.tier.name])
    if subject.tier.name not in certain:
        yield Judgement(vector.id, "inconclusive", 0.0, (0, 0), "rounding may change the choice")
    else:
        yield verdict(dict(got) == expected, f"expected {expected}, got {got}")


def _own_output(subject: Subject, vector: Vector) -> Any:
    if not isinstance(subject.implementation, Backend):
        raise Unsupported(f"what {vector.entry['ask']!r} asks of files and choices, the kit asks of bloomref alone")
    try:
        question = vector.entry["ask"]
        return (OWN if question in OWN else REFUSING)[question](subject, vector)
    except Exception as error:
        raise Raised(f"it raised {type(error).__name__}: {error}") from error


def _backbone(subject: Subject, vector: Vector) -> BloomBackbone:
    path = vector.path("model")
    return BloomBackbone.from_preset(path, dtype=subject.dtype, backend=subject.implementation.name)


def _own_logits(backbone: BloomBackbone, vector: Vector) -> Outputs:
    batch = {name: np.array(vector.given[name]) for name in ("token_ids", "padding_mask") if name in vector.given}
    hidden = backbone(batch)
    return {"final_norm": hidden, "logits": backbone.engine.logits(hidden)}


def _wrong_adapter(subject: Subject, vector: Vector) -> None:
    _backbone(subject, vector).load_adapter(vector.path("adapter"))


def _wrong_labels(subject: Subject, vector: Vector) -> None:
    BloomCausalLM(_backbone(subject, vector)).loss_and_gradients(vector.given)


OWN: dict[str, Callable[[Subject, Vector], Any]] = {
    "config": lambda _, vector: exact_answers.read_config(vector.given),
    "slopes": lambda _, vector: exact_answers.read_slopes(vector.given),
    "choose": lambda _, vector: exact_answers.choose(vector.given),
    "round": lambda _, vector: exact_answers.round_to(vector.given),
    "policy": lambda _, vector: exact_answers.policy(vector.given),
    "generate": lambda subject, vector: exact_answers.generate(BloomCausalLM(_backbone(subject, vector)), vector.given),
    "load": lambda subject, vector: _own_logits(_backbone(subject, vector), vector),
}
REFUSING: dict[str, Callable[[Subject, Vector], None]] = {
    "adapter": _wrong_adapter,
    "loss_and_gradients": _wrong_labels,
}
"""What bloomref's front door must refuse, where the kit hands an adapter right input only."""
