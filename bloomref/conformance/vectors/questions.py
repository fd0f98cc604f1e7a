"""Ask an implementation each question of the test vectors.

This is done by the methods of its model, by its `answers`, or by `load_folder`; without these, it is not asked.
"""

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import numpy as np

from bloomref.conformance.implementation import QUESTIONS
from bloomref.conformance.subject import NotAsked, Raised, Subject, converted
from bloomref.conformance.vectors.read import Vector
from bloomref.errors import Unsupported
from bloomref.shapes import Array

Tensors = Mapping[str, Array]
"""Output tensors by name."""


def tensors(subject: Subject, vector: Vector) -> Tensors:
    """Ask a question whose answer is tensors.

    Raises:
        NotAsked: the implementation has no method for it, or declares no such feature.
        Unsupported: it refuses; Raised: it raises anything else.
    """
    prepare(subject, vector)
    return TENSORS[vector.entry["ask"]](subject, vector)


def exact(subject: Subject, vector: Vector) -> Any:
    """Ask a question whose answer is JSON.

    Raises:
        NotAsked, Unsupported, Raised: as `tensors`.
    """
    prepare(subject, vector)
    question, arguments = vector.entry["ask"], vector.arguments
    if question == "generate":
        return {"rows": [list(row) for row in subject.ask(vector.case, "generate", *_generation(arguments))]}
    answers: Any = subject.implementation
    with converted():
        return answers.answers[question](arguments)


def _generation(arguments: Mapping[str, Any]) -> tuple[Any, Any, Any]:
    return arguments["prompts"], arguments["max_length"], arguments["stop_token_ids"]


def refusable(subject: Subject, vector: Vector) -> None:
    """Ask a question that must be refused; `prepare` comes first.

    Raises:
        Unsupported, Raised: the refusal.
    """
    question = vector.entry["ask"]
    if question in QUESTIONS:
        exact(subject, vector)
    elif question == "adapter":
        subject.ask(vector.case, "logits", vector.case.token_ids, vector.case.is_real)
    else:
        TENSORS[question](subject, vector)


def prepare(subject: Subject, vector: Vector) -> None:
    """Load the model of a question, without its adapter.

    Raises:
        NotAsked: the implementation has no method for the question, or declares no such feature.
        Unsupported, Raised: it cannot load the model.
    """
    question, name = vector.entry["ask"], subject.implementation.name
    if question in QUESTIONS:
        if question not in getattr(subject.implementation, "answers", {}):
            raise NotAsked(f"{name} does not answer {question!r}", bounds=False)
        return
    if question == "load":
        if not hasattr(subject.implementation, "load_folder"):
            raise NotAsked(f"{name} has no load_folder", bounds=False)
        return
    lacking = subject.missing(vector.case)
    if lacking is not None:
        raise NotAsked(lacking, bounds=not subject.is_inexact(vector.case))
    needed = ["logits" if question == "adapter" else question] + ["adapted"] * ("adapter" in vector.entry)
    bare = replace(vector.case, lora=None)
    for method in needed:
        if not subject.offers(bare, method):
            raise NotAsked(f"{name} has no method {method}", bounds=method != "generate")


def _logits(subject: Subject, vector: Vector) -> Tensors:
    """Ask for the logits, and for the other expected tensors if the implementation shows them.

    A program that is not finished may show intermediates and refuse the logits.
    """
    case, [(_, expected), *_] = vector.case, vector.answers()
    refusal, outputs = None, {}
    try:
        outputs["logits"] = np.asarray(subject.ask(case, "logits", case.token_ids, case.is_real))
    except Unsupported as error:
        refusal = error
    if "final_norm" in expected and refusal is None and subject.offers(case, "hidden"):
        outputs["final_norm"] = np.asarray(subject.ask(case, "hidden", case.token_ids, case.is_real))
    if expected.keys() - outputs.keys() and subject.offers(case, "trace"):
        trace = subject.ask(case, "trace", case.token_ids, case.is_real)
        outputs = {name: np.asarray(value) for name, value in trace.items()} | outputs
    if refusal is not None and not expected.keys() & outputs.keys():
        raise refusal
    return outputs


def _in_pieces(subject: Subject, vector: Vector) -> Tensors:
    case, capacity = vector.case, vector.arguments["capacity"]
    return {"logits": np.asarray(subject.ask(case, "in_pieces", case.token_ids, case.is_real, case.cuts, capacity))}


def _call(subject: Subject, vector: Vector) -> Tensors:
    """Call the public API with arrays of the dtypes that the vector names."""
    arguments = vector.arguments
    shape = arguments.get("token_shape", np.shape(arguments["token_ids"]))
    ids = np.array(arguments["token_ids"], arguments["token_dtype"]).reshape(shape)
    mask = np.array(arguments["padding_mask"], arguments["mask_dtype"]) if "padding_mask" in arguments else None
    return {"logits": np.asarray(subject.ask(vector.case, "call", ids, mask))}


def _loss(subject: Subject, vector: Vector) -> Tensors:
    able, name = subject.implementation.capabilities, subject.implementation.name
    if subject.dtype not in able.trains_in:
        raise NotAsked(f"{name} declares no gradients in {subject.dtype}")
    token_ids, mask, labels = (np.array(vector.arguments[key]) for key in ("token_ids", "padding_mask", "labels"))
    loss, gradients = subject.ask(vector.case, "loss_and_gradients", token_ids, mask.astype(bool), labels)
    outputs = {"loss": np.asarray(loss)} | {key: np.asarray(value) for key, value in gradients.items()}
    expected = next((set(answer) for _, answer in vector.answers()), set())
    absent = sorted(expected - outputs.keys())
    if absent:
        raise Raised(f"gradients: expected {_some(absent)}, got {_some(sorted(gradients)) or 'none'} (GRD-4)")
    return outputs


def _some(names: list[str]) -> str:
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")


def _load(subject: Subject, vector: Vector) -> Tensors:
    """Load a model folder, and ask for its hidden states and logits."""
    implementation: Any = subject.implementation
    ids, is_real = vector.inputs
    with converted():
        model = implementation.load_folder(vector.path("model"), subject.dtype)
        outputs = {"logits": np.asarray(model.logits(ids, is_real))}
        if hasattr(model, "hidden"):
            outputs["final_norm"] = np.asarray(model.hidden(ids, is_real))
    return outputs


TENSORS: dict[str, Callable[[Subject, Vector], Tensors]] = {
    "logits": _logits,
    "adapter": _logits,
    "in_pieces": _in_pieces,
    "call": _call,
    "loss_and_gradients": _loss,
    "load": _load,
}
"""Question -> the function that asks it."""
