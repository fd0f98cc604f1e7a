"""Classification heads against transformers: logits, files in both directions, and the pipelines' labels.

The kit has budgets for the logits of an LM head. A classification head is one with few rows: repeated until they are as
many as the vocabulary, they make an LM head whose budget is that of the classifier.
"""

import json
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest

if not (find_spec("torch") and find_spec("transformers")):
    pytest.skip("needs torch and transformers: pip install 'bloomref[peers]'", allow_module_level=True)

import torch
import transformers
from parity import compare, hugging_face
from parity.cases import ParityCase, case_of, exact_in_16_bits
from parity.cases import case as any_case
from small_models import small_tokenizer

import bloomref
from bloomref import BloomBackbone, BloomConfig
from bloomref.conformance.cases import Case
from bloomref.params import full_key

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")
NAMES = ("BloomForSequenceClassification", "BloomForTokenClassification", "BloomForQuestionAnswering")
CONFIG = BloomConfig(vocabulary_size=280, num_layers=2, num_heads=3, hidden_dim=12, intermediate_dim=48)
LABELS = {"id2label": {0: "no", 1: "perhaps", 2: "yes"}, "label2id": {"no": 0, "perhaps": 1, "yes": 2}}
PAIR = {"text": "the cat is", "text_pair": "a the"}
TEXTS = ["the cat is a, the", "(a b) 意", "the the the"]
PAD = 3


@pytest.fixture(autouse=True)
def quiet() -> None:
    transformers.utils.logging.disable_progress_bar()
    transformers.utils.logging.set_verbosity_error()


def drawn(padding: str) -> ParityCase:
    """Rows padded with the padding token, which is also within the text, but not at its end."""
    case = case_of(7, CONFIG.replace(num_layers=1), batch=3, time=9, padding=padding)
    ids = np.where(case.is_real, case.token_ids % 200 + 10, PAD)
    ids[0, np.flatnonzero(case.is_real[0])[0]] = PAD
    return replace(case, token_ids=ids)


def peer(name: str, case: ParityCase, dtype: str = "float32", **options: Any) -> Any:
    """transformers' class with the weights of a case, and a head that 16 bits hold."""
    count = 2 if name.endswith("Answering") else 3
    facts = {"pad_token_id": PAD, **({"num_labels": count} if "id2label" not in options else {}), **options}
    config = transformers.BloomConfig.from_dict(case.config.to_hf() | facts)
    model = getattr(transformers, name)(config)
    state = {
        full_key(key): torch.from_numpy(array.reshape(weight.hf_shape(case.config)))
        for key, weight, array in case.params.named()
        if key != "lm_head.weight"
    }
    rng = np.random.default_rng(5)
    for key, value in model.state_dict().items():
        if key not in state:
            state[key] = torch.from_numpy(exact_in_16_bits(rng.normal(size=tuple(value.shape)) / 2))
    model.load_state_dict(state)
    return model.to(getattr(torch, dtype)).eval()


def logits_of(output: Any) -> np.ndarray:
    """Logits of either library; those of a question as (B, T, 2)."""
    pair = (output.start_logits, output.end_logits) if hasattr(output, "start_logits") else None
    pair = output if isinstance(output, tuple) else pair
    if pair is not None:
        return np.stack([np.asarray(torch.as_tensor(part).double()) for part in pair], axis=-1)
    value = output.logits if hasattr(output, "logits") else torch.as_tensor(output)
    return np.asarray(value.double())


def tokens_of(model: Any, case: ParityCase) -> tuple[np.ndarray, np.ndarray]:
    """The head's logits at every token, (B, T, N), and those that the model returns."""
    ids, mask = torch.from_numpy(case.token_ids), torch.from_numpy(case.is_real.astype(np.int64))
    with torch.no_grad():
        head = next(module for name, module in model.named_children() if name != "transformer" and name != "dropout")
        every = head(model.transformer(ids, attention_mask=mask)[0])
        return np.asarray(every.double()), logits_of(model(ids, attention_mask=mask))


def budget(case: ParityCase, model: Any) -> tuple[Case, np.ndarray, int]:
    """The kit's case whose LM head has the classifier's rows again and again, the bias, and the number of copies."""
    state = {k: np.asarray(v.double()) for k, v in model.state_dict().items() if not k.startswith("transformer.")}
    weight = next(value for key, value in state.items() if key.endswith("weight"))
    bias = next((value for key, value in state.items() if key.endswith("bias")), np.zeros(len(weight)))
    rows = case.config.vocabulary_size
    config = case.config.replace(tie_word_embeddings=False)
    params = replace(case.params, lm_head=np.resize(weight, (rows, weight.shape[1])))
    return compare.kit_case(replace(case, config=config, params=params)), bias, rows


def outside(case: ParityCase, model: Any, logits: np.ndarray, dtype: str) -> list[str]:
    kit_case, bias, rows = budget(case, model)
    repeated = np.take(logits - bias, np.arange(rows) % logits.shape[-1], axis=-1)
    return compare.outside(kit_case, {"logits": repeated}, dtype)


def ours_of(folder: Path, name: str, dtype: str) -> Any:
    return getattr(bloomref, name).from_preset(folder, dtype=dtype)


def at_last(case: ParityCase, every: np.ndarray) -> np.ndarray:
    """The logits at the last token of each row."""
    last = [int(np.flatnonzero(row)[-1]) for row in case.is_real]
    return every[np.arange(len(last)), last]


@pytest.mark.clause("HEA-2", "HEA-3", "HEA-8")
@pytest.mark.parametrize(("padding", "dtype"), [("left", "float32"), ("right", "float64")])
@pytest.mark.parametrize("name", NAMES)
def test_logits_are_within_the_budget(tmp_path: Path, name: str, dtype: str, padding: str):
    case = drawn(padding)
    model = peer(name, case, dtype)
    model.save_pretrained(tmp_path)
    ours = ours_of(tmp_path, name, dtype)
    inputs = {"token_ids": case.token_ids, "padding_mask": case.is_real}
    our_tokens = ours._project(ours.backbone(inputs))
    if dtype == "float64":
        with hugging_face.in_float64():
            their_tokens, theirs = tokens_of(model, case)
    else:
        their_tokens, theirs = tokens_of(model, case)
    assert outside(case, model, our_tokens, dtype) == outside(case, model, their_tokens, dtype) == []
    sequence = name == "BloomForSequenceClassification"
    for every, returned in ((our_tokens, logits_of(ours(inputs))), (their_tokens, theirs)):
        np.testing.assert_allclose(returned, at_last(case, every) if sequence else every, rtol=1e-6)


@pytest.mark.slow
@pytest.mark.clause("HEA-2", "HEA-3", "HEA-8")
@pytest.mark.parametrize("name", NAMES)
def test_many_models_in_float64(tmp_path: Path, name: str):
    """The final states differ by up to 1.7e-14 (docs/parity.md); a head adds one sum of products to them."""
    for seed in range(30):  # without long texts
        case = drawn_at_random(seed)
        model = peer(name, case, "float64", pad_token_id=0)
        folder = tmp_path / str(seed)
        model.save_pretrained(folder)
        with hugging_face.in_float64():
            _, theirs = tokens_of(model, case)
        inputs = {"token_ids": case.token_ids, "padding_mask": case.is_real}
        ours = logits_of(ours_of(folder, name, "float64")(inputs))
        real = case.is_real if ours.ndim == 3 else np.ones(len(ours), bool)
        assert compare.relative(ours[real], theirs[real]) < 1e-13, seed


def drawn_at_random(seed: int) -> ParityCase:
    """A case of the comparison of language models; its padding token is 0, which no row ends in."""
    case = any_case(seed)
    ids = np.where(case.is_real, case.token_ids, 0)
    last = [int(np.flatnonzero(row)[-1]) for row in case.is_real]
    ids[np.arange(len(last)), last] = np.maximum(1, ids[np.arange(len(last)), last])
    return replace(case, token_ids=ids)


def test_the_budget_sees_a_wrong_head():
    case = drawn("right")
    model = peer(NAMES[1], case, "float64")
    with hugging_face.in_float64():
        every, _ = tokens_of(model, case)
    assert outside(case, model, every, "float64") == []
    assert outside(case, model, every * (1 + 1e-9), "float64")


@pytest.mark.clause("HEA-2")
@pytest.mark.parametrize("name", NAMES)
def test_in_16_bits_bloomref_is_nearer_to_float64(tmp_path: Path, name: str):
    case = drawn("left")
    model = peer(name, case, "bfloat16")
    model.save_pretrained(tmp_path)
    inputs = {"token_ids": case.token_ids, "padding_mask": case.is_real}
    truth, narrow = (logits_of(ours_of(tmp_path, name, dtype)(inputs)) for dtype in ("float64", "bfloat16"))
    theirs = tokens_of(model, case)[1]
    real = case.is_real if truth.ndim == 3 else np.ones(len(truth), bool)
    assert compare.rms_error(narrow[real], truth[real]) <= compare.rms_error(theirs[real], truth[real])


@pytest.mark.clause("HEA-1", "HEA-11")
@pytest.mark.parametrize(
    ("labels", "dtype"), [({}, "float32"), (LABELS | {"problem_type": "multi_label_classification"}, "bfloat16")]
)
@pytest.mark.parametrize("name", NAMES)
def test_files_come_back_to_transformers_bit_for_bit(tmp_path: Path, name: str, labels: dict[str, Any], dtype: str):
    if name.endswith("Answering") and labels:
        labels = {"problem_type": None}
    model = peer(name, drawn("real"), dtype, tie_word_embeddings=dtype == "float32", **labels)
    model.save_pretrained(tmp_path / "theirs")
    ours_of(tmp_path / "theirs", name, "auto").save_to_preset(tmp_path / "ours")
    again, info = type(model).from_pretrained(tmp_path / "ours", dtype="auto", output_loading_info=True)
    assert not any(info.values())
    assert again.dtype == model.dtype
    for key, value in model.state_dict().items():
        assert torch.equal(value, again.state_dict()[key]), key
    for fact in ("id2label", "label2id", "problem_type", "pad_token_id", "num_labels"):
        assert getattr(again.config, fact) == getattr(model.config, fact), fact
    folders = (tmp_path / "theirs/config.json", tmp_path / "ours/config.json")
    stored, written = (json.loads(path.read_text()) for path in folders)
    assert written == stored


@pytest.mark.clause("HEA-4")
def test_transformers_refuses_several_rows_without_a_padding_token_too():
    case = drawn("real")
    model = peer(NAMES[0], case, pad_token_id=None)
    with pytest.raises(ValueError, match="no padding token"):
        tokens_of(model, case)


@pytest.mark.clause("HEA-3", "HEA-4")
@pytest.mark.parametrize("pad", [PAD, None])
def test_one_row_that_ends_in_padding_or_is_all_padding(tmp_path: Path, pad: int | None):
    """Without a mask, so that every position is real."""
    model = peer(NAMES[0], drawn("real"), "float32", pad_token_id=pad)
    model.save_pretrained(tmp_path)
    ours = ours_of(tmp_path, NAMES[0], "float32")
    for row in ([5, 6, 3, 3], [3, 3], [3, 5]):
        theirs = model(torch.tensor([row])).logits.detach().numpy()
        np.testing.assert_allclose(ours({"token_ids": [row]}), theirs, rtol=1e-4, atol=1e-5)


# --- labels of texts ---------------------------------------------------------------------------------------------


def saved(folder: Path, name: str, **facts: Any) -> Any:
    """A model with a tokenizer, saved; and transformers' pipeline over it."""
    backbone = BloomBackbone.from_params(CONFIG, case_of(8, CONFIG, 1, 1, "real").params, "float32")
    model = getattr(bloomref, name)(backbone, small_tokenizer(), seed=2, **facts)
    model.head = model.head.map(lambda array: array * 40)
    model.save_to_preset(folder)
    return model


@pytest.mark.clause("HEA-6", "HEA-7")
@pytest.mark.parametrize(
    "facts",
    [
        {},
        {"num_labels": 1},
        {"num_labels": 1, "problem_type": "regression"},
        {"id2label": LABELS["id2label"], "problem_type": "multi_label_classification"},
        {"id2label": LABELS["id2label"], "problem_type": "single_label_classification"},
        {"num_labels": 3, "problem_type": "regression"},
    ],
)
def test_labels_are_those_of_the_pipeline(tmp_path: Path, facts: dict[str, Any]):
    model = saved(tmp_path, "BloomForSequenceClassification", **facts)
    pipeline = transformers.pipeline("text-classification", str(tmp_path), device="cpu")
    for ours, theirs in (
        (model.classify(TEXTS), pipeline(TEXTS)),
        *zip(model.classify(TEXTS, top_k=None), pipeline(TEXTS, top_k=None), strict=True),
        (model.classify(TEXTS[0], top_k=1), pipeline(TEXTS[0], top_k=1)),
        ([model.classify(PAIR)], [pipeline(PAIR)]),
    ):
        assert [entry["label"] for entry in ours] == [entry["label"] for entry in theirs]
        np.testing.assert_allclose(*([entry["score"] for entry in both] for both in (ours, theirs)), rtol=1e-3)


def test_entities_are_those_of_the_pipeline(tmp_path: Path):
    model = saved(tmp_path, "BloomForTokenClassification", id2label={0: "O", 1: "PER", 2: "LOC"})
    pipeline = transformers.pipeline("token-classification", str(tmp_path), device="cpu")
    for text in TEXTS:
        ours, theirs = model.classify(text), pipeline(text)
        without = [[{k: v for k, v in entry.items() if k != "score"} for entry in both] for both in (ours, theirs)]
        assert without[0] == without[1]
        np.testing.assert_allclose(*([entry["score"] for entry in both] for both in (ours, theirs)), rtol=1e-3)
    assert any(model.classify(text) for text in TEXTS)


def test_a_question_is_joined_with_its_context_as_transformers_does(tmp_path: Path):
    model = saved(tmp_path, "BloomForQuestionAnswering")
    tokenizer = transformers.AutoTokenizer.from_pretrained(tmp_path)
    encoded = tokenizer("is the cat?", TEXTS[0], return_offsets_mapping=True)
    spans = model.tokenizer.spans("is the cat?", TEXTS[0])
    assert [span.id for span in spans] == encoded["input_ids"]
    assert [span.part for span in spans] == encoded.sequence_ids()
    assert [(span.start, span.stop) for span in spans] == [tuple(pair) for pair in encoded["offset_mapping"]]
