"""Flags: what a case is there to show. A closed list; a waiver names them, a report counts them."""

from collections.abc import Callable
from dataclasses import dataclass

from bloomref.conformance.cases import Case


@dataclass(frozen=True)
class Flag:
    """When a case carries it, and which mistakes show there."""

    applies: Callable[[Case], bool]
    note: str


FLAGS: dict[str, Flag] = {
    "left-pad": Flag(
        lambda c: c.kind == "left", "padding before the text: it must neither be seen nor shift positions"
    ),
    "right-pad": Flag(lambda c: c.kind == "right", "padding behind the text"),
    "mask-hole": Flag(
        lambda c: c.kind == "holes", "padding inside the text keeps its column (ALI-4); others delete it"
    ),
    "padding-row": Flag(lambda c: c.kind == "padding row", "a row without a real position must not spoil the others"),
    "odd-heads": Flag(lambda c: bool(c.config.num_heads & (c.config.num_heads - 1)), "the slopes of ALI-2"),
    "long": Flag(lambda c: c.time > 256, "positions that 8 bits, and in 16-bit types slopes times them, cannot hold"),
    "eps-sensitive": Flag(lambda c: c.embedding_std <= 1e-2, "embeddings whose variance is below epsilon"),
    "epsilon": Flag(lambda c: c.config.layer_norm_epsilon != 1e-5, "an epsilon other than the usual one"),
    "sharp": Flag(lambda c: c.qk_gain >= 6.0, "scores so large that a finite number in place of minus infinity shows"),
    "big": Flag(lambda c: c.gain > 1.0, "activations beyond the middle of GELU and of a 16-bit range"),
    "post-ln": Flag(lambda c: c.config.apply_residual_connection_post_layernorm, "the other residual form (MOD-3)"),
    "untied": Flag(lambda c: not c.config.tie_word_embeddings, "a head of its own (MOD-6)"),
    "mlp-width": Flag(lambda c: c.config.intermediate_dim != 4 * c.config.hidden_dim, "an MLP of another width"),
    "no-layers": Flag(lambda c: c.config.num_layers == 0, "nothing but embedding, norms and head"),
    "lora": Flag(lambda c: c.lora is not None, "a LoRA adapter on the model"),
    "pieces": Flag(lambda c: bool(c.cuts), "a run in pieces over a cache"),
}


def flags_of(case: Case) -> frozenset[str]:
    """The flags that its numbers carry, and those that it was given."""
    return frozenset(name for name, flag in FLAGS.items() if flag.applies(case)) | case.flags
