"""Adapters compared with peft: the same logits, and files in both directions."""

import json
import math
import re
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest

if not (find_spec("torch") and find_spec("transformers") and find_spec("peft")):
    pytest.skip("needs torch, transformers and peft: pip install 'bloomref[peers]'", allow_module_level=True)

import torch
from parity import compare, hugging_face
from peft import LoraConfig as PeftConfig
from peft import PeftModel, get_peft_model
from strategies import draw_params

from bloomref import BloomBackbone, BloomCausalLM, BloomConfig
from bloomref.formats.safetensors_io import SafetensorsFile

pytestmark = [
    pytest.mark.filterwarnings("ignore::UserWarning:peft"),  # on tied embeddings: what it warns of is tested here
    pytest.mark.filterwarnings("ignore::FutureWarning"),
]

CONFIG = BloomConfig(vocabulary_size=23, num_layers=2, num_heads=3, hidden_dim=12, intermediate_dim=48)
UNTIED = CONFIG.replace(tie_word_embeddings=False)
LINEAR = ["query_key_value", "dense", "dense_h_to_4h", "dense_4h_to_h"]
ALL = [*LINEAR, "word_embeddings"]
TOKENS = np.array([[3, 1, 4, 1, 5, 9, 2], [6, 5, 3, 5, 8, 9, 7]])
CASES: dict[str, dict[str, Any]] = {
    "default": {},
    "all-linear": {"target_modules": "all-linear", "r": 3, "lora_alpha": 7},
    "everything": {"target_modules": ALL, "r": 4},
    "rslora": {"target_modules": ALL, "r": 4, "lora_alpha": 16, "use_rslora": True, "lora_dropout": 0.3},
    "dense alone": {"target_modules": ["dense"], "r": 2},
    "the embedding alone": {"target_modules": ["word_embeddings"], "r": 2},
    "patterns": {
        "target_modules": ALL,
        "r": 4,
        "rank_pattern": {"dense": 2, r"h\.1\.self_attention\.query_key_value": 5, "word_embeddings": 1},
        "alpha_pattern": {"mlp.dense_h_to_4h": 3, r".*4h_to_h": 20.5},
    },
    "a regular expression": {"target_modules": r".*\.h\.[01]\..*dense.*", "r": 3},
    "some layers": {"target_modules": ["query_key_value", "dense_4h_to_h"], "layers_to_transform": [1]},
    "without some": {"target_modules": "all-linear", "exclude_modules": ["dense"], "use_rslora": True},
}


# what peft trains besides low-rank products, and the ways in which it names modules
MORE: dict[str, dict[str, Any]] = {
    "look-ahead": {"target_modules": r".*\.(?!1\b)\d+\.self_attention\.query_key_value"},
    "repeated groups": {"target_modules": r"(?:.*?(?:self_attention|mlp).*?(?:query_key_value|dense).*?).*?"},
    "one layer of a list": {"layers_to_transform": 1, "layers_pattern": ["layers", "h"]},
    "anchored patterns": {
        "target_modules": "all-linear",
        "rank_pattern": {r"^transformer\.h\.0\..*": 4},
        "alpha_pattern": {"^transformer.h.(0|1).mlp.dense_h_to_4h": 3},
    },
    "parameters": {"target_modules": [], "target_parameters": ["dense.weight", "word_embeddings.weight"]},
    "all biases": {"bias": "all"},
    "biases of adapted modules": {"bias": "lora_only", "target_modules": ["query_key_value", "dense"]},
    "a bias of B": {"lora_bias": True, "lora_alpha": 3},
    "dora": {"use_dora": True, "target_modules": [*LINEAR, "word_embeddings"], "use_rslora": True},
    "saved norms": {"modules_to_save": ["ln_f", "input_layernorm"], "bias": "lora_only"},
    "a saved block": {"target_modules": ["dense_h_to_4h"], "modules_to_save": ["self_attention"]},
    "a saved embedding": {"modules_to_save": ["word_embeddings"]},
    "a saved head": {"modules_to_save": ["lm_head"]},
    "both saved": {"modules_to_save": ["word_embeddings", "lm_head"]},
    "rows": {"trainable_token_indices": [3, 22]},
    "rows of both": {"trainable_token_indices": {"word_embeddings": [1, 2], "lm_head": [5]}},
    "an adapted head": {"target_modules": ["lm_head", "dense"]},
    "all at once": {
        "use_dora": True,
        "bias": "lora_only",
        "modules_to_save": ["ln_f"],
        "trainable_token_indices": [4],
    },
}

FAST = ("dora", "rows of both", "a saved embedding", "all at once")


def peer(config: BloomConfig, params: Any, seed: int, dtype: torch.dtype = torch.float64, **settings: Any) -> PeftModel:
    """peft's model with random factors, B included."""
    model = get_peft_model(hugging_face.build(config, params, dtype), PeftConfig(task_type="CAUSAL_LM", **settings))
    fill(model, seed)
    return model.eval()


def fill(model: PeftModel, seed: int, name: str = "default") -> None:
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for key, value in model.named_parameters():
            if "lora_" in key and f".{name}" in key:
                value.copy_(0.3 * torch.randn(value.shape, generator=generator, dtype=torch.float32))


def logits(model: PeftModel) -> np.ndarray:
    with torch.no_grad(), hugging_face.in_float64():
        return model(torch.from_numpy(TOKENS)).logits.double().numpy()


def ours(config: BloomConfig, params: Any, dtype: str = "float64") -> BloomCausalLM:
    return BloomCausalLM(BloomBackbone.from_params(config, params, dtype))


def outside(lm: BloomCausalLM, dtype: str = "float64", **results: np.ndarray) -> list[str]:
    """Logits, by who computed them, outside the kit's budget of the weights that the adapters of `lm` are added to."""
    case = compare.case_of_adapted(lm, TOKENS)
    return [
        f"{who}: {line}" for who, logits in results.items() for line in compare.outside(case, {"logits": logits}, dtype)
    ]


def differs(result: np.ndarray, expected: np.ndarray) -> bool:
    """True if two logits differ by far more than rounding."""
    return float(np.abs(result - expected).max() / np.abs(expected).max()) > 1e-3


@pytest.mark.clause("LRA-1", "LRA-3", "LRA-4", "LRA-10", "LRA-12")
@pytest.mark.parametrize("config", [CONFIG, UNTIED], ids=["tied", "untied"])
@pytest.mark.parametrize("case", CASES)
def test_there_and_back(case: str, config: BloomConfig, tmp_path: Path):
    params = draw_params(config, np.random.default_rng(1))
    theirs = peer(config, params, 2, **CASES[case])
    theirs.save_pretrained(tmp_path / "theirs")
    expected = logits(theirs)

    lm = ours(config, params)
    before = lm({"token_ids": TOKENS})
    lm.load_adapter(tmp_path / "theirs")
    assert outside(lm, ours=lm({"token_ids": TOKENS}), peft=expected) == []
    assert differs(before, expected)
    assert lm.count_trainable_params() == theirs.get_nb_trainable_parameters()[0]

    lm.save_adapter(tmp_path / "ours")
    again = PeftModel.from_pretrained(hugging_face.build(config, params), tmp_path / "ours").eval()
    assert outside(lm, peft_from_our_file=logits(again)) == []
    assert_same_files(tmp_path / "ours", tmp_path / "theirs")


@pytest.mark.clause("LRA-10", "LRA-12", "LRA-19", "LRA-20", "LRA-21", "LRA-22", "LRA-25", "LRA-26")
@pytest.mark.parametrize(
    ("case", "config"),
    [
        *(pytest.param(case, CONFIG, marks=() if case in FAST else pytest.mark.slow) for case in MORE),
        *(pytest.param(case, UNTIED, marks=pytest.mark.slow) for case in MORE if "head" in case or "both" in case),
    ],
)
def test_what_peft_trains_besides_products(case: str, config: BloomConfig, tmp_path: Path):
    """Run, merged, and run by peft again; a new adapter of these settings has peft's tensors."""
    params = draw_params(config, np.random.default_rng(16))
    settings = PeftConfig(task_type="CAUSAL_LM", **{"r": 2, **MORE[case]})
    theirs = get_peft_model(hugging_face.build(config, params), settings).eval()
    fresh = {name: value.shape for name, value in theirs.named_parameters() if value.requires_grad}
    change(theirs, 17)
    theirs.save_pretrained(tmp_path / "theirs")
    expected = logits(theirs)

    lm = ours(config, params)
    before = lm({"token_ids": TOKENS})
    lm.load_adapter(tmp_path / "theirs")
    run = lm({"token_ids": TOKENS})
    assert differs(before, expected)
    lm.merge_adapter()
    assert outside(lm, ours=run, merged=lm({"token_ids": TOKENS}), peft=expected) == []
    lm.unmerge_adapter()
    lm.save_adapter(tmp_path / "ours")
    again = PeftModel.from_pretrained(hugging_face.build(config, params), tmp_path / "ours").eval()
    assert outside(lm, peft_from_our_file=logits(again)) == []
    assert_same_files(tmp_path / "ours", tmp_path / "theirs")

    assert_same_gradients(lm, theirs)
    new = ours(config, params)
    new.add_adapter({"r": 2, **MORE[case]})
    assert new.adapters["default"]["parameters"] == sum(map(math.prod, fresh.values()))


def assert_same_gradients(lm: BloomCausalLM, theirs: PeftModel) -> None:
    """Of the mean loss, by every variable of the active adapter (LRA-26)."""
    with hugging_face.in_float64():
        result = theirs(torch.from_numpy(TOKENS)).logits[:, :-1]
        loss = torch.nn.functional.cross_entropy(result.flatten(0, 1), torch.from_numpy(TOKENS)[:, 1:].flatten())
    loss.backward()
    ours_loss, gradients = lm.loss_and_gradients({"token_ids": TOKENS})
    assert ours_loss == pytest.approx(loss.item(), rel=1e-12)
    expected = {plain(name): p.grad.numpy() for name, p in theirs.named_parameters() if p.grad is not None}
    mine = {plain(name): gradient for name, gradient in gradients.items()}
    if "word_embeddings.lora_A.weight" in expected:  # of a parameter (V, D); here it is an embedding's
        expected["word_embeddings.lora_embedding_B"] = expected.pop("word_embeddings.lora_A.weight").T
        expected["word_embeddings.lora_embedding_A"] = expected.pop("word_embeddings.lora_B.weight").T
    assert mine.keys() == expected.keys()
    for name, gradient in mine.items():
        theirs_of = expected[name].reshape(gradient.shape)
        np.testing.assert_allclose(gradient, theirs_of, rtol=0, atol=1e-10 * max(1e-3, np.abs(theirs_of).max()))


def plain(name: str) -> str:
    """Name of a parameter without prefixes, wrappers and the adapter's name."""
    inner = name.removeprefix("base_model.model.").removeprefix("transformer.")
    return re.sub(r"\.(modules_to_save\.default|base_layer|default)(?=\.|$)", "", inner)


def change(model: PeftModel, seed: int) -> None:
    """Change everything that is trained."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for _, value in model.named_parameters():
            if value.requires_grad:
                noise = 0.1 * torch.randn(value.shape, generator=generator, dtype=torch.float32)
                value.copy_((value + noise).float())


@pytest.mark.clause("LRA-19", "LRA-23", "WGT-35")
@pytest.mark.parametrize("config", [CONFIG, pytest.param(UNTIED, marks=pytest.mark.slow)], ids=["tied", "untied"])
def test_an_adapter_of_a_resized_model(config: BloomConfig, tmp_path: Path):
    """peft writes the resized embedding and head beside the factors, with `save_embedding_layers`."""
    params = draw_params(config, np.random.default_rng(19))
    base = hugging_face.build(config, params)
    base.resize_token_embeddings(26)
    theirs = get_peft_model(base, PeftConfig(task_type="CAUSAL_LM", target_modules=ALL, r=2)).eval()
    fill(theirs, 20)
    theirs.save_pretrained(tmp_path, save_embedding_layers=True)
    lm = ours(config, params)
    lm.load_adapter(tmp_path)
    assert outside(lm, ours=lm({"token_ids": TOKENS}), peft=logits(theirs)) == []


@pytest.mark.clause("WGT-35")
def test_new_rows_are_made_as_transformers_makes_them():
    """Their mean and their spread, which is too small to see but in float64."""
    config = CONFIG.replace(vocabulary_size=400, tie_word_embeddings=False)
    params = draw_params(config, np.random.default_rng(21))
    base, lm = hugging_face.build(config, params), ours(config, params)
    base.resize_token_embeddings(2400)
    lm.resize_token_embeddings(2400)
    for theirs, mine in (
        (base.get_input_embeddings().weight, lm.params.word_embedding),
        (base.get_output_embeddings().weight, lm.params.lm_head),
    ):
        new, expected = mine[400:], theirs.detach().double().numpy()[400:]
        np.testing.assert_allclose(new.mean(0), expected.mean(0), rtol=0, atol=3e-6)
        np.testing.assert_allclose(new.std(0), mine[:400].std(0) * np.sqrt(1e-9), rtol=0.1)
        np.testing.assert_allclose(expected.std(0), new.std(0), rtol=0.1)


def assert_same_files(written: Path, expected: Path) -> None:
    ours, theirs = (SafetensorsFile(folder / "adapter_model.safetensors") for folder in (written, expected))
    assert ours.entries.keys() == theirs.entries.keys()
    for name in ours.entries:
        np.testing.assert_array_equal(ours.view(name), theirs.view(name))
    ours_config, theirs_config = (
        json.loads((folder / "adapter_config.json").read_text("utf-8")) for folder in (written, expected)
    )
    theirs_config = {name: value for name, value in theirs_config.items() if name in ours_config}
    assert set(map(str, ours_config.pop("target_modules"))) == set(map(str, theirs_config.pop("target_modules")))
    assert ours_config == theirs_config


@pytest.mark.parametrize("case", ["everything", "rslora"])
def test_in_float32(case: str, tmp_path: Path):
    params = draw_params(CONFIG, np.random.default_rng(3)).astype(np.dtype(np.float32))
    theirs = peer(CONFIG, params, 4, torch.float32, **CASES[case])
    theirs.save_pretrained(tmp_path / "adapter")
    exact, lm = ours(CONFIG, params), ours(CONFIG, params, "float32")
    for model in (exact, lm):
        model.load_adapter(tmp_path / "adapter")
    assert outside(exact, "float32", ours=lm({"token_ids": TOKENS}), peft=logits(theirs)) == []


@pytest.mark.clause("LRA-5")
def test_two_adapters_alone_and_mixed(tmp_path: Path):
    params = draw_params(CONFIG, np.random.default_rng(5))
    theirs = peer(CONFIG, params, 6, target_modules=ALL, r=2)
    theirs.add_adapter("second", PeftConfig(task_type="CAUSAL_LM", r=5, lora_alpha=3, use_rslora=True))
    fill(theirs, 7, "second")
    theirs.save_pretrained(tmp_path)
    lm = ours(CONFIG, params)
    lm.load_adapter(tmp_path, "first")
    lm.load_adapter(tmp_path / "second", "second")

    theirs.set_adapter("default")
    lm.set_adapter("first")
    assert outside(lm, ours=lm({"token_ids": TOKENS}), peft=logits(theirs)) == []
    theirs.set_adapter("second")
    lm.set_adapter("second")
    assert outside(lm, ours=lm({"token_ids": TOKENS}), peft=logits(theirs)) == []
    theirs.base_model.set_adapter(["default", "second"])
    lm.set_adapter({"first": 1.0, "second": 1.0})
    assert outside(lm, ours=lm({"token_ids": TOKENS}), peft=logits(theirs)) == []
    with theirs.disable_adapter():
        lm.set_adapter(None)
        assert outside(lm, ours=lm({"token_ids": TOKENS}), peft=logits(theirs)) == []


@pytest.mark.clause("LRA-5")
def test_a_weighted_mix(tmp_path: Path):
    """peft makes one adapter of two with `add_weighted_adapter`; its "cat" is the exact sum."""
    params = draw_params(CONFIG, np.random.default_rng(8))
    theirs = peer(CONFIG, params, 9, r=2)
    theirs.add_adapter("second", PeftConfig(task_type="CAUSAL_LM", r=5))
    fill(theirs, 10, "second")
    theirs.save_pretrained(tmp_path)
    theirs.add_weighted_adapter(["default", "second"], [0.7, 0.3], "mix", combination_type="cat")
    theirs.set_adapter("mix")
    lm = ours(CONFIG, params)
    lm.load_adapter(tmp_path, "first")
    lm.load_adapter(tmp_path / "second", "second")
    lm.set_adapter({"first": 0.7, "second": 0.3})
    assert outside(lm, ours=lm({"token_ids": TOKENS}), peft=logits(theirs)) == []


@pytest.mark.clause("LRA-4", "LRA-6")
def test_merging_an_embedding_leaves_the_tied_head(tmp_path: Path):
    """peft adds to the one matrix that both use, so that its merged model differs from its adapted one."""
    params = draw_params(CONFIG, np.random.default_rng(11))
    theirs = peer(CONFIG, params, 12, target_modules=["word_embeddings"], r=2)
    theirs.save_pretrained(tmp_path)
    adapted = logits(theirs)
    lm = ours(CONFIG, params)
    lm.load_adapter(tmp_path)
    lm.merge_adapter()
    assert outside(lm, ours=lm({"token_ids": TOKENS}), peft=adapted) == []
    theirs.merge_adapter()
    assert differs(logits(theirs), adapted)


@pytest.mark.clause("LRA-14")
def test_an_expanded_adapter_of_heads(tmp_path: Path):
    """KerasHub's form at rank 2 is PEFT's at rank 2 x 3 heads x 2 projections."""
    params = draw_params(CONFIG, np.random.default_rng(13))
    lm = ours(CONFIG, params)
    lm.enable_lora(2, ["query_dense", "value_dense", "output_dense", "mlp_output_dense"])
    rng = np.random.default_rng(14)
    lm.assign_variables({n: 0.3 * rng.standard_normal(x.shape) for n, x in lm.trainable_variables().items()})
    lm.save_adapter(tmp_path, expand=True)
    theirs = PeftModel.from_pretrained(hugging_face.build(CONFIG, params), tmp_path).eval()
    assert outside(lm, ours=lm({"token_ids": TOKENS}), peft=logits(theirs)) == []
    assert {m.r["default"] for n, m in theirs.named_modules() if n.endswith("query_key_value")} == {12}


def test_a_fresh_adapter_is_initialised_as_peft_does():
    params = draw_params(CONFIG, np.random.default_rng(15))
    theirs = get_peft_model(hugging_face.build(CONFIG, params), PeftConfig(target_modules=ALL, r=4))
    lm = ours(CONFIG, params)
    lm.add_adapter({"target_modules": ALL, "r": 4})
    expected = {
        k.removeprefix("base_model.model.transformer."): v for k, v in theirs.named_parameters() if "lora_" in k
    }
    factors = lm.trainable_variables()
    assert factors.keys() == expected.keys()
    for name, array in factors.items():
        assert array.shape == tuple(expected[name].shape)
        assert bool(array.any()) == bool(expected[name].any())
        if "lora_A" in name:
            assert 0.5 < np.abs(array).max() * np.sqrt(array.shape[1]) <= 1.0
            assert float(expected[name].detach().abs().max()) * np.sqrt(array.shape[1]) <= 1.0
