"""Real checkpoints against values that others have published. Opt in with `pytest --network`; downloads some gigabytes.

Sources: KerasHub's preset test of BloomBackbone; transformers' tests of BLOOM (greedy texts of bloom-560m at the
revision they pin, embeddings, states and logits of bigscience-small-testing) and of GGUF files (a greedy text).
What does the loading and computing is run on small local models by the tests at the end, which need no network.
"""

from collections.abc import Sequence
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest

import bloomref
from bloomref import BloomBackbone, BloomCausalLM, BloomTokenizer

BLOOM_560M = "hf://bigscience/bloom-560m"
PINNED = "gs555750"  # the revision whose texts transformers publishes
SMALL_TESTING = "hf://bigscience/bigscience-small-testing"
HALF_VOCABULARY = 125440

# "The quick brown fox</s>" and "jumps over the lazy dog</s>", back and forth
EXAMPLE_IDS = [3478, 368, 109586, 35433, 2, 77, 132619, 3478, 368, 109586]
EXAMPLE_IDS += [35433, 2, 2175, 23714, 73173, 144252, 2, 77, 132619, 3478]

GREEDY = {
    "I enjoy walking with my cute dog": (
        "I enjoy walking with my cute dog, and I love to watch the kids play with the kids. I am a very active person, "
        "and I enjoy working out, and I am a very active person. I am a very active person, and I"
    )
}
GREEDY_BATCH = {
    "Hello what is": "Hello what is the best way to get the data from the server? I have tried",
    "Running a quick test with the": (
        "Running a quick test with the following command:\nsudo apt-get install python3\nsudo apt-get install python2"
    ),
}
SENTENCES = {
    "The quick brown fox</s>": [2175, 23714, 73173, 144252, 2],
    "jumps over the lazy dog</s>": [77, 132619, 3478, 368, 109586, 35433, 2],
}


# --- what the tests run --------------------------------------------------------------------------


def first_values(preset: str | Path) -> np.ndarray:
    """The first five final hidden states of KerasHub's example."""
    model = BloomBackbone.from_preset(preset)
    return model({"token_ids": np.array([[101, 1996, 4248, 102]])})[0, 0, :5]


def pinned(preset: str | Path, **revision: str) -> BloomCausalLM:
    """Weights of a revision, with the tokenizer of today: old revisions may have none."""
    return BloomCausalLM(BloomBackbone.from_preset(preset, **revision), BloomTokenizer.from_preset(preset))


def continued(lm: BloomCausalLM, prompts: Sequence[str], max_length: int) -> list[str]:
    """Greedy texts of a batch as transformers makes them, where the longest prompt and all padding count as length."""
    longest = max(len(ids) for ids in lm.tokenizer.tokenize(list(prompts)))
    return lm.generate(list(prompts), max_new_tokens=max_length - longest)


def embedding_sums(preset: str | Path, ids: Sequence[int]) -> dict[str, float]:
    """The sum of the embeddings of `ids`, of weights rounded to each dtype, rounded to it in turn."""
    sums = {}
    for dtype in ("float32", "bfloat16", "float16"):
        rows = BloomBackbone.from_preset(preset, dtype=dtype).token_embedding([list(ids)])
        sums[dtype] = float(rows.astype(np.float64).sum().astype(rows.dtype))
    return sums


def states_and_logits(preset: str | Path, ids: Sequence[int]) -> tuple[np.ndarray, np.ndarray]:
    lm = BloomCausalLM.from_preset(preset)
    inputs = {"token_ids": [list(ids)]}
    return lm.backbone(inputs)[0], lm.logits(inputs)[0]


# --- the published values ------------------------------------------------------------------------


@pytest.fixture(scope="module")
def lm_pinned() -> BloomCausalLM:
    try:
        return pinned(BLOOM_560M, revision=PINNED)
    except bloomref.Unsupported as error:
        if "pickles" not in str(error):
            raise
        pytest.skip(f"{BLOOM_560M} has no safetensors at {PINNED}: {error}")


@pytest.mark.network
@pytest.mark.parametrize("preset", [BLOOM_560M, "bloom_560m_multi"])
def test_keras_hub_first_values(preset: str):
    expected = [2.4394186, 1.4131186, -2.7810357, -6.330823, -1.0599766]
    np.testing.assert_allclose(first_values(preset), expected, atol=0.01, rtol=0.01)  # the tolerance of the source


@pytest.mark.network
def test_greedy_text(lm_pinned: BloomCausalLM):
    for prompt, text in GREEDY.items():
        assert lm_pinned.generate(prompt, max_length=50) == text
        assert continued(lm_pinned, [prompt, prompt], max_length=50) == [text, text]


@pytest.mark.network
def test_greedy_texts_of_a_ragged_batch(lm_pinned: BloomCausalLM):
    assert continued(lm_pinned, list(GREEDY_BATCH), max_length=20) == list(GREEDY_BATCH.values())


@pytest.mark.network
def test_greedy_text_of_the_gguf_file():
    text = "Hello, I just want to say that I am very"
    assert BloomCausalLM.from_preset(BLOOM_560M).generate("Hello", max_new_tokens=10) == text


@pytest.mark.network
def test_tokens():
    tokenizer = BloomTokenizer.from_preset(BLOOM_560M)
    assert tokenizer.tokenize(list(SENTENCES)) == list(SENTENCES.values())
    assert tokenizer.detokenize(list(SENTENCES.values())) == list(SENTENCES)


@pytest.mark.network
def test_small_testing_embeddings():
    expected = {"float32": 0.08217757940292358, "bfloat16": 0.08203125, "float16": 0.0821533203125}
    ulps = {"float32": 1e-6, "bfloat16": 2**-12, "float16": 2**-14}  # the sum was taken in float32, in another order
    for dtype, value in embedding_sums(SMALL_TESTING, EXAMPLE_IDS).items():
        assert abs(value - expected[dtype]) <= ulps[dtype], dtype
    embedding = BloomBackbone.from_preset(SMALL_TESTING).token_embedding.embeddings
    ranges = {3478: (-0.00921630859375, 0.0128173828125), 144252: (-0.01007080078125, 0.01141357421875)}
    assert {token: (embedding[token].min(), embedding[token].max()) for token in ranges} == ranges


@pytest.mark.network
def test_small_testing_states_and_logits():
    """Published for bfloat16, whose spacing is 2**-6 between 2 and 4: two of them, since this runs in float32."""
    states, logits = states_and_logits(SMALL_TESTING, EXAMPLE_IDS)
    assert abs(states[0].min() - -2.0625) <= 2**-5
    assert abs(states[0].max() - 2.75) <= 2**-5
    assert abs(states.mean() - -4.3392181396484375e-05) < 5e-4  # three places, as the source
    low, high = logits[:, :HALF_VOCABULARY], logits[:, HALF_VOCABULARY:]
    assert abs(low.mean(dtype=np.float64) - -1.823902130126953e-05) < 1e-6
    assert abs(high.mean(dtype=np.float64) - 1.9431114196777344e-05) < 1e-6


# --- the same code without the network -----------------------------------------------------------


def test_the_code_runs_on_a_local_folder(tmp_path: Path):
    sizes = {"vocabulary_size": 5000, "num_layers": 2, "num_heads": 4, "hidden_dim": 16, "intermediate_dim": 64}
    BloomBackbone(**sizes, initializer_range=0.3).save_to_preset(tmp_path / "model")
    ids = [token % 5000 for token in EXAMPLE_IDS]

    assert np.isfinite(first_values(tmp_path / "model")).all()
    states, logits = states_and_logits(tmp_path / "model", ids)
    assert (states.shape, logits.shape) == ((20, 16), (20, 5000))
    sums = embedding_sums(tmp_path / "model", ids)
    assert sums["float32"] == pytest.approx(sums["float16"], rel=1e-2)
    assert sums["bfloat16"] == float(np.float64(sums["bfloat16"]).astype(ml_dtypes.bfloat16))


def test_the_code_runs_on_the_embedded_preset():
    lm = pinned("bloom_tiny_udhr")
    prompts = ["Everyone has", "All human beings are born free and"]
    texts = continued(lm, prompts, max_length=20)
    assert [text.startswith(prompt) for text, prompt in zip(texts, prompts, strict=True)] == [True, True]
    longest = max(len(lm.tokenizer.tokenize(prompt)) for prompt in prompts)
    assert texts[0] == lm.generate(prompts[0], max_new_tokens=20 - longest)
