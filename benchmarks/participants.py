"""Who takes part in `benchmarks.run`, and how each loads the model, reads a prompt and decodes."""

import importlib.util
from collections.abc import Callable
from pathlib import Path
from time import perf_counter
from typing import Any, Protocol

import numpy as np

from benchmarks.machine import blas_info

ALL = ("numba", "numpy", "transformers", "llama.cpp")
_MODULES = {"numba": "numba", "transformers": "transformers", "llama.cpp": "llama_cpp"}
PROMPT = 32
DECODED = 16


class Participant(Protocol):
    """One loaded model."""

    def last_logits(self, ids: Any) -> Any:
        """Logits (B, V) behind prompts (B, T); starts anew."""

    def decode(self, ids: Any) -> None:
        """Read one more token of each row, (B, 1), behind what was read; compute its logits."""


def present(names: list[str], dtype: str) -> tuple[list[str], dict[str, str]]:
    """Who can take part, and why the others cannot."""
    absent = {
        n: f"{_MODULES[n]} is not installed"
        for n in names
        if n in _MODULES and not importlib.util.find_spec(_MODULES[n])
    }
    if dtype == "bfloat16" and "numpy" in names:
        absent["numpy"] = "the reference widens bfloat16 weights at every step: it is no contestant"
    return [name for name in names if name not in absent], absent


def can(name: str, what: str, size: int) -> bool:
    """llama.cpp is timed through its single-sequence interface; the reference is left out of batched decoding."""
    return not (what == "decode" and size > 1 and name in ("llama.cpp", "numpy"))


def write_model(preset: str, dtype: str, folder: Path, longest: int) -> Any:
    """Random weights at the preset's sizes, and prompts; returns the reference's last logits in float32."""
    from bloomref.backbone import BloomBackbone
    from bloomref.dtypes import floating_dtype
    from bloomref.formats import hf
    from bloomref.params import init_params
    from bloomref.presets.registry import PRESETS

    config = PRESETS[preset].config
    params = init_params(config, seed=0).astype(floating_dtype(dtype))
    hf.save(folder / "model", config, params)
    ids = np.random.default_rng(1).integers(0, config.vocabulary_size, (16, longest))
    np.save(folder / "ids.npy", ids)
    model = BloomBackbone.from_params(config, params, "float32")
    return model.engine.logits(model({"token_ids": ids[:1, :PROMPT]})[:, -1:])[0, 0]


def weight_bytes(preset: str, dtype: str) -> int:
    from bloomref.params import count_params
    from bloomref.presets.registry import PRESETS

    return count_params(PRESETS[preset].config) * (2 if dtype == "bfloat16" else 4)


def start(name: str, folder: Path, dtype: str, serve: Callable[..., None]) -> None:
    """The child's side: load, then answer `logits`, `prefill`, `decode` and `blas`."""
    loaders = {"numba": _bloomref, "numpy": _bloomref, "transformers": _transformers, "llama.cpp": _llama}
    model: Participant = loaders[name](folder, dtype, name)
    ids = np.load(folder / "ids.npy")

    def answer(request: dict[str, Any]) -> dict[str, Any]:
        if request["what"] == "blas":
            return {"blas": blas_info()}
        if request["what"] == "logits":
            np.save(request["file"], np.asarray(model.last_logits(ids[:1, :PROMPT]), np.float32)[0])
            return {"file": request["file"]}
        if request["what"] == "prefill":
            began = perf_counter()
            model.last_logits(ids[:1, : request["size"]])
            return {"seconds": perf_counter() - began}
        model.last_logits(ids[: request["size"], :PROMPT])
        began = perf_counter()
        for _ in range(DECODED):
            model.decode(ids[: request["size"], :1])
        return {"seconds": (perf_counter() - began) / DECODED}

    serve(answer)


class _Bloomref:
    def __init__(self, folder: Path, dtype: str, backend: str) -> None:
        from bloomref.backbone import BloomBackbone

        self.engine = BloomBackbone.from_preset(folder / "model", dtype=dtype, backend=backend).engine

    def last_logits(self, ids: Any) -> Any:
        self.cache = self.engine.new_cache(ids.shape[0], ids.shape[1] + DECODED)
        self.position = ids.shape[1]
        return self.engine.next_logits(self.engine.run(self.cache, 0, ids))

    def decode(self, ids: Any) -> None:
        self.engine.next_logits(self.engine.run(self.cache, self.position, ids))
        self.position += 1


def _bloomref(folder: Path, dtype: str, name: str) -> Participant:
    return _Bloomref(folder, dtype, name)


class _Transformers:
    def __init__(self, folder: Path, dtype: str) -> None:
        import torch
        from transformers import BloomForCausalLM

        self.torch = torch
        self.model = BloomForCausalLM.from_pretrained(folder / "model", dtype=getattr(torch, dtype)).eval()

    def _call(self, ids: Any, past: Any) -> Any:
        with self.torch.inference_mode():
            out = self.model(self.torch.from_numpy(ids), past_key_values=past, use_cache=True, logits_to_keep=1)
        self.past = out.past_key_values
        return out.logits[:, -1].float().numpy()

    def last_logits(self, ids: Any) -> Any:
        return self._call(ids, None)

    def decode(self, ids: Any) -> None:
        self._call(ids, self.past)


def _transformers(folder: Path, dtype: str, _name: str) -> Participant:
    return _Transformers(folder, dtype)


class _Llama:
    def __init__(self, file: Path) -> None:
        import llama_cpp

        self.model = llama_cpp.Llama(
            str(file), n_ctx=2304, n_batch=512, n_ubatch=512, n_threads=2, n_threads_batch=2, verbose=False
        )

    def last_logits(self, ids: Any) -> Any:
        self.model.reset()
        self.model.eval([int(i) for i in ids[0]])
        return np.array(self.model._ctx.get_logits()[: self.model.n_vocab()])[None]

    def decode(self, ids: Any) -> None:
        self.model.eval([int(ids[0, 0])])


def _llama(folder: Path, dtype: str, _name: str) -> Participant:
    from benchmarks.gguf_file import write_gguf

    file = folder / "model.gguf"
    write_gguf(folder / "model", file, dtype)
    return _Llama(file)
