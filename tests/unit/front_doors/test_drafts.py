"""lm.draft: what a draft may be, and what is refused."""

from pathlib import Path
from typing import Any

import pytest
from small_models import TOKENS, text_lm

from bloomref import BloomBackbone, BloomCausalLM, BloomTokenizer, InvalidInput
from bloomref.generation.proposals import ModelDraft, PromptLookup

TINY = "bloom_tiny_udhr"
LM = text_lm()


def test_a_draft_is_what_it_was() -> None:
    draft = LM.draft("prompt")
    assert isinstance(draft, PromptLookup)
    assert LM.draft(draft) is draft
    assert isinstance(LM.draft(text_lm(seed=1)), ModelDraft)


def test_a_name_or_a_folder_is_loaded_as_the_model_was(tmp_path: Path) -> None:
    lm = BloomCausalLM.from_preset(TINY, dtype="bfloat16")
    lm.save_to_preset(tmp_path / "saved")
    for name in (TINY, tmp_path / "saved"):
        draft: Any = lm.draft(name)
        assert (draft._engine.backend, draft._engine.policy.name) == ("numpy", "bfloat16")


@pytest.mark.clause("GEN-22")
@pytest.mark.parametrize(
    ("draft", "message"),
    [
        (7, "draft: expected 'prompt', a BloomCausalLM, the name or folder of one, or what lm.draft.* returns, got 7"),
        (LM.backbone, "draft: expected 'prompt'"),
        (BloomCausalLM(BloomBackbone(9, 1, 2, 8, 16)), f"expected a model with the same {TOKENS + 12} ids, got 9 ids"),
        ("promt", "promt"),
    ],
    ids=["a number", "a backbone", "other sizes", "a misspelt name"],
)
def test_what_is_no_draft_is_refused(draft: Any, message: str) -> None:
    with pytest.raises(InvalidInput, match=message):
        LM.draft(draft)


@pytest.mark.clause("GEN-22")
def test_a_model_with_other_tokens_is_refused() -> None:
    vocabulary = {token: i for i, token in enumerate(reversed(LM.tokenizer.get_vocabulary()))}
    with pytest.raises(InvalidInput, match="a model with the tokenizer of this one, got one with other tokens"):
        LM.draft(BloomCausalLM(LM.backbone, BloomTokenizer(vocabulary, [])))
    assert isinstance(LM.draft(BloomCausalLM(LM.backbone)), ModelDraft)


@pytest.mark.clause("GEN-22")
@pytest.mark.parametrize(
    ("options", "strategy"), [({"num_beams": 2}, "beam"), ({"penalty_alpha": 0.5, "top_k": 3}, "contrastive")]
)
def test_other_strategies_are_refused(options: Any, strategy: str) -> None:
    with pytest.raises(InvalidInput, match=f"draft: expected greedy search or sampling, got {strategy} search"):
        LM.generate("the", draft="prompt", **options)


@pytest.mark.clause("GEN-22")
def test_vectors_have_no_ids_for_another_model(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("bloomref.causal_lm.check_speculation", lambda *_: None)
    vectors = {"inputs_embeds": LM.backbone.token_embedding([[5, 6]])}
    with pytest.raises(InvalidInput, match="draft: expected 'prompt' with inputs_embeds"):
        LM.generate(vectors, draft=LM, max_new_tokens=3)
