"""Adapters of peft for classifiers, whose heads are saved with them: the same logits, and files in both directions."""

import json
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest

if not (find_spec("torch") and find_spec("transformers") and find_spec("peft")):
    pytest.skip("needs torch, transformers and peft: pip install 'bloomref[peers]'", allow_module_level=True)

import torch
import transformers
from parity import hugging_face
from peft import LoraConfig as PeftConfig
from peft import PeftModel, get_peft_model

import bloomref
from bloomref import BadWeights, BloomCausalLM, InvalidInput

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning", "ignore::FutureWarning")
TASKS = {
    "BloomForSequenceClassification": "SEQ_CLS",
    "BloomForTokenClassification": "TOKEN_CLS",
    "BloomForQuestionAnswering": "QUESTION_ANS",
}
IDS = np.array([[5, 6, 7, 3], [8, 9, 4, 4]])
MASK = IDS != 3


@pytest.fixture(autouse=True)
def quiet() -> None:
    transformers.utils.logging.disable_progress_bar()
    transformers.utils.logging.set_verbosity_error()


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A language model; its weights are float64, so that all results are."""
    folder = tmp_path_factory.mktemp("base")
    sizes: Any = {"vocab_size": 20, "hidden_size": 8, "n_layer": 1, "n_head": 2, "pad_token_id": 3}
    torch.manual_seed(0)
    model = transformers.BloomForCausalLM(transformers.BloomConfig(**sizes, initializer_range=0.5)).double()
    model.save_pretrained(folder)
    return folder


def under(base: Path, name: str) -> Any:
    """transformers' classifier with the weights of a language model, and a random head."""
    count = {} if name.endswith("Answering") else {"num_labels": 3}
    return getattr(transformers, name).from_pretrained(base, dtype=torch.float64, **count)


def trained(base: Path, name: str, folder: Path) -> Any:
    """peft's adapter with random factors and a random head, saved."""
    settings = PeftConfig(task_type=TASKS[name], r=2, target_modules=["query_key_value"])
    model = get_peft_model(under(base, name), settings)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.normal_(std=0.5)
    model.save_pretrained(folder)
    return model.eval()


def theirs(model: Any) -> np.ndarray:
    with torch.no_grad(), hugging_face.in_float64():
        output = model(input_ids=torch.from_numpy(IDS), attention_mask=torch.from_numpy(MASK.astype(np.int64)))
    if hasattr(output, "logits"):
        return output.logits.numpy()
    return torch.stack([output.start_logits, output.end_logits], dim=-1).numpy()


def ours(model: Any) -> np.ndarray:
    logits = model({"token_ids": IDS, "padding_mask": MASK})
    return np.stack(logits, axis=-1) if isinstance(logits, tuple) else logits


def assert_equal(ours: np.ndarray, theirs: np.ndarray) -> None:
    """Equal at the real positions, up to the rounding of the adapter's file, which is float32."""
    real = MASK if ours.ndim == 3 else np.ones(len(ours), bool)
    np.testing.assert_allclose(ours[real], theirs[real], rtol=1e-5, atol=1e-6)


@pytest.mark.clause("HEA-12")
@pytest.mark.parametrize("name", TASKS)
def test_there_and_back(tmp_path: Path, base: Path, name: str):
    peer = trained(base, name, tmp_path / "theirs")
    expected = theirs(peer)
    model = getattr(bloomref, name).from_preset(base, dtype="float64", num_labels=expected.shape[-1])
    before = ours(model)
    model.load_adapter(tmp_path / "theirs")
    assert_equal(ours(model), expected)
    model.set_adapter(None)
    np.testing.assert_array_equal(ours(model), before)
    model.set_adapter("default")
    model.save_adapter(tmp_path / "ours")
    assert json.loads((tmp_path / "ours/adapter_config.json").read_text())["task_type"] == TASKS[name]
    assert_equal(ours(model), theirs(PeftModel.from_pretrained(under(base, name), tmp_path / "ours").eval()))
    model.save_to_preset(tmp_path / "merged")
    merged = getattr(transformers, name).from_pretrained(tmp_path / "merged", dtype=torch.float64).eval()
    assert_equal(ours(model), theirs(merged))


@pytest.mark.parametrize("config", [None, {"r": 3}, bloomref.LoraConfig(target_modules=("dense",))])
@pytest.mark.parametrize("name", TASKS)
def test_a_new_adapter_is_of_the_classifiers_task(tmp_path: Path, base: Path, name: str, config: Any):
    count = {} if name.endswith("Answering") else {"num_labels": 3}
    model = getattr(bloomref, name)(bloomref.BloomBackbone.from_preset(base, dtype="float64"), **count)
    model.save_to_preset(tmp_path / "base")
    model.add_adapter(config)
    model.assign_variables({key: np.ones(x.shape) / 8 for key, x in model.trainable_variables().items()})
    model.save_adapter(tmp_path / "adapter")
    peer = getattr(transformers, name).from_pretrained(tmp_path / "base", dtype=torch.float64)
    peer = PeftModel.from_pretrained(peer, tmp_path / "adapter").eval()
    assert peer.active_peft_config.task_type == TASKS[name]
    assert_equal(ours(model), theirs(peer))


@pytest.mark.clause("HEA-12")
@pytest.mark.parametrize("name", TASKS)
def test_an_adapter_that_is_given_as_the_model_brings_its_head(tmp_path: Path, base: Path, name: str):
    peer = trained(base, name, tmp_path)
    model = getattr(bloomref, name).from_preset(tmp_path, dtype="float64")
    assert_equal(ours(model), theirs(peer))


@pytest.mark.clause("HEA-12")
def test_a_language_model_ignores_the_head_of_an_adapter(tmp_path: Path, base: Path):
    trained(base, "BloomForSequenceClassification", tmp_path)
    lm = BloomCausalLM.from_preset(base, dtype="float64")
    before = lm({"token_ids": IDS})
    lm.load_adapter(tmp_path)
    assert not np.allclose(lm({"token_ids": IDS}), before)
    with pytest.raises(InvalidInput, match=r"low-rank factors alone, as a \.lora\.h5 file has"):
        lm.save_adapter(tmp_path / "x.lora.h5", expand=True)


@pytest.mark.clause("HEA-12")
def test_heads_that_do_not_fit_are_refused_and_change_nothing(tmp_path: Path, base: Path):
    name = "BloomForSequenceClassification"
    trained(base, name, tmp_path)
    model = bloomref.BloomForSequenceClassification.from_preset(base, num_labels=2)
    before = ours(model)
    with pytest.raises(BadWeights, match=r"score\.weight of adapter 'default': expected 2 rows.*num_labels=3"):
        model.load_adapter(tmp_path)
    np.testing.assert_array_equal(ours(model), before)
    model = bloomref.BloomForSequenceClassification.from_preset(base, num_labels=3)
    model.load_adapter(tmp_path, "first")
    model.load_adapter(tmp_path, "second")
    with pytest.raises(InvalidInput, match="adapter: expected at most one active adapter that has a head"):
        model.set_adapter({"first": 0.5, "second": 0.5})
    with pytest.raises(BadWeights, match="got BloomForCausalLM"):
        bloomref.BloomForTokenClassification.from_preset(tmp_path)
