"""Writes the golden files that come from transformers, in float64. Run it in tests/, where transformers is installed:

python -m golden.make_golden_transformers
"""

import numpy as np
from golden import files
from parity import hugging_face
from parity.cases import ParityCase, case_of, with_holes

from bloomref.config import BloomConfig

COMMAND = "cd tests && python -m golden.make_golden_transformers"
PATCH = "transformers' softmax and ALiBi slopes, float32 in a float64 model, are lifted to float64"
LAST_OF_LONG = 258


def config(num_heads: int, head_dim: int, num_layers: int = 2, **changes: object) -> BloomConfig:
    width = num_heads * head_dim
    sizes = {"vocabulary_size": 17, "num_layers": num_layers, "num_heads": num_heads, "hidden_dim": width}
    return BloomConfig(**sizes, intermediate_dim=4 * width, **changes)


def cases() -> dict[str, ParityCase]:
    post = {"apply_residual_connection_post_layernorm": True}
    return {
        "transformers_no_mask": case_of(30, config(5, 2), 2, 8, "real"),
        "transformers_left": case_of(31, config(3, 4), 2, 8, "left"),
        "transformers_right": case_of(32, config(9, 1, 3), 2, 8, "right"),
        "transformers_untied": case_of(33, config(6, 2, tie_word_embeddings=False), 3, 7, "mixed"),
        "transformers_post_layernorm": case_of(34, config(3, 4, layer_norm_epsilon=1e-3, **post), 3, 7, "mixed"),
        "transformers_post_layernorm_12_heads": case_of(35, config(12, 1, **post), 2, 8, "left"),
        "transformers_long": case_of(36, config(12, 1, 1), 3, LAST_OF_LONG, "mixed"),
        "transformers_hole": with_holes(case_of(37, config(3, 4), 2, 9, "real")),
    }


def main() -> None:
    for name, case in cases().items():
        time = case.token_ids.shape[1]
        positions = np.unique(np.linspace(0, time - 1, 10).round().astype(int)) if time > 10 else np.arange(time)
        model = hugging_face.build(case.config, case.params)
        with hugging_face.in_float64():
            expected, cached = hugging_face.whole(model, case), hugging_face.pieces(model, case)
        last = {key: cached[key] for key in ("final_norm", "logits")}
        facts = {"peer": "transformers", "versions": files.versions(("transformers", "torch", "numpy"))}
        files.write(name, case, positions, expected, last, command=COMMAND, dtype="float64", patch=PATCH, **facts)


if __name__ == "__main__":
    main()
