"""Prove error bounds of the float64 reference on small models: `cd tests && python -m conformance.certify`."""

from conformance.ball_arithmetic import enclose

from bloomref.config import BloomConfig
from bloomref.conformance.cases import Case
from bloomref.conformance.oracle.truth import truth

PROMISED = 1e-13
"""Largest error of every named intermediate, relative to its largest magnitude (NUM-7)."""


def small(heads, head_dim, layers, time, kind="real", gain=1.0, qk_gain=1.0, **changes):
    width = heads * head_dim
    sizes = {"vocabulary_size": 17, "num_layers": layers, "num_heads": heads, "hidden_dim": width}
    config = BloomConfig(**{**sizes, "intermediate_dim": 3 * width + 1, **changes})
    batch = 2 if kind != "real" else 1
    return Case(config, seed=heads, batch=batch, time=time, kind=kind, gain=gain, qk_gain=qk_gain)


CASES = {
    "1 head, width 2": small(1, 2, 1, 5),
    "2 heads, left padding": small(2, 4, 2, 9, "left"),
    "3 heads, right padding": small(3, 5, 2, 9, "right"),
    "5 heads, holes": small(5, 3, 2, 9, "holes"),
    "6 heads, a row of padding": small(6, 4, 2, 8, "padding row"),
    "12 heads, post-layernorm residual": small(12, 2, 2, 10, apply_residual_connection_post_layernorm=True),
    "16 heads, untied LM head": small(16, 2, 1, 10, tie_word_embeddings=False),
    "24 heads, both of these": small(
        24, 1, 2, 6, "holes", tie_word_embeddings=False, apply_residual_connection_post_layernorm=True
    ),
    "3 heads, 5 layers": small(3, 4, 5, 7),
    "3 heads, 40 positions": small(3, 4, 1, 40),
    "4 heads, weights x 4": small(4, 4, 2, 8, gain=4.0),
    "3 heads, query and key x 8": small(3, 4, 2, 12, qk_gain=8.0),
    "3 heads, epsilon 1e-12": small(3, 4, 2, 8, layer_norm_epsilon=1e-12),
    "no layer": small(2, 4, 0, 4),
}


def certificate(case):
    """Return (proven errors by name, errors estimated with longdouble by name, bits of precision)."""
    reference = truth(case)
    proven, bits = enclose(case, reference.values)
    return proven, reference.self_error, bits


def main():
    print("| model | worst intermediate | proven error | logits: proven | logits: estimated | bits |")
    print("|---|---|---|---|---|---|")
    for name, case in CASES.items():
        proven, estimated, bits = certificate(case)
        worst = max(proven, key=proven.get)
        logits = f"{proven['logits']:.1e} | {estimated['logits']:.1e}"
        print(f"| {name} | `{worst}` | {proven[worst]:.1e} | {logits} | {bits} |", flush=True)


if __name__ == "__main__":
    main()
