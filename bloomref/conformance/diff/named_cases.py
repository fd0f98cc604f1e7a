"""Cases that a command line names: random models, presets, test vectors, and cases of the kit."""

from bloomref.config import MAX_LAYERS, MAX_SIZE, BloomConfig
from bloomref.conformance.cases import MASKS, Arrays, Case
from bloomref.conformance.lora_cases import Lora
from bloomref.conformance.vectors.read import locate, read
from bloomref.dtypes import floating_dtype
from bloomref.errors import InvalidInput, invalid
from bloomref.formats.adapters.peft_config import LINEARS
from bloomref.validation import check_integer, did_you_mean


def random_config(
    heads: int, head_dim: int, layers: int, vocabulary: int, post_layernorm: bool = False, untied: bool = False
) -> BloomConfig:
    """Return the config of a random model, with an MLP of 4 D.

    Raises:
        InvalidInput: a size is too large, by the name of its argument.
    """
    check_integer("heads", heads, 1, MAX_SIZE // 4)
    check_integer("head_dim", head_dim, 1, MAX_SIZE // (4 * heads))
    check_integer("layers", layers, 0, MAX_LAYERS)
    check_integer("vocabulary", vocabulary, 1, MAX_SIZE)
    return BloomConfig(
        vocabulary_size=vocabulary,
        num_layers=layers,
        num_heads=heads,
        hidden_dim=heads * head_dim,
        intermediate_dim=4 * heads * head_dim,
        apply_residual_connection_post_layernorm=post_layernorm,
        tie_word_embeddings=not untied,
    )


def check_mask(kind: str) -> None:
    """Refuse a kind of mask that the kit does not know."""
    if kind not in MASKS:
        raise invalid("mask", f"one of {', '.join(MASKS)}", repr(kind), did_you_mean(kind, MASKS))


def random_adapter(rank: int, targets: str) -> Lora | None:
    """Return a LoRA adapter; None for rank 0.

    Args:
        targets: names of PEFT modules, separated by commas; "": every linear layer.
    """
    names = tuple(name.strip() for name in targets.split(",") if name.strip()) or LINEARS
    return Lora(names, rank=rank) if rank else None


def case_of_vector(name: str) -> Case:
    """Return the model and the input of a test vector.

    Raises:
        InvalidInput: no vector has this id, or it is not about a model and an input; Unsupported: no vectors here.
    """
    vectors = {vector.id: vector for vector in read(locate())}
    if name not in vectors:
        hint = did_you_mean(name, vectors, 3) or "specs/vectors lists them"
        raise invalid("vector", "the id of a test vector", repr(name), hint)
    if "model" not in vectors[name].entry:
        raise invalid("vector", "a vector with a model and an input", repr(name), "bloomref vectors asks all")
    return vectors[name].case


def case_of_model(model: str, token_ids: list[int], dtypes: tuple[str, ...], revision: str | None = None) -> Case:
    """Return a case with the weights of a preset or model folder, and the token ids as its only row.

    Args:
        dtypes: of all operands; the weights are rounded to each, so that every operand computes with the same ones.

    Raises:
        InvalidInput: there are no token ids, or one is outside the vocabulary; and what loading the model raises.
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
    stored = Arrays(params.astype(floating_dtype("float64")), batch.token_ids, batch.is_real)
    return Case(backbone.config, batch=1, time=len(token_ids), name=model, arrays=stored)
