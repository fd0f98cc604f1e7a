"""CTranslate2, whose generator takes a prompt and returns tokens: a callback tells when each one came.

Its converter keeps no `layer_norm_epsilon` and no residual after the norm; the presets have the values that it assumes.
On AMD processors it leaves MKL alone; with CT2_USE_MKL=1 16 rows decode 2.5 times as fast and one row 0.6 times, on six layers.
"""

import json
from pathlib import Path
from time import perf_counter
from typing import Any

from benchmarks.participants import protocol
from bloomref.conformance.adapters.ctranslate2 import SPECIAL, write_tokenizer

NAMES = tuple(SPECIAL.values())


def unsupported(dtype: str) -> str | None:
    import ctranslate2

    offered = sorted(ctranslate2.get_supported_compute_types("cpu"))
    return None if dtype in offered else f"on this processor it computes in {', '.join(offered)}, not in {dtype}"


def convert(folder: Path, dtype: str) -> None:
    from ctranslate2.converters import TransformersConverter

    source = folder / "ctranslate2_source"
    source.mkdir()
    for file in (folder / "model").iterdir():
        (source / file.name).symlink_to(file)
    write_tokenizer(source, json.loads((source / "config.json").read_text())["vocab_size"])
    TransformersConverter(str(source)).convert(str(folder / "ctranslate2"), quantization=dtype)


class Model(protocol.Model):
    def __init__(self, folder: Path, dtype: str, _name: str, threads: int) -> None:
        import ctranslate2

        self.model = ctranslate2.Generator(
            str(folder / "ctranslate2"), device="cpu", compute_type=dtype, inter_threads=1, intra_threads=threads
        )

    def logits(self, ids: Any) -> Any:
        import numpy as np

        return np.array(self.model.forward_batch(_names(ids)))[:, -1]

    def run(self, ids: Any, steps: int) -> tuple[float, float]:
        """Greedy tokens, one more than `steps`: the first comes with the prompt."""
        came: list[float] = []

        def note(result: Any) -> bool:
            if result.batch_id == len(ids) - 1:
                came.append(perf_counter())
            return False

        began = perf_counter()
        self.model.generate_batch(
            _names(ids),
            max_length=steps + 1,
            min_length=steps + 1,
            include_prompt_in_result=False,
            callback=note,
        )
        assert len(came) == steps + 1, f"{len(came)} tokens came, not {steps + 1}"
        return came[0] - began, (came[-1] - came[0]) / max(steps, 1)


def _names(ids: Any) -> list[list[str]]:
    return [[NAMES[i] if i < len(NAMES) else f"t{i}" for i in row] for row in ids.tolist()]
