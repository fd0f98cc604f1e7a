"""OpenVINO through optimum-intel, with logits of the last position only."""

from pathlib import Path
from typing import Any

from benchmarks.participants.protocol import Stepwise


def convert(folder: Path, _dtype: str) -> None:
    from optimum.intel import OVModelForCausalLM

    model = OVModelForCausalLM.from_pretrained(str(folder / "model"), export=True, load_in_8bit=False, compile=False)
    _keep_last_position(model.model)
    model.save_pretrained(str(folder / "openvino"))


def _keep_last_position(model: Any) -> None:
    """Slice the LM head's input to the last position, as OpenVINO GenAI does and optimum-intel does not."""
    from openvino import opset13

    product = model.output("logits").get_node().input_value(0).get_node()
    while product.get_type_name() != "MatMul":
        product = product.input_value(0).get_node()
    hidden = product.input(0)
    last = opset13.slice(hidden.get_source_output(), [-1], [2**31 - 1], [1], [1])
    hidden.replace_source_output(last.output(0))


class Model(Stepwise):
    def __init__(self, folder: Path, dtype: str, _name: str, threads: int) -> None:
        import torch
        from optimum.intel import OVModelForCausalLM

        self.torch = torch
        precision = {"float32": "f32", "bfloat16": "bf16"}[dtype]
        options = {"INFERENCE_PRECISION_HINT": precision, "INFERENCE_NUM_THREADS": str(threads), "NUM_STREAMS": "1"}
        self.model = OVModelForCausalLM.from_pretrained(str(folder / "openvino"), ov_config=options)

    def read(self, ids: Any, _steps: int) -> Any:
        self.past, self.length = None, 0
        return self.step(ids)

    def step(self, ids: Any) -> Any:
        tokens = self.torch.tensor(ids)
        self.length += ids.shape[1]
        mask = self.torch.ones((len(ids), self.length), dtype=self.torch.int64)
        out = self.model(input_ids=tokens, attention_mask=mask, past_key_values=self.past)
        self.past = out.past_key_values
        return out.logits[:, -1].float().numpy()
