"""One participant of `benchmarks.finetune`: `python -m benchmarks.finetune_child NAME FOLDER DTYPE`."""

import resource
import sys
from collections.abc import Callable
from pathlib import Path
from time import perf_counter, process_time
from typing import Any

import numpy as np

from benchmarks.children import serve
from benchmarks.floors import cores
from benchmarks.machine import blas_info, versions

RATE = 1e-3


def main() -> None:
    name, folder, dtype = sys.argv[1:]
    step = {"bloomref": bloomref_step, "peft": peft_step}[name](Path(folder), dtype)

    def answer(request: dict[str, Any]) -> dict[str, Any]:
        if request["what"] == "step":
            began, processor = perf_counter(), process_time()
            loss = step()
            return {
                "loss": loss,
                "seconds": perf_counter() - began,
                "processor_seconds": process_time() - processor,
            }
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
        return {"peak_bytes": peak, "threads": blas_info(), "versions": versions(("torch", "transformers", "peft"))}

    serve(answer)


def bloomref_step(folder: Path, dtype: str) -> Callable[[], float]:
    from bloomref import BloomBackbone
    from bloomref.runtime import registry
    from bloomref.training.optimizer import AdamW
    from bloomref.training.packing import Batch
    from bloomref.training.settings import Settings
    from bloomref.training.trainable import trainable

    model = BloomBackbone.from_preset(folder / "model", dtype=dtype)
    model.load_adapter(folder / "adapter")
    model.engine.runs_on = registry.load("numba")  # for the training step only: no weights are packed for generation
    settings, batch = Settings(steps=1), Batch.of_windows(np.load(folder / "ids.npy"))
    trained = trainable(model, settings)
    optimizer = AdamW.create(
        trained.variables, frozenset(), settings.beta1, settings.beta2, settings.epsilon, settings.weight_decay
    )

    def step() -> float:
        gradients = trained.gradients(batch, None)
        optimizer.update(trained.variables, gradients.of, RATE)
        return gradients.loss

    return step


def peft_step(folder: Path, dtype: str) -> Callable[[], float]:
    import torch
    from peft import PeftModel
    from transformers import BloomForCausalLM

    torch.set_num_threads(cores())
    base = BloomForCausalLM.from_pretrained(folder / "model", dtype=torch.float32)
    base.config.use_cache = False
    model = PeftModel.from_pretrained(base, folder / "adapter", is_trainable=True)
    model.train()
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=RATE, weight_decay=0.0)
    ids = torch.from_numpy(np.load(folder / "ids.npy"))

    def step() -> float:
        optimizer.zero_grad()
        with torch.autocast("cpu", torch.bfloat16, enabled=dtype == "mixed_bfloat16"):
            loss = model(input_ids=ids, labels=ids).loss
        loss.backward()
        optimizer.step()
        return float(loss.detach())

    return step


if __name__ == "__main__":
    main()
