"""bloomref's exact answers: configs, slopes, the choice of a token, draws, greedy search, rounding, dtype policies.

Every function takes the object `input` of a vector and returns its `output` (specs/98-vectors.md).
"""

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from bloomref import alibi
from bloomref.causal_lm import BloomCausalLM
from bloomref.config import BloomConfig
from bloomref.dtypes import accumulation_dtype, cast, dtype_policy, floating_dtype
from bloomref.generation.logits_processors import penalize_repetition
from bloomref.generation.options import GenerationOptions
from bloomref.generation.row_scores import Scores
from bloomref.generation.sampling import argmax, top_p, uniform
from bloomref.generation.sampling import choose as sampled
from bloomref.shapes import Array


def read_config(arguments: Mapping[str, Any]) -> dict[str, Any]:
    """Fields of a config.json, by their names in specs/10-config.md."""
    fields = BloomConfig.from_hf(arguments["config"]).to_dict()
    del fields["extra"]
    return fields


def read_slopes(arguments: Mapping[str, Any]) -> dict[str, Any]:
    """ALiBi slopes in both accumulation dtypes."""
    types = ("float64", "float32")
    return {dtype: alibi.slopes(arguments["num_heads"], np.dtype(dtype)).astype(np.float64).tolist() for dtype in types}


def choose(arguments: Mapping[str, Any]) -> dict[str, Any]:
    """Token, retained tokens or penalised scores by one rule of specs/75-generation.md."""
    scores = np.array(arguments["scores"], np.float64)
    if "top_p" in arguments:
        return {"kept": np.flatnonzero(top_p(scores, arguments["top_p"]) > -np.inf).tolist()}
    if "repetition_penalty" in arguments:
        penalize_repetition(scores, arguments["history"], arguments["repetition_penalty"])
        return {"scores": scores.tolist()}
    return {"token": argmax(scores)}


def draw(arguments: Mapping[str, Any]) -> dict[str, Any]:
    """Number of a draw (GEN-9) and, of scores, the token that it takes (GEN-10)."""
    seed, drawn = arguments["seed"], arguments["drawn"]
    answer: dict[str, Any] = {"number": uniform(seed, drawn)}
    if "scores" in arguments:
        scores = np.array(arguments["scores"], np.float64)
        scores[arguments.get("forbidden", [])] = -np.inf
        options = {name: arguments[name] for name in ("temperature", "top_k", "top_p") if name in arguments}
        answer["token"] = sampled(Scores(scores), GenerationOptions(do_sample=True, **options), seed, drawn)
    return answer


def generate(model: BloomCausalLM, arguments: Mapping[str, Any]) -> dict[str, Any]:
    """Token ids of greedy search."""
    rows = model.generate(
        [list(row) for row in arguments["prompts"]], arguments["max_length"], arguments["stop_token_ids"]
    )
    return {"rows": rows}


def round_to(arguments: Mapping[str, Any]) -> dict[str, Any]:
    """Numbers rounded once to a dtype, as float64."""
    values: Array = np.array(arguments["values"], np.float64)
    return {"values": cast(values, floating_dtype(arguments["dtype"])).astype(np.float64).tolist()}


def policy(arguments: Mapping[str, Any]) -> dict[str, Any]:
    """The three dtypes of a policy."""
    names = dtype_policy(arguments["policy"])
    dtypes = {
        "variable": names.variable_dtype,
        "compute": names.compute_dtype,
        "accumulation": accumulation_dtype(names.compute_dtype),
    }
    return {name: dtype.name for name, dtype in dtypes.items()}


ANSWERS: Mapping[str, Callable[[Mapping[str, Any]], dict[str, Any]]] = {
    "config": read_config,
    "slopes": read_slopes,
    "choose": choose,
    "draw": draw,
    "round": round_to,
    "policy": policy,
}
"""Question (`implementation.QUESTIONS`) -> the function that answers it."""
