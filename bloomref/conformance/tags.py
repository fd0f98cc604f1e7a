"""Tags of a case: what makes it difficult. A closed list: waivers name tags, reports count them."""

from collections.abc import Callable
from dataclasses import dataclass

from bloomref.conformance.cases import Case


@dataclass(frozen=True)
class Tag:
    """A kind of case.

    Args:
        applies: True for cases that have the tag.
        note: description of such a case, and of the mistakes that it shows.
    """

    applies: Callable[[Case], bool]
    note: str


TAGS: dict[str, Tag] = {
    "left-pad": Tag(
        lambda c: c.kind == "left", "padding before the text; it must be invisible and must not shift positions"
    ),
    "right-pad": Tag(lambda c: c.kind == "right", "padding after the text"),
    "mask-hole": Tag(
        lambda c: c.kind == "holes", "padding inside the text keeps its position (ALI-4); some libraries delete it"
    ),
    "padding-row": Tag(lambda c: c.kind == "padding row", "a row that is all padding must not affect the other rows"),
    "odd-heads": Tag(
        lambda c: bool(c.config.num_heads & (c.config.num_heads - 1)),
        "a head count that is not a power of two (slopes of ALI-2)",
    ),
    "long": Tag(
        lambda c: c.time > 256,
        "more than 256 positions: 8 bits cannot count them, and 16 bits round slope times position",
    ),
    "eps-sensitive": Tag(lambda c: c.embedding_std <= 1e-2, "embeddings whose variance is below epsilon"),
    "offset": Tag(
        lambda c: c.offset >= 30.0,
        "means that are much larger than the spread: layer norm must subtract the mean before it squares",
    ),
    "epsilon": Tag(lambda c: c.config.layer_norm_epsilon != 1e-5, "an epsilon other than 1e-5"),
    "sharp": Tag(
        lambda c: c.qk_gain >= 6.0,
        "scores so large that a finite mask value, instead of minus infinity, changes the result",
    ),
    "big": Tag(
        lambda c: c.gain > 1.0, "activations outside the linear part of GELU, or near the range of a 16-bit dtype"
    ),
    "post-ln": Tag(lambda c: c.config.apply_residual_connection_post_layernorm, "post-layernorm residual (MOD-3)"),
    "untied": Tag(lambda c: not c.config.tie_word_embeddings, "an untied LM head (MOD-6)"),
    "mlp-width": Tag(lambda c: c.config.intermediate_dim != 4 * c.config.hidden_dim, "an MLP width other than 4 D"),
    "no-layers": Tag(lambda c: c.config.num_layers == 0, "a model without layers: embedding, norms and head"),
    "lora": Tag(lambda c: c.lora is not None, "a LoRA adapter"),
    "pieces": Tag(lambda c: bool(c.cuts), "several calls over a cache"),
}


def tags_of(case: Case) -> frozenset[str]:
    """Tags that follow from the case's parameters, and its own `flags`."""
    return frozenset(name for name, tag in TAGS.items() if tag.applies(case)) | case.flags
