"""A small case that shows each mistake."""

from bloomref.config import BloomConfig
from bloomref.conformance.cases import Case
from bloomref.conformance.lora_cases import Lora
from bloomref.conformance.mistakes.mistake import Mistake
from bloomref.formats.adapters.peft_config import EMBEDDING, LINEARS

CONFIG = BloomConfig(vocabulary_size=11, num_layers=2, num_heads=6, hidden_dim=30, intermediate_dim=50)


def example(mistake: Mistake, seed: int = 0) -> Case:
    """Return a case with the needs of a mistake, and otherwise ordinary."""
    needs = mistake.needs
    config = CONFIG.replace(
        num_heads=10 if "odd-heads" in needs else 6,
        layer_norm_epsilon=1e-3 if "epsilon" in needs else 1e-5,
        apply_residual_connection_post_layernorm="post-ln" in needs,
        tie_word_embeddings="untied" not in needs,
    )
    return Case(
        config,
        seed=seed,
        batch=1 if "long" in needs else 3,
        time=300 if "long" in needs else 12,
        kind=_kind(needs),
        qk_gain=60.0 if "sharp" in needs else 1.0,
        embedding_std=2e-3 if "eps-sensitive" in needs else 1.0,
        offset=100.0 if "offset" in needs else 0.0,
        cuts=(5, 8, 9, 10, 11) if "pieces" in needs else (),
        name=mistake.name,
        lora=_adapter(needs) if "lora" in needs else None,
    )


def _adapter(needs: frozenset[str]) -> Lora:
    if "lora-heads" in needs:
        return Lora(("query_dense", "value_dense", "output_dense"), form="keras")
    return Lora(
        (*LINEARS, EMBEDDING) if "lora-embedding" in needs else LINEARS,
        rslora="rslora" in needs,
        dropout=0.5,
        ranks=(("dense", 2),),
        alphas=(("dense_h_to_4h", 3.0),),
    )


def _kind(needs: frozenset[str]) -> str:
    if "mask-hole" in needs:
        return "holes"
    return "left" if needs & {"left-pad", "padding"} else "real"
