"""A program that answers every request of the protocol with bloomref itself: `python protocol_server.py`."""

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np

from bloomref.config import BloomConfig
from bloomref.conformance.adapters.installed_backend import Backend
from bloomref.conformance.adapters.program import METHODS
from bloomref.errors import BloomrefError
from bloomref.formats.safetensors_io import SafetensorsFile, write_safetensors
from bloomref.runtime.backend import Choice

BACKEND = Backend("numpy")


def tensors(path: str) -> dict[str, np.ndarray]:
    file = SafetensorsFile(Path(path))
    return {name: file.view(name).copy() for name in file.entries}


def load(request: dict[str, Any]) -> Any:
    if request["request"] == "load_folder":
        return BACKEND.load_folder(Path(request["folder"]), request["dtype"])
    model = BACKEND.load(BloomConfig.from_hf(request["config"]), tensors(request["weights"]), request["dtype"])
    return model.adapted(Path(request["adapter"])) if "adapter" in request else model


def compute(model: Any, request: dict[str, Any]) -> dict[str, Any]:
    what, inputs = request["request"], tensors(request["inputs"])
    ids, real = inputs["token_ids"], inputs.get("is_real")
    calls = [request[name] for name in ("cuts", "capacity") if name in request]
    if what == "call":
        return {"logits": model.call(ids, inputs.get("padding_mask"))}
    if what == "trace":
        return dict(model.trace_in_pieces(ids, real, *calls) if calls else model.trace(ids, real))
    if what == "loss_and_gradients":
        loss, gradients = model.loss_and_gradients(ids, real, inputs["labels"])
        return {"loss": np.array([loss]), **gradients}
    if what == "step":
        return {"logits": model.step(ids, real, request["start"], request["capacity"])}
    if what == "tokens":
        forbidden = np.zeros(model.backbone.config.vocabulary_size, bool)
        forbidden[request["choice"]["forbidden"] or []] = True
        seeds = request["choice"]["seeds"] and np.array(request["choice"]["seeds"], np.uint64)
        choice = Choice(**{**request["choice"], "forbidden": forbidden, "seeds": seeds})
        return {"tokens": np.asarray(model.tokens(ids, real, choice, request["count"]), np.int64)}
    return {"hidden" if what == "hidden" else "logits": getattr(model, what)(ids, real, *calls)}


def answer(model: Any, request: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
    """Return the model after the request, and the reply."""
    what = request["request"]
    if what == "hello":
        able = {"dtypes": list(BACKEND.capabilities.dtypes), "adapters": ["peft", "keras"]}
        return model, {"protocol": 1, "name": "server", "methods": list(METHODS), "capabilities": able}
    if what in ("load", "load_folder"):
        return load(request), {}
    if what in ("merge", "unmerge"):
        return getattr(model, what)(), {}
    if what == "generate":
        return model, {"output": {"rows": model.generate(**request["input"])}}
    if what in BACKEND.answers:
        return model, {"output": BACKEND.answers[what](request["input"])}
    outputs = {name: np.ascontiguousarray(array) for name, array in compute(model, request).items()}
    write_safetensors(Path(request["outputs"]), outputs)
    return model, {}


if __name__ == "__main__":
    current = None
    for line in sys.stdin:
        try:
            current, reply = answer(current, json.loads(line))
        except BloomrefError as error:
            reply = {"error": {"kind": type(error).__name__, "message": str(error)}}
        print(json.dumps(reply), flush=True)
