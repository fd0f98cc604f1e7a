"""transformers' model on torch, in eager mode."""

from pathlib import Path
from typing import Any

from benchmarks.floors import SIDE, product_rate
from benchmarks.participants.protocol import Stepwise


class Model(Stepwise):
    def __init__(self, folder: Path, dtype: str, _name: str, threads: int) -> None:
        import torch
        from transformers import BloomForCausalLM

        torch.set_num_threads(threads)
        self.torch = torch
        self.model = BloomForCausalLM.from_pretrained(folder / "model", dtype=getattr(torch, dtype)).eval()

    def read(self, ids: Any, _steps: int) -> Any:
        self.past = None
        return self.step(ids)

    def step(self, ids: Any) -> Any:
        with self.torch.inference_mode():
            tokens = self.torch.tensor(ids)
            out = self.model(tokens, past_key_values=self.past, use_cache=True, logits_to_keep=1)
        self.past = out.past_key_values
        return out.logits[:, -1].float().numpy()

    def product_rate(self) -> float | None:
        return product_rate(self.torch.ones((SIDE, SIDE), dtype=self.model.dtype))
