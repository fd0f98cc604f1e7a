"""Vectors with an exact output, stored in the JSON:
configs, slopes, the choice of a token, draws, rounding, dtype policies.
"""

from typing import Any

import numpy as np

from bloomref.backbone import BloomBackbone
from bloomref.causal_lm import BloomCausalLM
from bloomref.conformance.adapters.exact_answers import (
    choose,
    draw,
    generate,
    policy,
    read_config,
    read_slopes,
    round_to,
)
from bloomref.conformance.cases import Case
from bloomref.conformance.oracle.budgets import sigma
from bloomref.conformance.oracle.precision import TIERS
from bloomref.conformance.oracle.truth import truth
from bloomref.conformance.vectors.author.draft import Draft, case_of
from bloomref.conformance.vectors.author.vector_models import MODELS

OLD = {"vocab_size": 250880, "n_embed": 1024, "n_layer": 24, "num_attention_heads": 16}
NEW = {"vocab_size": 23, "hidden_size": 12, "num_hidden_layers": 2, "num_attention_heads": 3}
SURE = 20.0
"""Lead of the best token over the second, in units of sigma, from which no rounding of a tier changes the choice."""


# --- configs ---------------------------------------------------------------------------------------------------------


def config() -> list[Draft]:
    def right(name: str, clauses: str, comment: str, arguments: dict[str, Any]) -> Draft:
        inputs = {"config": arguments}
        return Draft(
            name, tuple(clauses.split()), comment, "config", ("config",), arguments=inputs, output=read_config(inputs)
        )

    def wrong(name: str, clause: str, comment: str, error: str = "InvalidInput", **changes: Any) -> Draft:
        changed = {key: value for key, value in (NEW | changes).items() if value is not ...}
        inputs = {"config": changed}
        return Draft(name, (clause,), comment, "config", ("config",), "invalid", error, arguments=inputs)

    return [
        right("cfg-old-spelling", "CFG-3 CFG-7", "n_embed and n_layer; F is 4 D by default", OLD),
        right("cfg-new-spelling", "CFG-7", "hidden_size and num_hidden_layers", NEW | {"intermediate_size": 29}),
        right("cfg-both-spellings", "CFG-7", "if both spellings are present, n_embed, n_layer and n_head are used", NEW | {"n_embed": 24, "n_layer": 5, "n_head": 6}),
        right("cfg-unknown-keys", "CFG-8", "keys without an effect are accepted", NEW | {"pretraining_tp": 4, "slow_but_exact": True, "seq_length": 2048, "offset_alibi": 100, "model_type": "bloom"}),
        right("cfg-every-field", "CFG-4 CFG-5 CFG-6 CFG-11", "no field has its default", NEW | {"intermediate_size": 7, "attention_dropout": 0.1, "hidden_dropout": 0.25, "layer_norm_epsilon": 1e-6, "apply_residual_connection_post_layernorm": True, "tie_word_embeddings": False, "initializer_range": 0.5, "bos_token_id": None, "eos_token_id": 0, "pad_token_id": 9}),
        right("cfg-no-layers", "CFG-1", "no layers are legal", NEW | {"num_hidden_layers": 0}),
        wrong("cfg-no-vocabulary", "CFG-1", "V is at least 1", vocab_size=0),
        wrong("cfg-layers-negative", "CFG-1", "L is at least 0", num_hidden_layers=-1),
        wrong("cfg-heads-bool", "CFG-1", "a bool is not an integer", num_attention_heads=True),
        wrong("cfg-width-float", "CFG-1", "12.5 is not an integer", hidden_size=12.5),
        wrong("cfg-heads-do-not-divide", "CFG-2", "D is a multiple of H", num_attention_heads=5),
        wrong("cfg-dropout-1", "CFG-4", "a rate is below 1", hidden_dropout=1.0),
        wrong("cfg-epsilon-negative", "CFG-5", "epsilon is not negative", layer_norm_epsilon=-1e-5),
        wrong("cfg-epsilon-text", "CFG-5", "a string is not a number", layer_norm_epsilon="1e-5"),
        wrong("cfg-post-norm-text", "CFG-6", "a string is not a bool", apply_residual_connection_post_layernorm="false"),
        wrong("cfg-pad-negative", "CFG-11", "-1 does not mean null", pad_token_id=-1),
        wrong("cfg-of-gpt2", "CFG-10", "the config of another model", "BadWeights", model_type="gpt2"),
        wrong("cfg-without-heads", "CFG-10", "the number of heads is missing", "BadWeights", num_attention_heads=...),
    ]  # fmt: skip


# --- slopes ----------------------------------------------------------------------------------------------------------


def slopes() -> list[Draft]:
    comment = "the slopes, each the decimal form of the exact binary number, as float64 and rounded once to float32"
    clauses = {False: ("ALI-1", "ALI-3"), True: ("ALI-1", "ALI-2", "ALI-3")}
    return [
        Draft(f"ali-slopes-{n}", clauses[bool(n & (n - 1))], comment, "slopes", ("odd-heads" if n & (n - 1) else "slopes",), arguments={"num_heads": n}, output=read_slopes({"num_heads": n}))
        for n in (1, 2, 3, 7, 16, 20, 32, 112)
    ]  # fmt: skip


# --- choosing tokens -------------------------------------------------------------------------------------------------


def generation() -> list[Draft]:
    def one(name: str, clause: str, comment: str, flag: str, **arguments: Any) -> Draft:
        return Draft(name, (clause,), comment, "choose", (flag,), arguments=arguments, output=choose(arguments))

    def drawn(name: str, clauses: str, comment: str, seed: int, earlier: int = 0, **arguments: Any) -> Draft:
        inputs = {"seed": seed, "drawn": earlier, **arguments}
        flag = "truncated-draw" if arguments.keys() & {"top_k", "top_p"} else "draw"
        return Draft(
            f"gen-draw-{name}", tuple(clauses.split()), comment, "draw", (flag,), arguments=inputs, output=draw(inputs)
        )

    six = [1.5, -0.5, 3.0, 0.25, 2.5, 1.0]
    halves = [0.5, 0.25, 0.125, 0.125]
    logs = [float(x) for x in np.log(halves)]
    return [
        one("gen-tie", "GEN-1", "of equal scores, the lowest id is chosen", "ties", scores=[0.5, 2.0, -1.0, 2.0]),
        one("gen-tie-of-all", "GEN-1", "all scores are equal: the lowest id is chosen", "ties", scores=[-3.0, -3.0, -3.0]),
        one("gen-tie-of-zeros", "GEN-1", "0 and -0 are equal", "ties", scores=[-1.0, -0.0, 0.0]),
        one("gen-top-p-crossing", "GEN-7", "the token that crosses p stays", "top-p", scores=logs, top_p=0.6),
        one("gen-top-p-one", "GEN-7", "one token always stays", "top-p", scores=logs, top_p=0.001),
        one("gen-top-p-most", "GEN-7", "the order of the scores decides, not that of the ids", "top-p", scores=logs[::-1], top_p=0.8),
        one("gen-penalty", "GEN-8", "a positive score is divided, a negative one multiplied, once for each token", "penalty", scores=[2.0, -2.0, 3.0, 0.0], history=[0, 1, 1, 3], repetition_penalty=2.0),
        drawn("number", "GEN-9", "the first number of a seed", 1),
        drawn("number-later", "GEN-9", "the number depends on the seed and on the count of earlier draws alone", 1, 5),
        drawn("number-of-large-seed", "GEN-9", "a seed has 64 bits", 2**64 - 1, 5),
        drawn("number-of-large-count", "GEN-9", "after many draws", 0, 2**31 - 1),
        drawn("order", "GEN-10", "the probabilities are added in the order of ids", 7, scores=six, temperature=1.0),
        drawn("temperature", "GEN-10", "the scores are divided by the temperature", 9, scores=six, temperature=2.5),
        drawn("later", "GEN-9 GEN-10", "the eighth draw of a row", 3, 7, scores=six, temperature=2.0),
        drawn("large-seed", "GEN-9 GEN-10", "a token by a seed of 64 bits", 2**64 - 1, scores=six, temperature=2.0),
        drawn("forbidden", "GEN-10", "forbidden tokens have no probability", 1, scores=six, temperature=1.0, forbidden=[2, 0]),
        drawn("equal", "GEN-10", "all scores are equal: the draw decides, not the lowest id", 1, scores=[0.5] * 5, temperature=0.7),
        drawn("top-k", "GEN-10", "the probabilities of the tokens that are left are renormalised", 3, scores=six, temperature=1.5, top_k=3),
        drawn("top-k-tie", "GEN-10", "scores that equal the lowest that is kept may stay or not: the token is the same", 11, scores=[2.0, 3.0, 2.0, 2.0, 0.5], temperature=1.0, top_k=2),
        drawn("top-p", "GEN-7 GEN-10", "the token that crosses p can be drawn", 11, scores=six, temperature=1.5, top_p=0.7),
        drawn("top-p-after-temperature", "GEN-10", "top-p sums the probabilities after the division by the temperature", 3, scores=six, temperature=3.0, top_p=0.7),
        drawn("top-p-after-top-k", "GEN-7 GEN-10", "top-p sums the probabilities among the tokens that top-k left", 3, scores=six, temperature=2.0, top_k=4, top_p=0.8),
        _greedy("gen-greedy", "heads3", "GEN-1 GEN-3", "the likeliest token, up to a length that counts the prompt", [[7, 3, 11]], 9),
        _greedy("gen-greedy-batch", "untied", "GEN-5", "prompts of different lengths: each as if it were alone", [[7, 3, 11, 0], [19], [4, 4]], 8),
        _greedy("gen-stop", "heads3", "GEN-4", "the first generated stop token ends a row, and is part of the result", [[7, 3, 11]], 9, stop=3),
        _greedy("gen-stop-in-prompt", "heads3", "GEN-4", "a stop token in the prompt ends nothing", [[7, 3, 11]], 6, stop="prompt"),
    ]  # fmt: skip


def language_model(case: Case) -> BloomCausalLM:
    return BloomCausalLM(BloomBackbone.from_params(case.config, case.params, "float64"))


def _greedy(
    name: str,
    model: str,
    clauses: str,
    comment: str,
    prompts: list[list[int]],
    length: int,
    stop: int | str | None = None,
) -> Draft:
    """Draft a vector of greedy search.

    Args:
        length: the longest row, prompt included.
        stop: if a number, the third generated token is the stop token; if "prompt", the second token of the prompt is.
    """
    case, flags = MODELS[model], ("greedy",)
    arguments: dict[str, Any] = {"prompts": prompts, "max_length": length, "stop_token_ids": None}
    free = generate(language_model(case), arguments)["rows"]
    if stop is not None:
        arguments["stop_token_ids"] = [prompts[0][1] if stop == "prompt" else free[0][len(prompts[0]) + 2]]
    rows = generate(language_model(case), arguments)["rows"]
    tiers = [tier for tier in TIERS if all(_is_certain(case, tier, *pair) for pair in zip(prompts, rows, strict=True))]
    return Draft(name, tuple(clauses.split()), comment, "generate", flags, model=f"models/{model}", arguments=arguments, output={"rows": rows, "certain_in": tiers})  # fmt: skip


def _is_certain(model: Case, tier: str, prompt: list[int], row: list[int]) -> bool:
    """True if no rounding of the tier changes a token."""
    case = case_of(model, f"greedy {row}", token_ids=[row])
    deciding = range(len(prompt) - 1, len(row) - 1)
    logits, allowed = truth(case).values["logits"][0], sigma(case, TIERS[tier], ["logits"])["logits"][0]
    lead = np.diff(np.partition(logits, -2)[:, -2:])[:, 0] if logits.shape[1] > 1 else np.full(len(logits), np.inf)
    return all(lead[t] > SURE * allowed[t] for t in deciding)


# --- dtypes ----------------------------------------------------------------------------------------------------------


def numerics() -> list[Draft]:
    def rounding(name: str, comment: str, dtype: str, values: list[float]) -> Draft:
        arguments = {"dtype": dtype, "values": values}
        return Draft(name, ("NUM-1",), comment, "round", ("rounding",), arguments=arguments, output=round_to(arguments))

    def of(name: str) -> Draft:
        arguments = {"policy": name}
        return Draft(f"num-policy-{name.replace('_', '-')}", ("NUM-1", "NUM-3"), "the variable, compute and accumulation dtypes", "policy", ("policy",), arguments=arguments, output=policy(arguments))  # fmt: skip

    def no(name: str, wrong: str) -> Draft:
        return Draft(name, ("NUM-4",), "not a dtype policy", "policy", ("policy",), "invalid", "InvalidInput", arguments={"policy": wrong})  # fmt: skip

    ties = [1.00390625, 1.01171875, -1.00390625, 257.0, 259.0]
    return [
        rounding("num-bfloat16-ties", "halfway between two numbers: the even one", "bfloat16", ties),
        rounding("num-bfloat16-nearest", "not halfway: the nearest number", "bfloat16", [0.1, 1.004, 3.14159265, 65504.0, -1e-3]),
        rounding("num-bfloat16-once", "from float64 in one step: through float32 the result would be another", "bfloat16", [1.0 + 2.0**-8 + 2.0**-30, 1.0 + 2.0**-8 - 2.0**-30, 1.0 + 3 * 2.0**-8 - 2.0**-40]),
        rounding("num-float16-ties", "halfway between two numbers: the even one", "float16", [1.00048828125, 1.00146484375, 2049.0, 2051.0, -2049.0]),
        rounding("num-float16-subnormal", "below 2^-14 float16 has fewer digits, not none", "float16", [2.0**-24, 1.5 * 2.0**-24, 2.0**-15 + 2.0**-26, 2.0**-25, 65519.0]),
        rounding("num-float32", "rounding to float32", "float32", [0.1, 1.0 + 2.0**-24, 1.0 + 3 * 2.0**-24, 16777217.0]),
        *map(of, ("float64", "float32", "bfloat16", "mixed_float16")),
        no("num-policy-int8", "int8"),
        no("num-policy-float8", "float8_e4m3fn"),
    ]  # fmt: skip
