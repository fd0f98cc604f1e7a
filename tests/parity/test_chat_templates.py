"""Chat templates: the texts, ids and masks of transformers, for templates in the shapes that real ones have."""

import json
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

if not (find_spec("torch") and find_spec("transformers") and find_spec("jinja2")):
    pytest.skip("needs torch, transformers and jinja2: pip install 'bloomref[peers]'", allow_module_level=True)

from chats import CONVERSATIONS, DOCUMENTS, TEMPLATES, TOOLS
from small_models import small_tokenizer
from transformers import AutoTokenizer

from bloomref import BloomTokenizer, InvalidInput

CALLS: list[dict[str, Any]] = [
    {},
    {"add_generation_prompt": True, "enable_thinking": True, "effort": "high"},
    {"tools": TOOLS, "documents": DOCUMENTS},
    {"continue_final_message": True},
]


@pytest.fixture(scope="module")
def both(tmp_path_factory: pytest.TempPathFactory) -> tuple[BloomTokenizer, Any]:
    folder: Path = tmp_path_factory.mktemp("tokenizer")
    small_tokenizer().save(folder)
    data = json.loads((folder / "tokenizer.json").read_text())
    size = len(data["model"]["vocab"])
    flags = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False)
    for i, token in enumerate(("<|im_start|>", "<|im_end|>")):
        data["added_tokens"].append({"id": size + i, "content": token, **flags, "special": True})
    (folder / "tokenizer.json").write_text(json.dumps(data))
    (folder / "config.json").write_text('{"model_type": "bloom"}')
    return BloomTokenizer.from_preset(folder), AutoTokenizer.from_pretrained(folder)


def outcome(tokenizer: Any, conversation: Any, **arguments: Any) -> Any:
    """The result, or None for a refusal. jinja2 raises anything, and bloomref InvalidInput for it."""
    try:
        return tokenizer.apply_chat_template(conversation, **arguments)
    except InvalidInput:
        return None
    except Exception:
        assert not isinstance(tokenizer, BloomTokenizer)
        return None


@pytest.mark.clause("PRE-13")
@pytest.mark.parametrize("name", TEMPLATES)
def test_texts_are_those_of_transformers(both: tuple[BloomTokenizer, Any], name: str) -> None:
    ours, theirs = both
    rendered = 0
    for conversation in CONVERSATIONS.values():
        for call in CALLS:
            arguments = {"chat_template": TEMPLATES[name], "tokenize": False, **call}
            expected = outcome(theirs, conversation, **arguments)
            assert outcome(ours, conversation, **arguments) == expected, (conversation, call)
            rendered += expected is not None
    assert rendered >= 8


@pytest.mark.clause("PRE-13")
def test_ids_and_masks_are_those_of_transformers(both: tuple[BloomTokenizer, Any]) -> None:
    ours, theirs = both
    chats = [CONVERSATIONS[name] for name in ("with a system", "an answer last", "keys that are null")]
    for conversation in (*chats, chats):
        arguments = {"chat_template": TEMPLATES["marked answers"], "return_dict": True}
        expected = theirs.apply_chat_template(conversation, return_assistant_tokens_mask=True, **arguments)
        result = ours.apply_chat_template(conversation, return_assistant_tokens_mask=True, **arguments)
        assert result == {name: expected[name] for name in ("input_ids", "attention_mask", "assistant_masks")}
        assert "1" in str(result["assistant_masks"])
        arguments["return_dict"] = False
        assert ours.apply_chat_template(conversation, **arguments) == expected["input_ids"]


@pytest.mark.clause("PRE-13")
def test_a_name_and_tools_choose_the_template_of_transformers(both: tuple[BloomTokenizer, Any]) -> None:
    ours, theirs = both
    templates = {"default": "d", "tool_use": "t", "rag": "r"}
    ours.chat_template = theirs.chat_template = templates
    try:
        for arguments in (
            {},
            {"tools": TOOLS},
            {"chat_template": "rag"},
            {"chat_template": "rag", "tools": TOOLS},
            {"chat_template": "x"},
        ):
            expected = theirs.apply_chat_template([{"role": "user"}], tokenize=False, **arguments)
            assert ours.apply_chat_template([{"role": "user"}], tokenize=False, **arguments) == expected
        ours.chat_template = theirs.chat_template = "default"
        assert ours.apply_chat_template([{}], chat_template="default", tokenize=False) == "default"
    finally:
        ours.chat_template = theirs.chat_template = None
