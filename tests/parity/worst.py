"""Prints the figures of docs/parity.md. Run it in tests/:

python -m parity.worst transformers
python -m parity.worst keras
"""

import sys
from collections.abc import Callable
from dataclasses import replace

import numpy as np
from parity import compare
from parity.cases import ParityCase, case, case_of, with_holes

from bloomref.config import BloomConfig

SEEDS = range(240)
LENGTHS = (30, 300, 600)


def config(num_heads: int, head_dim: int) -> BloomConfig:
    width = num_heads * head_dim
    return BloomConfig(
        vocabulary_size=61, num_layers=2, num_heads=num_heads, hidden_dim=width, intermediate_dim=4 * width
    )


def against_transformers() -> None:
    from parity import hugging_face

    def run(drawn: ParityCase, way: Callable[..., compare.Arrays] = hugging_face.whole) -> compare.Arrays:
        return way(hugging_face.build(drawn.config, drawn.params), drawn)

    with hugging_face.in_float64():
        for label, ours, theirs in (
            ("one pass", compare.whole, hugging_face.whole),
            ("cached", compare.pieces, hugging_face.pieces),
        ):
            report_worst(
                label, lambda drawn, f=ours, g=theirs: compare.differences(f(drawn), run(drawn, g), drawn.is_real)
            )
        report_holes("transformers", lambda drawn: run(drawn)["logits"])
    report_unpatched(run)
    for dtype in ("bfloat16", "float16"):
        report_16_bits(dtype)


def report_worst(label: str, measure: Callable[[ParityCase], dict[str, float]]) -> None:
    worst: dict[str, tuple[float, int]] = {}
    for seed in SEEDS:
        for name, value in measure(case(seed)).items():
            kind = name.rsplit(".", 1)[-1]
            worst[kind] = max(worst.get(kind, (0.0, seed)), (value, seed))
    for kind, (value, seed) in worst.items():
        print(f"float64 {label:9s} {kind:16s} {value:.1e} (seed {seed})")


def report_unpatched(run: Callable[[ParityCase], compare.Arrays]) -> None:
    values = []
    for seed in SEEDS:
        drawn = case(seed)
        if drawn.padding in ("real", "right"):
            values.append(compare.differences(compare.whole(drawn), run(drawn), drawn.is_real)["logits"])
    print(f"transformers as installed, dtype float64, logits: {min(values):.1e} ... {max(values):.1e}")


def report_holes(peer: str, logits: Callable[[ParityCase], np.ndarray]) -> None:
    """The peer's answer to a text with holes, against bloomref's to it, and to the text without the masked tokens."""
    holed, apart = [], []
    for num_heads in (3, 12):
        drawn = with_holes(case_of(4, config(num_heads, 4), batch=3, time=14, padding="real"))
        theirs, ours = logits(drawn), compare.whole(drawn)["logits"]
        for row, real in enumerate(drawn.is_real):
            ids = drawn.token_ids[row][real][None]
            deleted = replace(drawn, token_ids=ids, is_real=np.ones_like(ids, bool), pieces=(ids.size,))
            holed.append(compare.relative(ours[row][real], theirs[row][real]))
            apart.append(compare.relative(compare.whole(deleted)["logits"][0], theirs[row][real]))
    print(f"holes, {peer} - bloomref, same text:      {min(holed):.1e} ... {max(holed):.1e}")
    print(f"holes, {peer} - bloomref, tokens deleted: {min(apart):.1e} ... {max(apart):.1e}")


def report_16_bits(dtype: str) -> None:
    import torch
    from parity import hugging_face

    def errors(drawn: ParityCase) -> tuple[float, float]:
        theirs = hugging_face.whole(hugging_face.build(drawn.config, drawn.params, getattr(torch, dtype)), drawn)
        pair = (compare.whole(drawn, dtype)["logits"], theirs["logits"])
        truth = compare.whole(drawn)["logits"]
        ours, other = (compare.rms_error(logits[drawn.is_real], truth[drawn.is_real]) for logits in pair)
        return ours, other

    ratios = [ours / theirs for ours, theirs in (errors(case(seed)) for seed in range(0, 60, 3))]
    print(f"{dtype}, 20 drawn cases, logits: rms error of bloomref / of transformers at most {max(ratios):.2f}")
    for time in LENGTHS:
        ours, theirs = errors(case_of(6, config(16, 4), batch=1, time=time, padding="real"))
        print(f"{dtype}, 16 heads, T = {time}: rms error bloomref {ours:.2%}, transformers {theirs:.2%}")


def against_keras_hub() -> None:
    from parity import keras_hub_peer

    peers: dict[BloomConfig, keras_hub_peer.Peer] = {}

    def logits(drawn: ParityCase) -> np.ndarray:
        if drawn.config not in peers:
            peers[drawn.config] = keras_hub_peer.Peer(drawn.config, drawn.params)
        return peers[drawn.config].logits(drawn)

    for time in (13, 270):
        for padding in ("real", "right", "left", "mixed", "holes"):
            drawn = case_of(4, config(12, 4), batch=3, time=time, padding="real" if padding == "holes" else padding)
            drawn = with_holes(drawn) if padding == "holes" else drawn
            truth, at = compare.whole(drawn)["logits"], drawn.is_real
            pair = (logits(drawn), compare.whole(drawn, "float32")["logits"])
            theirs, ours = (compare.rms_error(result[at], truth[at]) for result in pair)
            print(f"float32 T = {time:3d} {padding:6s} rms error: KerasHub {theirs:.1e}, bloomref {ours:.1e}")
    report_holes("KerasHub", logits)


if __name__ == "__main__":
    {"transformers": against_transformers, "keras": against_keras_hub}[sys.argv[1]]()
