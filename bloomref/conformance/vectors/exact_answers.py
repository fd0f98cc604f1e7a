"""bloomref's answers to the vectors that are exact: configs, slopes, the choice of a token, greedy continuations, roundings, dtype policies."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from bloomref import alibi
from bloomref.causal_lm import BloomCausalLM
from bloomref.config import BloomConfig
from bloomref.dtypes import accumulation_dtype, cast, dtype_policy, floating_dtype
from bloomref.generation.logits_processors import penalize_repetition
from bloomref.generation.sampling import argmax, top_p
from bloomref.shapes import Array


def read_config(given: Mapping[str, Any]) -> dict[str, Any]:
    """The fields of a config.json, by their names in specs/10-config.md."""
    fields = BloomConfig.from_hf(given["config"]).to_dict()
    del fields["extra"]
    return fields


def read_slopes(given: Mapping[str, Any]) -> dict[str, Any]:
    """The slopes of both accumulation dtypes."""
    types = ("float64", "float32")
    return {dtype: alibi.slopes(given["num_heads"], np.dtype(dtype)).astype(np.float64).tolist() for dtype in types}


def choose(given: Mapping[str, Any]) -> dict[str, Any]:
    """The token, the allowed tokens or the new scores by one rule of specs/75-generation.md."""
    scores = np.array(given["scores"], np.float64)
    if "top_p" in given:
        return {"kept": np.flatnonzero(top_p(scores, given["top_p"]) > -np.inf).tolist()}
    if "repetition_penalty" in given:
        penalize_repetition(scores, given["history"], given["repetition_penalty"])
        return {"scores": scores.tolist()}
    return {"token": argmax(scores)}


def generate(model: BloomCausalLM, given: Mapping[str, Any]) -> dict[str, Any]:
    """Greedy continuations; the model has no tokenizer."""
    rows = model.generate([list(row) for row in given["prompts"]], given["max_length"], given["stop_token_ids"])
    return {"rows": rows}


def round_to(given: Mapping[str, Any]) -> dict[str, Any]:
    """Numbers rounded once to a dtype, as float64."""
    values: Array = np.array(given["values"], np.float64)
    return {"values": cast(values, floating_dtype(given["dtype"])).astype(np.float64).tolist()}


def policy(given: Mapping[str, Any]) -> dict[str, Any]:
    """The three dtypes of a policy."""
    names = dtype_policy(given["policy"])
    dtypes = {
        "variable": names.variable_dtype,
        "compute": names.compute_dtype,
        "accumulation": accumulation_dtype(names.compute_dtype),
    }
    return {name: dtype.name for name, dtype in dtypes.items()}
