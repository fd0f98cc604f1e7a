"""The loss and its gradients in the order of the backward pass, and the clauses that each can break."""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace

import numpy as np

from bloomref.conformance.cases import Arrays, Case
from bloomref.conformance.checks import gradients
from bloomref.conformance.diff.compare import Difference
from bloomref.conformance.diff.measure import Comparison
from bloomref.conformance.diff.operands import ORACLE, Operand, as_failed, subject_of
from bloomref.conformance.gradient_names import named
from bloomref.conformance.mistakes import MISTAKES, Mistake
from bloomref.conformance.oracle.budgets import LIMIT, MAX_NOISE, Judgement
from bloomref.conformance.oracle.gradient_budgets import SIMULATED, UNITS, exact, rms, spread
from bloomref.conformance.subject import Subject
from bloomref.errors import Unsupported, invalid
from bloomref.params import HF_PREFIX
from bloomref.shapes import Array

OF_PEFT = "base_model.model."
"""Prefix of the names of PEFT's factors."""
EMBEDDING = "word_embeddings.weight"
CLAUSES: dict[str, tuple[str, ...]] = {
    "loss": ("GRD-1", "GRD-2"),
    "lm_head": ("GRD-3", "MOD-5"),
    "ln_f": ("GRD-3", "MOD-4"),
    "mlp": ("GRD-3", "MLP-2", "MLP-3"),
    "post_attention_layernorm": ("GRD-3", "MOD-3"),
    "self_attention": ("GRD-3", "ATT-2", "ATT-9"),
    "input_layernorm": ("GRD-3", "MOD-3"),
    "word_embeddings_layernorm": ("GRD-3", "EMB-5"),
    "word_embeddings": ("GRD-4", "GRD-3"),
}
"""Start of a module's name -> the clauses that its wrong gradient may break."""


def asked(subject: Subject, case: Case) -> dict[str, Array]:
    """Return the loss and every gradient of an implementation, by name.

    Raises:
        Raised: the implementation raised.
    """
    loss, by_name = subject.ask(case, "loss_and_gradients", case.token_ids, case.is_real, case.labels)
    return {"loss": np.asarray(loss)} | {name: np.asarray(value) for name, value in by_name.items()}


def judged(case: Case, dtype: str, outputs: Mapping[str, Array]) -> list[Judgement]:
    """Judge the loss and every gradient, in the order of the backward pass."""
    by_name = {name: value for name, value in outputs.items() if name != "loss"}
    judgements = gradients.judged(case, dtype, outputs["loss"], by_name)
    return [each for each in judgements if each.name != gradients.NAMES or each.verdict == "fail"]


def split(name: str) -> tuple[int | None, str]:
    """Split `transformer.h.3.mlp.dense_4h_to_h.bias` into the layer and the rest; None: of no layer."""
    bare = short(name)
    if not bare.startswith("h."):
        return None, bare
    _, layer, module = bare.split(".", 2)
    return int(layer), module


def is_gradient(name: str) -> bool:
    """True for the name of the loss, of a weight and of a factor, and of the judgement about these names."""
    return name in ("loss", gradients.NAMES) or name.startswith((HF_PREFIX, "lm_head.", "base_model.", "lora/"))


def short(name: str) -> str:
    """Name of a weight without the prefix that all have."""
    return name.removeprefix(OF_PEFT).removeprefix(HF_PREFIX)


def clauses(name: str) -> tuple[str, ...]:
    """Clauses that an implementation may break if this is the first wrong gradient of the backward pass."""
    module = split(name)[1]
    key = max((key for key in CLAUSES if module.startswith(key)), key=len, default="")
    return ("LRA-1", "GRD-3") if "lora" in name else CLAUSES.get(key, ("GRD-4",))


# --- a tied head ------------------------------------------------------------------------------------------------------


def tied_parts(case: Case) -> dict[str, Array]:
    """Return the two parts of the gradient of a tied embedding: of the lookup, and of the head (GRD-4)."""
    params = replace(case.params, lm_head=case.params.word_embedding)
    arrays = Arrays(params, case.token_ids, case.is_real, case.labels)
    untied = replace(case, config=case.config.replace(tie_word_embeddings=False), arrays=arrays)
    by_name = exact(untied)
    return {"lookup": by_name[f"{HF_PREFIX}{EMBEDDING}"], "head": by_name["lm_head.weight"]}


def tied_hint(case: Case, outputs: Mapping[str, Array], wrong: Iterable[str]) -> Iterator[str]:
    """Yield what is known if the gradient of a tied embedding is the only wrong one."""
    name = f"{HF_PREFIX}{EMBEDDING}"
    if set(wrong) != {name} or not case.config.tie_word_embeddings:
        return
    output = np.asarray(outputs.get(name, np.nan), np.float64)
    alone = [part for part, right in tied_parts(case).items() if output.shape == right.shape and _close(output, right)]
    what = f"it is the part of the {alone[0]} alone: " if alone else ""
    yield f"{what}the head is tied, so this gradient is the sum of both uses, lookup and head (GRD-4)"


def _close(output: Array, right: Array) -> bool:
    return bool(np.abs(output - right).max(initial=0.0) <= 1e-4 * np.abs(right).max(initial=0.0))


def explanations(case: Case, dtype: str, outputs: Mapping[str, Array]) -> list[Mistake]:
    """Return the known mistakes of the backward pass that leave nothing but rounding of a loss and its gradients."""
    return [mistake for mistake in MISTAKES if _is_of_gradients(case, mistake) and _fits(case, dtype, outputs, mistake)]


def _is_of_gradients(case: Case, mistake: Mistake) -> bool:
    return "gradients" in mistake.needs and not (mistake.is_of_adapters and case.lora is None)


def _fits(case: Case, dtype: str, outputs: Mapping[str, Array], mistake: Mistake) -> bool:
    """True if every output that can be judged is that of a model with the mistake. A larger gradient has a larger
    rounding error."""
    loss, by_key = mistake.model.of(case).loss_and_gradients(case.token_ids, case.is_real, case.labels)
    mutant = {"loss": np.asarray(loss)} | named(case.config, by_key, case.lora.form if case.lora else "peft")
    for name, right in exact(case).items():
        allowed, signal = spread(case)[name] * UNITS[dtype] / SIMULATED, rms(right)
        if name in outputs and allowed <= MAX_NOISE * signal:
            output = np.asarray(outputs[name], np.float64)
            larger = max(1.0, rms(mutant[name]) / signal) if signal else 1.0
            if output.shape != right.shape or not rms(output - mutant[name]) <= LIMIT * allowed * larger:
                return False
    return True


# --- two operands -----------------------------------------------------------------------------------------------------


def operand(name: str, dtype: str, case: Case) -> Operand:
    """Return the loss and the gradients of an implementation, or of the oracle, by name.

    Args:
        name, dtype: as in `operands.operand`.

    Raises:
        Unsupported: the implementation has no gradients; Failed: it raised.
    """
    if name == ORACLE:
        return Operand(name, exact(case), None)
    subject = subject_of(name, dtype, case)
    if not subject.offers(case, "loss_and_gradients"):
        raise Unsupported(f"{name}: it has no method loss_and_gradients")
    with as_failed(name):
        return Operand(name, asked(subject, case), subject.tier)


def difference(case: Case, a: Operand, b: Operand) -> Difference:
    """Compare two operands in the order of the backward pass.

    Raises:
        InvalidInput: a gradient is missing in one of them, or has another shape.
    """
    names = list(exact(case))
    for each in (a, b):
        missing = [name for name in names if name not in each.values]
        if missing:
            raise invalid(each.name, f"a gradient of {missing[0]} (GRD-4)", f"{len(each.values) - 1} others")
    return Difference(case, (a, b), [_comparison(case, name, a, b) for name in names])


def _comparison(case: Case, name: str, a: Operand, b: Operand) -> Comparison:
    expected, (one, two) = exact(case)[name], (np.asarray(o.values[name], np.float64) for o in (a, b))
    if one.shape != expected.shape or two.shape != expected.shape:
        raise invalid(name, f"shape {expected.shape}", f"{one.shape} and {two.shape}")
    units = [UNITS[o.tier.name.partition("-")[0]] / SIMULATED for o in (a, b) if o.tier]
    allowed = spread(case)[name] * float(np.linalg.norm(units))
    error, signal = (rms(x) for x in (one - two, expected))
    z = (error / allowed if allowed else np.inf) if error else 0.0
    is_judged = bool(allowed <= MAX_NOISE * signal)
    return Comparison(name, z if np.isfinite(z) else np.inf, error / signal if signal else 0.0, None, is_judged)
