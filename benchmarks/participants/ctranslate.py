"""CTranslate2, whose generator takes a prompt and returns tokens: a callback reports the time of each token.

Its converter drops `layer_norm_epsilon` and the post-layernorm residual; the presets have the values that it assumes.
On AMD processors it does not use MKL by default. With CT2_USE_MKL=1, on six layers, 16 rows decode 2.5 times as fast
and one row 0.6 times as fast.
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
        """Generate `steps + 1` tokens greedily; the first one belongs to the prefill."""
        times: list[float] = []

        def record_time(result: Any) -> bool:
            if result.batch_id == len(ids) - 1:
                times.append(perf_counter())
            return False

        began = perf_counter()
        self.model.generate_batch(
            _names(ids),
            max_length=steps + 1,
            min_length=steps + 1,
            include_prompt_in_result=False,
            callback=record_time,
        )
        assert len(times) == steps + 1, f"{len(times)} tokens were generated, not {steps + 1}"
        return times[0] - began, (times[-1] - times[0]) / max(steps, 1)


def _names(ids: Any) -> list[list[str]]:
    return [[NAMES[i] if i < len(NAMES) else f"t{i}" for i in row] for row in ids.tolist()]
