"""Vectors of the forward pass: embedding, ALiBi, attention, MLP, whole models, calls over a cache."""

from typing import Any

import numpy as np

from bloomref.conformance.cases import Case
from bloomref.conformance.vectors.author.draft import RESULTS, Draft, answer, ask, case_of, without_padding
from bloomref.conformance.vectors.author.vector_models import MODELS

ALL = ("*",)
TEXT = [[7, 3, 22, 0, 11, 5], [19, 19, 2, 8, 1, 4]]


def _logits(
    name: str, model: str, clauses: str, comment: str, flags: str = "", names: tuple[str, ...] = RESULTS, **case: Any
) -> Draft:
    return ask(case_of(MODELS[model], name, **case), model, clauses, comment, flags, names)


def _pieces(
    name: str,
    model: str,
    clauses: str,
    comment: str,
    cuts: tuple[int, ...],
    flags: str = "",
    spare: int = 0,
    **case: Any,
) -> Draft:
    chunked = case_of(MODELS[model], name, cuts=cuts, **case)
    more = {"cuts": list(cuts), "capacity": chunked.time + spare}
    return ask(chunked, model, clauses, comment, f"pieces {flags}", ["logits"], "in_pieces", **more)


def _call(name: str, clauses: str, comment: str, flags: str = "", model: str = "heads3", **arguments: Any) -> Draft:
    """Draft a call of the public API, with arguments of any type; those with the flag "front-door" must be refused."""
    arguments = {"token_ids": TEXT, "token_dtype": "int64"} | arguments
    common = {"clauses": tuple(clauses.split()), "comment": comment, "flags": tuple(flags.split())}
    where = {"ask": "call", "model": f"models/{model}", "arguments": arguments}
    if "front-door" in flags:
        return Draft(name, **common, **where, expect="invalid", error="InvalidInput")  # type: ignore[arg-type]
    if "token_shape" in arguments:
        shape = [*arguments["token_shape"], MODELS[model].config.vocabulary_size]
        return Draft(name, **common, **where, output={"shape": shape})  # type: ignore[arg-type]
    case = _case_of_call(name, MODELS[model], arguments)
    return Draft(name, **common, **where, answers=(("the specification's", lambda: answer(case, ["logits"])),))  # type: ignore[arg-type]


def _case_of_call(name: str, model: Case, arguments: dict[str, Any]) -> Case:
    ids = np.array(arguments["token_ids"], np.int64)
    mask = np.array(arguments["padding_mask"], bool) if "padding_mask" in arguments else np.ones(ids.shape, bool)
    return case_of(model, name, token_ids=ids, is_real=mask)  # type: ignore[arg-type]


def embedding() -> list[Draft]:
    trace = ("word_embedding", "embedding_norm", *RESULTS)
    refused = "front-door"
    return [
        _logits("emb-rows-and-norm", "heads3", "EMB-3 EMB-5", "rows are looked up and normalised; nothing is scaled or added", "embedding-norm", trace, token_ids=TEXT),
        _logits("emb-every-id", "heads5", "EMB-1 EMB-2", "every id of the vocabulary, including the first and the last", "last-id", trace, token_ids=[list(range(23))]),
        _logits("emb-special-ids", "plain", "CFG-11", "the ids of <s>, </s> and <pad> are ordinary rows", "pad-id", trace, token_ids=[[1, 9, 2, 3, 3, 12], [3, 3, 3, 0, 2, 1]]),
        _logits("emb-below-epsilon", "quiet", "EMB-3 EMB-4", "embeddings of a standard deviation of 2e-3, as in the real models: epsilon decides their size", "eps-sensitive epsilon-place", trace, batch=2, time=6),
        _logits("emb-epsilon-1e-3", "epsilon3", "EMB-4", "every layer norm has the epsilon of the config", "epsilon eps-sensitive", ALL, batch=1, time=4),
        _logits("emb-epsilon-1e-12", "epsilon12", "EMB-4", "an epsilon with almost no effect", "epsilon eps-sensitive", trace, batch=1, time=5),
        _logits("emb-large-mean", "mean300", "EMB-3 NUM-9", "means of 300 times the spread: the mean is subtracted before squaring", "large-mean", (*trace, "layers.0.attention.norm", "layers.1.mlp.norm"), batch=1, time=6),
        _logits("emb-four-tokens", "tokens4", "EMB-2", "a vocabulary of four tokens", "last-id", trace, token_ids=[[3, 0, 2, 3, 1]]),
        *(_call(f"emb-ids-{dtype}", "EMB-1", f"ids of dtype {dtype} mean the same", "id-types", token_dtype=dtype) for dtype in ("uint8", "int16", "int32", "uint64")),
        _call("emb-no-rows", "EMB-6 MOD-1", "an empty batch gives logits of shape (0, T, V)", "empty", token_ids=[], token_shape=[0, 6]),
        _call("emb-no-columns", "EMB-6 MOD-1", "an empty sequence gives logits of shape (B, 0, V)", "empty", token_ids=[[], []], token_shape=[2, 0]),
        _call("emb-id-negative", "EMB-2", "an id of -1 does not count from the end", f"{refused} id-wraps", token_ids=[[7, 3, -1]]),
        _call("emb-id-too-large", "EMB-2", "the id V is outside the vocabulary", f"{refused} id-wraps", token_ids=[[7, 3, 23]]),
        _call("emb-id-beyond-32-bits", "EMB-2", "2^32 + 5 is not 5", f"{refused} id-wraps", token_ids=[[7, 3, 2**32 + 5]]),
        _call("emb-ids-float", "EMB-2", "ids are integers", f"{refused} id-types", token_ids=[[7.0, 3.0, 1.5]], token_dtype="float64"),
        _call("emb-ids-whole-float", "EMB-2", "floats without a fraction are not ids either", f"{refused} id-types", token_ids=[[7.0, 3.0, 1.0]], token_dtype="float32"),
        _call("emb-ids-bool", "EMB-2", "bools are not ids", f"{refused} id-types", token_ids=[[True, False]], token_dtype="bool"),
        _call("emb-no-batch-axis", "MOD-1", "one row without a batch axis", refused, token_ids=[7, 3, 1]),
    ]  # fmt: skip


def alibi() -> list[Draft]:
    scores = ("layers.0.attention.scores", "layers.0.attention.probabilities", *RESULTS)
    holes = case_of(MODELS["heads6"], "ali-hole-or-deleted", is_real=[[1, 1, 0, 0, 1, 1, 1], [1, 0, 1, 1, 0, 1, 1]], token_ids=[[3, 9, 1, 4, 8, 2, 6], [5, 5, 7, 0, 11, 13, 20]])  # fmt: skip
    return [
        _logits("ali-2-heads", "plain", "ALI-1 ALI-4", "slopes 1/16 and 1/256", "slopes", scores),
        _logits("ali-1-head", "heads1", "ALI-1", "one head: slope 1/256", "slopes", scores, time=9),
        _logits("ali-3-heads", "heads3", "ALI-2", "a number of heads that is not a power of two", "odd-heads", scores, time=9),
        _logits("ali-5-heads", "heads5", "ALI-2", "five heads: the first slope of the eight", "odd-heads", scores, time=9),
        _logits("ali-6-heads", "heads6", "ALI-2", "six heads: every second slope of eight, after the first four", "odd-heads", scores, time=12),
        _logits("ali-12-heads", "heads12", "ALI-2", "twelve heads", "odd-heads", scores, batch=1, time=12),
        _logits("ali-24-heads", "heads24", "ALI-2", "twenty-four heads", "odd-heads", scores, batch=1, time=12),
        _logits("ali-distance-decides", "distance", "ALI-4 ATT-4", "small queries and keys: probabilities depend on the distance only", "distance odd-heads", scores, batch=2, time=20),
        _logits("ali-264-positions", "distance", "ALI-4 ALI-5", "positions beyond 256, on heads with steep slopes: bias and positions need more than 8 bits", "long distance odd-heads", ("logits",), batch=1, time=264),
        _logits("ali-left-padding", "heads3", "ALI-4 ATT-7", "padding before the text moves columns, not distances", "left-pad odd-heads", RESULTS, is_real=[[0, 0, 0, 1, 1, 1, 1, 1], [1] * 8], token_ids=[[3, 3, 3, 7, 9, 2, 14, 6], [5, 8, 1, 9, 9, 4, 0, 12]]),
        _logits("ali-right-padding", "heads5", "ALI-4 ATT-7", "padding after the text", "right-pad odd-heads", RESULTS, is_real=[[1] * 5 + [0] * 3, [1] * 8], token_ids=[[7, 9, 2, 14, 6, 3, 3, 3], [5, 8, 1, 9, 9, 4, 0, 12]]),
        _logits("ali-hole-keeps-column", "heads6", "ALI-4", "padding inside a text keeps its column", "mask-hole", RESULTS, kind="holes", is_real=holes.is_real.tolist(), token_ids=holes.token_ids.tolist()),
        _hole(holes, "heads6", "ALI-4"),
        _hole(case_of(MODELS["distance"], "ali-long-hole", token_ids=[[*range(23)]], is_real=[[1] * 4 + [0] * 9 + [1] * 10], kind="holes"), "distance", "ALI-4 ATT-7"),
    ]  # fmt: skip


def _hole(case: Case, model: str, clauses: str) -> Draft:
    inputs = {"token_ids": case.token_ids.tolist(), "padding_mask": case.is_real.astype(int).tolist()}
    return Draft(
        case.name,
        tuple(clauses.split()),
        "tokens after a hole, by both interpretations; ALI-4 requires the first",
        "logits",
        ("mask-hole",),
        "unspecified",
        model=f"models/{model}",
        arguments=inputs,
        answers=(
            ("the specification's: the hole keeps its column", lambda: answer(case, ["logits"])),
            ("positions count real tokens only: the hole is a deleted token", lambda: without_padding(case)),
        ),
    )


def attention() -> list[Draft]:
    inside = ("layers.0.attention.*", *RESULTS)
    mask = [[1, 1, 1, 1, 1, 1], [0, 0, 1, 1, 1, 1]]
    refused = "front-door mask-values"
    taken = [("bool", "as bools"), ("uint8", "as bytes"), ("float32", "as floats")]
    return [
        _logits("att-every-step", "heads3", "ATT-1 ATT-2 ATT-3 ATT-4 ATT-9", "every intermediate of a block", "qkv-layout head-merge scale softmax norms", inside, token_ids=TEXT),
        _logits("att-plain-two-layers", "plain", "ATT-2 ATT-3 ATT-10", "two layers, two heads", "qkv-layout scale", inside, batch=2, time=7),
        _logits("att-width-20", "width80", "ATT-3", "a head width that is not a power of two", "scale", inside, batch=1, time=6),
        _logits("att-width-1", "heads24", "ATT-2 ATT-9", "heads of width one", "qkv-layout head-merge odd-heads", inside, batch=1, time=5),
        _logits("att-causal", "heads5", "ATT-5", "a query attends to its own position and earlier ones", "causal softmax odd-heads", inside, batch=2, time=9),
        _logits("att-sharp", "sharp", "ATT-6", "scores in the hundreds, of both signs: a masked key must have weight exactly 0", "sharp", inside, batch=1, time=12),
        _logits("att-sharp-left-padding", "sharp", "ATT-6 ATT-7", "large scores after left padding", "sharp left-pad", RESULTS, batch=2, time=8, kind="left"),
        _logits("att-left-padding", "heads6", "ATT-7", "a different mask for each row", "left-pad odd-heads mask-rows", inside, batch=3, time=8, kind="left"),
        _logits("att-right-padding", "heads6", "ATT-7", "padding after the text has no influence", "right-pad odd-heads mask-rows", RESULTS, batch=3, time=8, kind="right"),
        _logits("att-holes", "heads3", "ATT-7 ALI-4", "padding inside the text, visible to no query", "mask-hole odd-heads", RESULTS, batch=3, time=10, kind="holes"),
        _logits("att-padding-rows", "heads3", "ATT-8 NUM-5", "rows without real positions, in a batch with others: no NaN spreads", "padding-row odd-heads", RESULTS, batch=4, time=5, kind="padding row"),
        _logits("att-nan-from-padding", "layers4", "ATT-8 NUM-5", "left padding through four layers: results of padded queries must not reach real ones", "left-pad odd-heads padded-rows", RESULTS, is_real=[[0, 0, 0, 0, 1, 1], [0, 1, 1, 1, 1, 1]], token_ids=TEXT),
        _logits("att-24-bit-weights", "float24", "ATT-2 ATT-6", "weights with all 24 bits: keys, values and scores need them", "full-precision odd-heads", inside, batch=2, time=8),
        _call("att-no-mask", "ATT-12", "no mask: every position is real", "no-mask"),
        *(_call(f"att-mask-{dtype}", "ATT-11", f"the mask {words}", "mask-values left-pad", padding_mask=mask, mask_dtype=dtype) for dtype, words in taken),
        _call("att-mask-of-2", "ATT-11", "a mask is 0 or 1", refused, padding_mask=[[1] * 6, [1] * 5 + [2]], mask_dtype="int64"),
        _call("att-mask-of-a-third", "ATT-11", "a float mask has to be 0 or 1, too", refused, padding_mask=[[1.0] * 6, [1.0] * 5 + [0.3]], mask_dtype="float64"),
        _call("att-mask-negative", "ATT-11", "a mask value of -1 is neither 0 nor 1", refused, padding_mask=[[1] * 6, [1] * 5 + [-1]], mask_dtype="int64"),
        _call("att-mask-additive", "ATT-11", "an additive mask of 0 and -10000 is refused", refused, padding_mask=[[0.0] * 6, [0.0] * 5 + [-10000.0]], mask_dtype="float32"),
        _call("att-mask-short", "ATT-11", "a mask that is one column too short", f"{refused} mask-shape", padding_mask=[[1] * 5, [1] * 5], mask_dtype="int64"),
        _call("att-mask-long", "ATT-11", "a mask that is one column too long", f"{refused} mask-shape", padding_mask=[[1] * 7, [1] * 7], mask_dtype="int64"),
        _call("att-mask-of-one-row", "ATT-11", "a mask of one row is not broadcast", f"{refused} mask-shape", padding_mask=[[1] * 6], mask_dtype="int64"),
    ]  # fmt: skip


def mlp() -> list[Draft]:
    inside = ("layers.0.mlp*", *RESULTS)
    return [
        _logits("mlp-every-step", "heads3", "MLP-1 MLP-2 MLP-3", "every intermediate of a block", "gelu mlp-bias norms", inside, token_ids=TEXT),
        _logits("mlp-big", "big", "MLP-2", "inputs of GELU up to about ten: its two tails", "big gelu", inside, batch=2, time=8),
        _logits("mlp-width-29", "inner29", "MLP-3 CFG-3", "an inner width other than 4 D, and odd", "mlp-width", inside, batch=2, time=5),
        _logits("mlp-width-1", "inner1", "MLP-3 CFG-1", "an inner width of one", "mlp-width", inside, batch=1, time=5),
        _logits("mlp-24-bit-weights", "float24", "MLP-2 MLP-3", "weights with all 24 bits, which show a GELU from a table", "full-precision gelu", inside, batch=1, time=6),
    ]  # fmt: skip


def model() -> list[Draft]:
    return [
        _logits("mod-everything", "heads3", "MOD-2 MOD-4 MOD-5 MOD-8", "every intermediate of two layers, with left padding", "left-pad odd-heads layers weights", ALL, is_real=[[0, 0, 1, 1, 1], [1] * 5], token_ids=[[3, 3, 7, 9, 2], [5, 8, 1, 9, 4]]),
        _logits("mod-no-layers", "layers0", "MOD-2", "a model without layers", "no-layers", ALL, batch=1, time=4),
        _logits("mod-four-layers", "layers4", "MOD-2", "four layers with different weights", "layers odd-heads", ("*_block", *RESULTS), batch=2, time=6),
        _logits("mod-one-position", "heads6", "MOD-2", "one token", "odd-heads", RESULTS, batch=1, time=1),
        _logits("mod-post-norm", "post", "MOD-3 ATT-10 MLP-4", "the residual is the normalised input, in both blocks", "post-ln", ("*_block", *RESULTS), batch=2, time=6),
        _logits("mod-pre-norm", "plain", "MOD-3 ATT-10 MLP-4", "the residual is the block's input, in both blocks", "residual", ("*_block", *RESULTS), batch=2, time=6),
        _logits("mod-untied", "untied", "MOD-6 WGT-1", "an untied LM head", "untied", RESULTS, batch=2, time=6),
        _logits("mod-tied", "heads3", "MOD-5 MOD-6", "the embedding is the head, without a bias", "head", RESULTS, batch=2, time=6),
        _logits("mod-untied-post-norm", "both", "MOD-3 MOD-6", "untied LM head and post-layernorm residual", "untied post-ln", RESULTS, batch=1, time=7),
        _logits("mod-rows", "heads5", "MOD-9", "six rows, two of which differ in one token only: no row depends on another", "mask-rows odd-heads", RESULTS, kind="left", token_ids=[[7, 3, 22, 0, 11, 5], [7, 3, 22, 0, 11, 6], [1, 1, 1, 1, 1, 1], [0, 0, 0, 9, 8, 7], [0, 2, 4, 6, 8, 10], [20, 21, 22, 19, 18, 17]], is_real=[[1] * 6, [1] * 6, [0, 0, 0, 0, 0, 1], [0, 0, 0, 1, 1, 1], [0, 1, 1, 1, 1, 1], [1] * 6]),
        _logits("mod-24-bit-weights", "float24", "MOD-5 NUM-2", "logits and hidden states of a float32 model are not rounded to 16 bits", "full-precision odd-heads", RESULTS, batch=2, time=5),
        _logits("mod-sharded", "heads6", "MOD-3 MOD-5", "six heads: a model split over two or three devices must give the same result", "sharding odd-heads", ALL, batch=1, time=3),
    ]  # fmt: skip


def cache() -> list[Draft]:
    return [
        _pieces("kvc-prompt-and-step", "plain", "KVC-2 KVC-7", "a prompt of five, then one token", (5,), batch=2, time=6),
        _pieces("kvc-one-by-one", "heads3", "KVC-1 KVC-7", "token by token", tuple(range(1, 8)), "odd-heads", batch=2, time=8),
        _pieces("kvc-chunks", "heads6", "KVC-2 KVC-7", "chunks of three, four and two: a later chunk is causal in itself", (3, 7), "odd-heads causal", batch=2, time=9),
        _pieces("kvc-spare-room", "heads5", "KVC-2 KVC-6", "a cache with nine unused columns, which are not visible", (4, 5), "odd-heads cache-length", spare=9, batch=1, time=7),
        _pieces("kvc-left-padding", "heads3", "KVC-3 ALI-4", "later calls use the mask of the prompt", (6, 7), "left-pad odd-heads", kind="left", is_real=[[0, 0, 0, 1, 1, 1, 1, 1], [0, 1, 1, 1, 1, 1, 1, 1]], token_ids=[[3, 3, 3, 7, 9, 2, 14, 6], [3, 8, 1, 9, 9, 4, 0, 12]]),
        _pieces("kvc-padding-in-pieces", "layers4", "KVC-3 KVC-7", "the first calls are all padding", (2, 3, 5), "left-pad odd-heads", kind="left", is_real=[[0, 0, 0, 1, 1, 1], [1] * 6], token_ids=TEXT),
        _pieces("kvc-two-layers-sharp", "sharp", "KVC-7 KVC-8", "each layer has a separate cache, with keys and values in full precision", (4, 6), "sharp", batch=1, time=8),
        _pieces("kvc-264-positions", "distance", "KVC-7 ALI-4", "a step at position 263: ALiBi counts columns, not those of the call", (262, 263), "long distance odd-heads", batch=1, time=264),
        _pieces("kvc-24-bit-weights", "float24", "KVC-7 NUM-2", "the cache of a float32 model is float32", (3, 4), "full-precision odd-heads", batch=2, time=6),
        _pieces("kvc-holes", "heads6", "KVC-3 ALI-4", "a hole before the step keeps its column", (6,), "mask-hole odd-heads", kind="holes", is_real=[[1, 1, 0, 0, 1, 1, 1, 1]], token_ids=[[3, 9, 1, 4, 8, 2, 6, 10]]),
    ]  # fmt: skip
