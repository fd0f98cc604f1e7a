"""The two sides of a comparison: what a word of the command line stands for, and what it says of a case."""

import zlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np

from bloomref.conformance.adapters.instrumented_model import InstrumentedImplementation
from bloomref.conformance.cases import Case
from bloomref.conformance.implementation import Implementation
from bloomref.conformance.mistakes import get_mistake
from bloomref.conformance.oracle.precision import Tier, tier_of
from bloomref.conformance.oracle.truth import truth
from bloomref.conformance.run import resolve
from bloomref.conformance.subject import Subject
from bloomref.dtypes import floating_dtype
from bloomref.errors import BadWeights, InvalidInput, Unsupported
from bloomref.shapes import Array

ORACLE = "oracle"
PEERS = {
    "transformers": "transformers:Transformers",
    "keras_hub": "keras_hub:KerasHub",
    "llama_cpp": "llama_cpp:LlamaCpp",
    "ctranslate2": "ctranslate2:CTranslate2",
}
"""Names of implementations that the kit brings an adapter for."""


@dataclass(frozen=True, eq=False)
class Side:
    """What one side says of a case.

    Args:
        values: named intermediates (clause MOD-8), as many as it has.
        tier: the precision in which it computed; None for the oracle, which is exact here.
    """

    name: str
    values: Mapping[str, Array] = field(repr=False)
    tier: Tier | None


def side(name: str, dtype: str, case: Case) -> Side:
    """Run what `name` stands for: "oracle", a trace file, or an implementation, perhaps with "@dtype" behind it.

    Raises:
        Unsupported: it is not available here, or cannot do what the case asks; InvalidInput: there is none of that name.
    """
    if name == ORACLE:
        return Side(name, truth(case).values, None)
    if is_trace(name):
        return _side_of_file(Path(name), dtype)
    bare, dtype = split_dtype(name, dtype)
    subject = Subject(adapter(bare), dtype)
    reason = subject.missing(case)
    if dtype not in subject.implementation.capabilities.dtypes:
        reason = f"{bare}: it computes in {', '.join(subject.implementation.capabilities.dtypes)}, not in {dtype}"
    if reason:
        raise Unsupported(reason)
    return Side(name, _outputs(subject, case), subject.tier)


def split_dtype(name: str, dtype: str) -> tuple[str, str]:
    """`numba@bfloat16` is numba in bfloat16; without a dtype of its own a side has the one of the comparison."""
    bare, _, own = name.partition("@")
    return bare, own or dtype


def is_trace(name: str) -> bool:
    return name.endswith(".safetensors")


def adapter(name: str) -> Implementation:
    """The adapter that `name` stands for: a peer, `program:COMMAND`, `module:Adapter`, `mistake:NAME`, or a backend."""
    if name in PEERS:
        module, _, attribute = PEERS[name].partition(":")
        found: Implementation = getattr(import_module(f"bloomref.conformance.adapters.{module}"), attribute)()
        return found
    kind, _, rest = name.partition(":")
    if kind == "mistake":
        return InstrumentedImplementation(get_mistake(rest).model)
    if kind == "program":
        return resolve.implementation_of(None, None, rest)
    return resolve.implementation_of(name, None, None) if rest else resolve.implementation_of(None, name, None)


def _outputs(subject: Subject, case: Case) -> dict[str, Array]:
    """As much as the implementation shows; in pieces over a cache the logits alone."""
    model: Any = subject.model(case)
    if case.cuts:
        if not hasattr(model, "in_pieces"):
            raise Unsupported(f"{subject.implementation.name}: it has no method in_pieces; leave out --cuts")
        return {"logits": np.asarray(model.in_pieces(case.token_ids, case.is_real, case.cuts, case.time))}
    if hasattr(model, "trace"):
        seen = {name: np.asarray(value) for name, value in model.trace(case.token_ids, case.is_real).items()}
        return seen if "logits" in seen else seen | {"logits": _logits(model, case)}
    hidden = {"final_norm": np.asarray(model.hidden(case.token_ids, case.is_real))} if hasattr(model, "hidden") else {}
    return hidden | {"logits": _logits(model, case)}


def _logits(model: Any, case: Case) -> Array:
    return np.asarray(model.logits(case.token_ids, case.is_real))


# --- trace files, and cases that stand for a real model ---------------------------------------------------------------


def metadata(path: Path) -> dict[str, str]:
    """What `bloomref trace` noted: the model and the token ids.

    Raises:
        BadWeights: the file is damaged, or no trace.
    """
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="np") as file:
            found: dict[str, str] = file.metadata() or {}
    except (SafetensorError, OSError) as error:
        raise BadWeights(f"{path.name}: expected a file that `bloomref trace` wrote; {error}") from error
    if not {"model", "token_ids"} <= found.keys():
        raise BadWeights(
            f"{path.name}: expected a file that `bloomref trace` wrote, got one without model and token_ids"
        )
    return found


def traced_dtype(path: Path) -> str:
    """The compute dtype, seen on an intermediate that is rounded to it; float32 where none was kept."""
    values = _arrays(path)
    rounded = [x.dtype.name for name, x in values.items() if name.endswith(("_block", "embedding_norm", "final_norm"))]
    return rounded[0] if rounded else "float32"


def _side_of_file(path: Path, dtype: str) -> Side:
    return Side(path.name, _arrays(path), tier_of(dtype))


def _arrays(path: Path) -> dict[str, Array]:
    from bloomref.formats.safetensors_io import SafetensorsFile

    file = SafetensorsFile(path)
    return {name: file.view(name) for name in file.entries}


def case_of_model(model: str, token_ids: list[int], dtypes: tuple[str, ...], revision: str | None = None) -> Case:
    """A real model as a case: its weights, rounded to every dtype that is compared, so that all sides have the same.

    Raises:
        InvalidInput: ids outside the vocabulary, or none; and what loading a model raises.
    """
    from bloomref.backbone import BloomBackbone
    from bloomref.runtime.inputs import token_batch

    backbone = BloomBackbone.from_preset(model, dtype="float32", revision=revision)
    params = backbone.params
    for dtype in dtypes:
        params = params.astype(floating_dtype(dtype))
    batch = token_batch({"token_ids": [token_ids]}, backbone.config.vocabulary_size)
    if not token_ids:
        raise InvalidInput("tokens: expected at least one token id, got none")
    stamp = zlib.crc32(" ".join([model, *dtypes, *map(str, token_ids)]).encode())
    case = Case(backbone.config, seed=stamp, batch=1, time=len(token_ids), name=model)
    vars(case).update(params=params.astype(floating_dtype("float64")), token_ids=batch.token_ids, is_real=batch.is_real)
    return case
