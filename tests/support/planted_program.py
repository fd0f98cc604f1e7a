"""A BLOOM that speaks the program protocol, with a bug that can be planted: `python planted_program.py --plant NAME`.

It answers every request of specs/97-program-protocol.md but `step` and `tokens`, in float32 and float64. Its cache,
softmax and adapters are its own, so that bugs of ports can be planted in them.
"""

import argparse
import json
import math
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import load_file, save_file

from bloomref.config import BloomConfig
from bloomref.conformance.model.instrumented import EXACT, InstrumentedCache, InstrumentedModel
from bloomref.errors import BadWeights, InvalidInput, Unsupported
from bloomref.lora import adapter_files
from bloomref.lora.adapter import Adapter
from bloomref.params import HF_PREFIX, Params, full_key, keys
from bloomref.reference import lora, vjp

METHODS = ["logits", "hidden", "trace", "in_pieces", "trace_in_pieces", "loss_and_gradients", "call", "adapted"]


class Plain(InstrumentedModel):
    """No bug."""


class CacheStride(InstrumentedModel):
    """Reads the cache with the stride of the call, S, in place of its capacity, P."""

    def update_cache(
        self, cache: InstrumentedCache, start: int, key: np.ndarray, value: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray]:
        super().update_cache(cache, start, key, value)
        stop = start + key.shape[2]
        return self._read(cache.keys, stop), self._read(cache.values, stop)

    def _read(self, stored: np.ndarray, stop: int) -> np.ndarray:
        batch, heads, _, width = stored.shape
        return stored.reshape(-1, width)[: batch * heads * stop].reshape(batch, heads, stop, width)


class MaximumOverHidden(InstrumentedModel):
    """Subtracts the maximum over all keys, hidden ones too, before the exponential."""

    def softmax(self, scores: np.ndarray, visible: np.ndarray) -> np.ndarray:
        powers = np.where(visible, np.exp(scores - scores.max(axis=-1, keepdims=True, initial=-math.inf)), 0.0)
        with np.errstate(invalid="ignore"):
            return np.where(visible.any(axis=-1, keepdims=True), powers / powers.sum(axis=-1, keepdims=True), 0.0)


class RankPattern(InstrumentedModel):
    """Divides alpha by the r of the adapter's config, also where `rank_pattern` has another rank."""

    def part(self, key: str, part: Any) -> Any:
        from dataclasses import replace

        part = super().part(key, part)
        own, r = part.a.shape[0], self.adapter.config.r
        return replace(part, scale=part.scale * (own / r))


class TiedGradient(InstrumentedModel):
    """Loses the head's part of the gradient of a tied embedding."""


class AliasedTrace(InstrumentedModel):
    """Adds the residual in place: all hidden states that it recorded are one array in the end."""

    def residual(self, x: np.ndarray, normed: np.ndarray, output: np.ndarray) -> np.ndarray:
        if self.config.apply_residual_connection_post_layernorm:
            return normed + output
        x += output
        return x


PLANTS: dict[str, type[InstrumentedModel]] = {
    "none": Plain,
    "cache-stride": CacheStride,
    "maximum-over-hidden": MaximumOverHidden,
    "rank-pattern": RankPattern,
    "tied-gradient": TiedGradient,
    "aliased-trace": AliasedTrace,
}


class Server:
    """The loaded model, and one method for each request."""

    def __init__(self, plant: str) -> None:
        self.kind = PLANTS[plant]
        self.model: InstrumentedModel | None = None

    def reply(self, request: Mapping[str, Any]) -> dict[str, Any]:
        """Answer one request; a refusal is a reply, too."""
        try:
            return self._answer(request)
        except (InvalidInput, Unsupported, BadWeights) as error:
            kind = next(k for k in (InvalidInput, Unsupported, BadWeights) if isinstance(error, k))
            return {"error": {"kind": kind.__name__, "message": str(error)}}

    def _answer(self, request: Mapping[str, Any]) -> dict[str, Any]:
        name = str(request["request"])
        if name == "hello":
            able = {"dtypes": ["float32", "float64"]}
            return {"protocol": 1, "name": "planted", "methods": METHODS, "capabilities": able}
        if name == "load":
            self.model = self._load(request)
            return {}
        answers: dict[str, Callable[..., dict[str, np.ndarray]]] = {
            "logits": self._trace,
            "hidden": lambda inputs, _: {"hidden": self._trace(inputs, {})["final_norm"]},
            "trace": self._trace,
            "in_pieces": self._trace,
            "loss_and_gradients": self._gradients,
            "call": self._call,
        }
        if name not in answers:
            raise Unsupported(f"it has no {name}")
        outputs = answers[name](load_file(request["inputs"]), request)
        save_file({key: np.ascontiguousarray(value) for key, value in outputs.items()}, request["outputs"])
        return {}

    def _load(self, request: Mapping[str, Any]) -> InstrumentedModel:
        config, dtype = BloomConfig.from_hf(request["config"]), np.dtype(request["dtype"])
        weights = {key.removeprefix(HF_PREFIX): value for key, value in load_file(request["weights"]).items()}
        adapter: Adapter | None = None
        if "adapter" in request:
            adapter = adapter_files.load(Path(request["adapter"]), "planted", config, np.dtype(np.float64))
        return self.kind(config, Params.from_named(config, weights), EXACT, dtype, adapter)

    def _run(self, ids: np.ndarray, real: np.ndarray, cuts: Sequence[int], capacity: int) -> dict[str, np.ndarray]:
        assert self.model is not None
        return self.model.run(ids, real, cuts, capacity)

    def _trace(self, inputs: Mapping[str, np.ndarray], request: Mapping[str, Any]) -> dict[str, np.ndarray]:
        cuts, capacity = request.get("cuts", []), request.get("capacity", 0)
        return self._run(inputs["token_ids"], inputs["is_real"].astype(bool), cuts, capacity)

    def _call(self, inputs: Mapping[str, np.ndarray], _: Mapping[str, Any]) -> dict[str, np.ndarray]:
        assert self.model is not None
        ids, real = self.model.accept(inputs["token_ids"], inputs.get("padding_mask"))
        return {"logits": self._run(ids, real, (), 0)["logits"]}

    def _gradients(self, inputs: Mapping[str, np.ndarray], _: Mapping[str, Any]) -> dict[str, np.ndarray]:
        assert self.model is not None
        config, params = self.model.config, self.model.params
        if lora.is_adapted(params):
            raise Unsupported("it has no gradients of adapters")
        arguments = (config, inputs["token_ids"], inputs["is_real"].astype(bool), inputs["labels"])
        result = vjp.loss_and_gradients(params, *arguments)
        gradients = dict(result.gradients)
        if self.kind is TiedGradient and config.tie_word_embeddings:
            lookup = np.zeros_like(gradients["word_embeddings.weight"])
            np.add.at(lookup, inputs["token_ids"], result.inputs)
            gradients["word_embeddings.weight"] = lookup
        shapes = {key: weight.hf_shape(config) for key, weight in keys(config)}
        named = {full_key(key): array.reshape(shapes[key]) for key, array in gradients.items()}
        return {"loss": np.array(result.loss, params.word_embedding.dtype)} | named


def main() -> None:
    """Serve requests until the input ends."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--plant", choices=[*PLANTS], default="none")
    server = Server(parser.parse_args().plant)
    for line in sys.stdin:
        print(json.dumps(server.reply(json.loads(line))), flush=True)


if __name__ == "__main__":
    main()
