"""Writes the golden files that come from KerasHub, in float32. Run it in tests/, where keras_hub is installed:

python -m golden.make_golden_keras
"""

import numpy as np
from golden import files
from parity import keras_hub_peer
from parity.cases import ParityCase, case_of, with_holes

from bloomref.config import BloomConfig

COMMAND = "cd tests && KERAS_BACKEND=jax python -m golden.make_golden_keras"


def cases() -> dict[str, ParityCase]:
    twelve = BloomConfig(vocabulary_size=31, num_layers=2, num_heads=12, hidden_dim=12, intermediate_dim=19)
    five = BloomConfig(vocabulary_size=23, num_layers=2, num_heads=5, hidden_dim=15, intermediate_dim=70)
    return {
        "keras_hub_right": case_of(40, twelve, 3, 11, "right"),
        "keras_hub_left": case_of(41, five, 3, 11, "left"),
        "keras_hub_hole": with_holes(case_of(42, twelve, 3, 11, "real")),
    }


def main() -> None:
    for name, case in cases().items():
        peer = keras_hub_peer.Peer(case.config, case.params)
        expected = {"final_norm": peer.hidden(case), "logits": peer.logits(case)}
        positions = np.arange(case.token_ids.shape[1])
        facts = {"peer": "KerasHub on JAX", "versions": files.versions(("keras-hub", "keras", "jax", "numpy"))}
        files.write(name, case, positions, expected, {}, command=COMMAND, dtype="float32", **facts)


if __name__ == "__main__":
    main()
