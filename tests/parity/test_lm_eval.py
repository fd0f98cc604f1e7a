"""The log-likelihoods of lm-evaluation-harness, request by request, on three local tasks.

lm-evaluation-harness runs transformers' BLOOM in float64, with the weights and the tokenizer of `bloom_tiny_udhr`. Its
requests and answers are those that it logs. `pip install lm-eval torch transformers` brings the test to life.
"""

import json
from typing import Any

import pytest

from bloomref import BloomCausalLM

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("default")]
lm_eval = pytest.importorskip("lm_eval")
torch = pytest.importorskip("torch")
pytest.importorskip("transformers")

QUESTIONS = [
    {"context": "Everyone has the right to", "choices": [" life", " education", " the"], "answer": 0},
    {"context": "Everyone has the right to ", "choices": ["life and", "work", "社会"], "answer": 1},
    {"context": "Jeder hat das Recht auf", "choices": [" Leben", " Bildung\n", " Freiheit, und"], "answer": 2},
    {"context": "Article 1\n", "choices": ["All human beings", " Everyone"], "answer": 0},
]
"""No choice begins within a token: the two rules for the join agree."""
CONTINUATIONS = [
    {"context": "No one shall be held in", "choices": [" slavery or servitude."], "answer": 0},
    {"context": "", "choices": ["Everyone has duties to the community"], "answer": 0},
    {"context": "人人有权", "choices": ["享有生命、自由"], "answer": 0},
]
WITHIN_A_TOKEN = [
    {"context": "Everyone has the rig", "choices": ["ht to life", "ht to work", "ht of all"], "answer": 0},
    {"context": "Every", "choices": ["one has the right"], "answer": 0},
]
TEXTS = ["Everyone has the right to life, liberty and security of person.", "人人生而自由,在尊严和权利上一律平等。" * 4]
WINDOW = 24

COMMON = {
    "dataset_path": "json",
    "test_split": "test",
    "doc_to_text": "{{context}}",
    "doc_to_target": "{{choices[0]}}",
    "target_delimiter": "",
}
CHOICE = COMMON | {
    "output_type": "multiple_choice",
    "doc_to_choice": "choices",
    "doc_to_target": "answer",
    "metric_list": [{"metric": "acc"}],
}
TASKS: dict[str, tuple[dict[str, Any], list[dict[str, Any]]]] = {
    "local_choices": (CHOICE, QUESTIONS),
    "local_within_a_token": (CHOICE, WITHIN_A_TOKEN),
    "local_continuations": (
        COMMON | {"output_type": "loglikelihood", "metric_list": [{"metric": "perplexity"}]},
        CONTINUATIONS,
    ),
    "local_rolling": (
        COMMON
        | {
            "output_type": "loglikelihood_rolling",
            "doc_to_text": "",
            "doc_to_target": "{{text}}",
            "metric_list": [{"metric": "byte_perplexity"}],
        },
        [{"text": text} for text in TEXTS],
    ),
}


@pytest.fixture(scope="module")
def lm() -> BloomCausalLM:
    return BloomCausalLM.from_preset("bloom_tiny_udhr", dtype="float64")


@pytest.fixture(scope="module")
def harness(lm: BloomCausalLM, tmp_path_factory: pytest.TempPathFactory) -> Any:
    from lm_eval.models.huggingface import HFLM
    from parity.hugging_face import build
    from transformers import AutoTokenizer

    folder = tmp_path_factory.mktemp("tokenizer")
    assert lm.tokenizer is not None
    lm.tokenizer.save(folder)
    model = build(lm.backbone.config, lm.backbone.params)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    return HFLM(pretrained=model, tokenizer=tokenizer, max_length=WINDOW, device="cpu", batch_size=1)


@pytest.fixture(scope="module")
def logged(harness: Any, tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[tuple[Any, Any]]]:
    """Name of a task -> the requests of lm-evaluation-harness, with its answers."""
    from lm_eval.tasks import TaskManager
    from parity.hugging_face import in_float64

    folder = tmp_path_factory.mktemp("tasks")
    monkeypatch = pytest.MonkeyPatch()
    monkeypatch.setenv("HF_DATASETS_OFFLINE", "1")
    for name, (task, rows) in TASKS.items():
        data = folder / f"{name}.jsonl"
        data.write_text("".join(json.dumps(row) + "\n" for row in rows), "utf-8")
        files = {"data_files": {"test": str(data)}, "cache_dir": str(folder / "cache")}
        (folder / f"{name}.yaml").write_text(json.dumps(task | {"task": name, "dataset_kwargs": files}), "utf-8")
    with in_float64():
        results = lm_eval.simple_evaluate(
            harness,
            tasks=list(TASKS),
            task_manager=TaskManager(include_path=str(folder), include_defaults=False),
            bootstrap_iters=0,
            verbosity="ERROR",
        )
    monkeypatch.undo()
    return {name: list(_requests(samples)) for name, samples in results["samples"].items()}


def _requests(samples: list[dict[str, Any]]) -> Any:
    for sample in samples:
        arguments = sample["arguments"]
        rows = arguments.values() if isinstance(arguments, dict) else arguments
        for row, answer in zip(rows, sample["resps"], strict=True):
            yield tuple(row.values()) if isinstance(row, dict) else tuple(row), answer[0]


@pytest.mark.clause("SCO-3")
@pytest.mark.parametrize(("task", "count"), [("local_choices", 11), ("local_continuations", 3)])
def test_log_likelihoods_of_continuations(logged: Any, lm: BloomCausalLM, task: str, count: int) -> None:
    assert len(logged[task]) == count
    for (context, text), (log_likelihood, is_greedy) in logged[task]:
        score = lm.score(text, context=context)
        assert score.log_likelihood == pytest.approx(log_likelihood, rel=1e-6)
        assert score.is_greedy == is_greedy


@pytest.mark.clause("SCO-2", "SCO-7")
def test_log_likelihoods_of_whole_texts(logged: Any, lm: BloomCausalLM, harness: Any) -> None:
    """A text of one window is scored from <s>. The last of several windows reaches further back than a stride."""
    from lm_eval.utils import get_rolling_token_windows, make_disjoint_window

    lengths = []
    for (text,), log_likelihood in logged["local_rolling"]:
        ids = lm.tokenizer.tokenize(text)
        lengths.append(len(ids))
        rolling = get_rolling_token_windows(ids, harness.prefix_token_id, WINDOW, 1)
        parts = [lm.score(after, context=before) for before, after in map(make_disjoint_window, rolling)]
        assert sum(part.log_likelihood for part in parts) == pytest.approx(log_likelihood, rel=1e-6)
        windows = lm.score(text, context="", window=WINDOW + 1, stride=WINDOW)
        assert windows.token_ids == sum((part.token_ids for part in parts), ())
        whole = [x for part in parts[:-1] for x in part.log_probs] if len(parts) > 1 else list(parts[0].log_probs)
        assert list(windows.log_probs[: len(whole)]) == pytest.approx(whole, rel=1e-9)
    assert min(lengths) <= WINDOW < max(lengths)


@pytest.mark.clause("SCO-3")
def test_where_a_token_crosses_the_join_the_harness_leaves_characters_out(logged: Any, lm: BloomCausalLM) -> None:
    """Its model reads the context's own tokens, and behind them the whole's, from as many on."""
    tokenizer = lm.tokenizer
    assert tokenizer is not None
    for (context, text), (log_likelihood, _) in logged["local_within_a_token"]:
        before, whole = tokenizer.tokenize(context), tokenizer.tokenize(context + text)
        theirs, ours = lm.score(whole[len(before) :], context=before), lm.score(text, context=context)
        assert theirs.log_likelihood == pytest.approx(log_likelihood, rel=1e-6)
        assert not tokenizer.detokenize(list(theirs.token_ids)).endswith(text)
        assert tokenizer.detokenize(list(ours.token_ids)).endswith(text)
