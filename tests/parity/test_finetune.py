"""Fine-tuning side by side: bloomref's loop against torch's autograd,
PEFT's LoRA and torch's AdamW, from the same factors.

The embedded preset learns twenty lines by heart. In float64 the two loss curves must be one; transformers is lifted to
float64 as in `test_transformers`. In float32 they differ by rounding alone.
"""

from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest

if not all(find_spec(name) for name in ("torch", "transformers", "peft")):
    pytest.skip("needs torch, transformers and peft: pip install 'bloomref[peers]'", allow_module_level=True)

import torch
from parity import hugging_face
from peft import PeftModel

from bloomref import BloomCausalLM
from bloomref.training.documents import tokenize
from bloomref.training.optimizer import learning_rate
from bloomref.training.packing import Batch, cut, lay_out
from bloomref.training.records import Text
from bloomref.training.settings import Settings

pytestmark = pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing. is deprecated:FutureWarning")
LINES = [
    f"Article {number}: everyone has the right to {what}, {how}."
    for number, (what, how) in enumerate(
        (what, how)
        for what in ("rest", "work", "education", "a home", "silence")
        for how in ("now", "later", "here", "always")
    )
]
STEPS = 30


def batches(lm: BloomCausalLM) -> list[Batch]:
    """The twenty lines, a row each, five to a batch, padded on the right."""
    chunks = cut(tokenize([Text("", line) for line in LINES], lm.tokenizer), 64)
    assert len(chunks) == len(LINES) == 20
    return [lay_out([[chunk] for chunk in chunks[start : start + 5]], 3) for start in range(0, 20, 5)]


def theirs(model: torch.nn.Module, groups: list[dict[str, Any]], data: list[Batch], settings: Settings) -> list[float]:
    """The loss curve of torch."""
    optimizer = torch.optim.AdamW(groups, betas=(settings.beta1, settings.beta2), eps=settings.epsilon)
    losses = []
    for step in range(STEPS):
        batch = data[step % len(data)]
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(step, STEPS, settings)
        output = model(
            input_ids=torch.from_numpy(batch.token_ids),
            attention_mask=torch.from_numpy(batch.is_real.astype(np.int64)),
        )
        targets = torch.from_numpy(batch.labels[:, 1:])
        # not output.loss, for which transformers rounds the logits to float32
        loss = torch.nn.functional.cross_entropy(output.logits[:, :-1].flatten(0, 1), targets.flatten())
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_([p for group in groups for p in group["params"]], settings.clip)
        optimizer.step()
        losses.append(float(loss.detach()))
    return losses


def both_curves(
    dtype: str, tmp_path: Path, config: dict[str, Any] | None, settings: Settings
) -> tuple[list[float], list[float], BloomCausalLM, torch.nn.Module]:
    """(ours, theirs, our model, their model); `config` is the adapter's, None trains all weights."""
    lm = BloomCausalLM.from_preset("bloom_tiny_udhr", dtype=dtype)
    data = batches(lm)
    model: Any = hugging_face.build(lm.backbone.config, lm.backbone.params, getattr(torch, dtype))
    groups: list[dict[str, Any]]
    if config is None:
        matrices, vectors = ([p for p in model.parameters() if (p.ndim > 1) is kind] for kind in (True, False))
        groups = [{"params": matrices, "weight_decay": settings.weight_decay}, {"params": vectors, "weight_decay": 0.0}]
    else:
        lm.add_adapter(config, seed=1)
        lm.save_adapter(tmp_path / "adapter")
        model = PeftModel.from_pretrained(model, tmp_path / "adapter", is_trainable=True)
        factors = [p for p in model.parameters() if p.requires_grad]
        assert sum(p.numel() for p in factors) == lm.count_trainable_params()
        groups = [{"params": factors, "weight_decay": settings.weight_decay}]
    model.train()  # the preset drops nothing
    ours = lm.fit(lambda index: data[index % len(data)], **settings.to_dict()).losses
    return ours, theirs(model, groups, data, settings), lm, model


SETTINGS = Settings(steps=STEPS, learning_rate=1e-2, warmup=5, final_rate=0.1, weight_decay=0.01, clip=1.0)
ADAPTERS = {
    "query_key_value": {"r": 4, "lora_alpha": 8, "target_modules": ["query_key_value"]},
    "all-linear": {"r": 4, "lora_alpha": 4, "target_modules": "all-linear", "use_rslora": True},
}


@pytest.mark.slow
@pytest.mark.clause("TRN-9", "TRN-10", "TRN-11", "TRN-18")
@pytest.mark.parametrize("name", ADAPTERS)
def test_twenty_lines_by_heart_as_with_peft(name: str, tmp_path: Path) -> None:
    before = {
        k: a.tobytes()
        for k, _, a in BloomCausalLM.from_preset("bloom_tiny_udhr", dtype="float64").backbone.params.named()
    }
    with hugging_face.in_float64():
        ours, peft, lm, model = both_curves("float64", tmp_path, ADAPTERS[name], SETTINGS)
    np.testing.assert_allclose(ours, peft, rtol=1e-8)
    assert ours[-1] < 0.5 * ours[0]
    assert {key: array.tobytes() for key, _, array in lm.backbone.params.named()} == before
    learned = {key: value.detach().numpy() for key, value in model.named_parameters() if value.requires_grad}
    for key, array in lm.trainable_variables().items():
        np.testing.assert_allclose(
            array, learned[f"base_model.model.transformer.{key}"], rtol=1e-5, atol=1e-8, err_msg=key
        )


@pytest.mark.slow
@pytest.mark.clause("TRN-9")
def test_all_weights_as_with_torch(tmp_path: Path) -> None:
    with hugging_face.in_float64():
        ours, torchs, _, _ = both_curves("float64", tmp_path, None, SETTINGS)
    np.testing.assert_allclose(ours, torchs, rtol=1e-8)
    assert ours[-1] < 0.1 * ours[0]


@pytest.mark.clause("TRN-9")
def test_in_float32_the_curves_differ_by_rounding(tmp_path: Path) -> None:
    ours, peft, _, _ = both_curves("float32", tmp_path, ADAPTERS["query_key_value"], SETTINGS)
    np.testing.assert_allclose(ours, peft, rtol=1e-3)
