"""What stands beside the weights survives load and save, in both layouts."""

import json
import pickle
from pathlib import Path
from typing import Any

import pytest
from small_models import MERGES, small_vocabulary, text_lm

from bloomref import BadWeights, BloomCausalLM, BloomTokenizer, InvalidInput
from bloomref.cli.app import run
from bloomref.formats.tokenizers.tokenizer_facts import TokenizerFacts
from bloomref.formats.tokenizers.tokenizer_files import bloom_tokenizer_json

LM = text_lm()
USER, BOT = (len(small_vocabulary()) + i for i in range(2))
TEMPLATE = "{% for m in messages %}<|user|>{{ m.content }}\r\n{% endfor %}"
TOKENIZER: dict[str, Any] = {
    "model_max_length": 77,
    "padding_side": "right",
    "add_bos_token": False,
    "additional_special_tokens": ["<|user|>"],
    "bos_token": {"content": "<s>", "lstrip": False, "__type": "AddedToken"},
    "tokenizer_class": "PreTrainedTokenizerFast",
    "a key of tomorrow": [1, {"deep": None}],
}
GENERATION = {"eos_token_id": [2, USER], "temperature": 0.5, "a key of tomorrow": {"x": None}}


def edit(path: Path, **changes: Any) -> None:
    path.write_text(json.dumps((json.loads(path.read_text()) if path.exists() else {}) | changes))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A chat model: two added tokens, one of them special, and everything that may stand beside it."""
    path: Path = tmp_path_factory.mktemp("source")
    LM.save_to_preset(path)
    flags = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False)
    data = bloom_tokenizer_json(small_vocabulary(), MERGES)
    data["added_tokens"] += [
        {"id": USER, "content": "<|user|>", **flags, "special": True},
        {"id": BOT, "content": "<|bot|>", **flags, "rstrip": True, "special": False},
    ]
    (path / "tokenizer.json").write_text(json.dumps(data))
    edit(path / "tokenizer_config.json", **TOKENIZER)
    edit(path / "special_tokens_map.json", additional_special_tokens=["<|user|>"])
    edit(path / "generation_config.json", **GENERATION)
    edit(path / "config.json", **{"a key of tomorrow": 3})
    (path / "chat_template.jinja").write_bytes(TEMPLATE.encode())
    (path / "additional_chat_templates").mkdir()
    (path / "additional_chat_templates" / "tool_use.jinja").write_text("tools")
    (path / "LICENSE.txt").write_text("RAIL")
    (path / "README.md").write_text("card")
    return path


def check(folder: Path) -> None:
    """The folder's facts are those of the source, as bloomref reads them."""
    lm = BloomCausalLM.from_preset(folder)
    tokenizer = lm.tokenizer
    assert tokenizer is not None
    assert tokenizer.tokenizer_config.items() >= TOKENIZER.items()
    assert tokenizer.chat_template == {"default": TEMPLATE, "tool_use": "tools"}
    assert tokenizer("<|user|>a<|bot|> a") == [USER, *tokenizer("a"), BOT, *tokenizer("a")]  # rstrip takes the space
    assert tokenizer.detokenize([USER, BOT], skip_special_tokens=True) == "<|bot|>"
    assert lm.generation_config == GENERATION
    assert json.loads((folder / "special_tokens_map.json").read_text())["additional_special_tokens"] == ["<|user|>"]
    assert (folder / "LICENSE.txt").read_text() == "RAIL"


@pytest.mark.clause("PRE-12")
def test_a_saved_model_keeps_them(folder: Path, tmp_path: Path) -> None:
    BloomCausalLM.from_preset(folder).save_to_preset(tmp_path / "saved")
    check(tmp_path / "saved")
    assert json.loads((tmp_path / "saved" / "config.json").read_text())["a key of tomorrow"] == 3
    assert not (tmp_path / "saved" / "README.md").exists()
    BloomCausalLM.from_preset(folder, generation_config=False).save_to_preset(tmp_path / "ignored")
    assert BloomCausalLM.from_preset(tmp_path / "ignored").generation_config == GENERATION


@pytest.mark.clause("PRE-12")
def test_the_keras_layout_keeps_them(folder: Path, tmp_path: Path) -> None:
    pytest.importorskip("h5py")
    BloomCausalLM.from_preset(folder).save_to_preset(tmp_path / "keras", format="keras")
    check(tmp_path / "keras")
    described = json.loads((tmp_path / "keras" / "tokenizer.json").read_text())
    assert described["config"]["unsplittable_tokens"] == ["</s>", "<s>", "<pad>", "<|user|>", "<|bot|>"]
    BloomCausalLM.from_preset(tmp_path / "keras").save_to_preset(tmp_path / "back")
    check(tmp_path / "back")


@pytest.mark.slow
@pytest.mark.clause("PRE-12")
def test_convert_keeps_them_and_the_model_card(folder: Path, tmp_path: Path) -> None:
    pytest.importorskip("h5py")
    for source, target in ((folder, "hf"), (folder, "keras"), (tmp_path / "keras", "hf-again")):
        assert run(["convert", str(source), str(tmp_path / target), "--to", target.partition("-")[0]]) == 0
        check(tmp_path / target)
        assert (tmp_path / target / "README.md").read_text() == "card"


@pytest.mark.slow
@pytest.mark.clause("PRE-12")
def test_full_finetuning_keeps_them(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "data.txt").write_text("the a is")
    training = ["--steps", "1", "--batch", "1", "--context", "8", "--lr", "1e-9"]
    arguments = ["finetune", str(tmp_path / "data.txt"), "--model", str(folder), "--full", "--json", *training]
    assert run([*arguments, "--out", str(tmp_path / "out")]) == 0
    check(tmp_path / "out")


def test_a_model_without_a_tokenizer_keeps_its_settings(folder: Path, tmp_path: Path) -> None:
    pytest.importorskip("h5py")
    lm = BloomCausalLM.from_preset(folder)
    for layout in ("hf", "keras"):
        BloomCausalLM(lm.backbone, None, {"num_beams": 2}).save_to_preset(tmp_path / layout, format=layout)
        assert BloomCausalLM.from_preset(tmp_path / layout).generation_config["num_beams"] == 2
        assert BloomCausalLM.from_preset(tmp_path / layout).tokenizer is None


def test_an_end_token_that_only_the_tokenizer_knows_is_stored(tmp_path: Path) -> None:
    lm = BloomCausalLM(LM.backbone, BloomTokenizer({"a": 0, "b": 1, "</s>": 7}, []))
    lm.save_to_preset(tmp_path)
    assert BloomCausalLM.from_preset(tmp_path).generation_config["eos_token_id"] == [7]


def test_pickles_keep_them(folder: Path) -> None:
    tokenizer = BloomTokenizer.from_preset(folder)
    again = pickle.loads(pickle.dumps(tokenizer))
    assert again.tokenizer_config == tokenizer.tokenizer_config
    assert again.chat_template == tokenizer.chat_template
    restore, (state, special, _) = tokenizer.__reduce__()
    assert restore(state, special).tokenizer_config == {}  # a pickle of 0.1.0


@pytest.mark.parametrize(
    "stored", ["one", [{"name": "default", "template": "one"}, {"name": "rag", "template": "two"}]]
)
def test_templates_are_written_where_they_were(tmp_path: Path, stored: Any) -> None:
    edit(tmp_path / "tokenizer_config.json", chat_template=stored)
    facts = TokenizerFacts.read(tmp_path)
    facts.write(tmp_path, {})
    assert json.loads((tmp_path / "tokenizer_config.json").read_text())["chat_template"] == stored
    assert not (tmp_path / "chat_template.jinja").exists()
    facts.with_templates("three").write(tmp_path, {})
    assert TokenizerFacts.read(tmp_path).templates == {"default": "three"}


def test_a_new_template_becomes_a_file(tmp_path: Path) -> None:
    tokenizer = BloomTokenizer(small_vocabulary(), MERGES)
    tokenizer.chat_template = {"default": "a", "tool_use": "b"}
    tokenizer.save(tmp_path)
    assert (tmp_path / "additional_chat_templates" / "tool_use.jinja").read_text() == "b"
    assert BloomTokenizer.find(tmp_path).chat_template == tokenizer.chat_template
    tokenizer.chat_template = None
    assert tokenizer.chat_template is None


@pytest.mark.parametrize("templates", [{"../x": "a"}, {"a\\b": "a"}, {"": "a"}, {"a": 3}, ["a"], 3])
def test_a_template_that_is_none_is_refused(templates: Any) -> None:
    with pytest.raises(InvalidInput, match="chat_template"):
        TokenizerFacts().with_templates(templates)


@pytest.mark.parametrize("stored", [3, [3], [{"name": "x"}], {"a": 1}, [{"name": 1, "template": "x"}]])
def test_a_damaged_template_is_refused(tmp_path: Path, stored: Any) -> None:
    edit(tmp_path / "tokenizer_config.json", chat_template=stored)
    with pytest.raises(BadWeights, match="chat_template"):
        TokenizerFacts.read(tmp_path)
    (tmp_path / "chat_template.jinja").write_bytes(b"\xff")
    with pytest.raises(BadWeights, match="UTF-8"):
        TokenizerFacts.read(tmp_path)


@pytest.mark.clause("GEN-19")
@pytest.mark.parametrize(("before", "after"), [(["<s>"], []), ([], ["</s>"]), (["<s>", "<pad>"], ["</s>"]), ([], [])])
def test_a_prompt_has_what_stands_before_a_text_but_not_what_stands_after(
    tmp_path: Path, before: list[str], after: list[str]
) -> None:
    data = bloom_tokenizer_json(small_vocabulary(), MERGES)
    ids = {token: {"id": token, "ids": [data["model"]["vocab"][token]], "tokens": [token]} for token in before + after}
    special = [[{"SpecialToken": {"id": token, "type_id": 0}} for token in tokens] for tokens in (before, after)]
    single = [*special[0], {"Sequence": {"id": "A", "type_id": 0}}, *special[1]]
    pair = [*single, {"Sequence": {"id": "B", "type_id": 0}}]
    processor = {"type": "TemplateProcessing", "single": single, "pair": pair, "special_tokens": ids}
    (tmp_path / "tokenizer.json").write_text(json.dumps(data | {"post_processor": processor}))
    tokenizer = BloomTokenizer.find(tmp_path)
    assert tokenizer is not None
    front = [tokenizer.token_to_id(token) for token in before]
    assert tokenizer.as_prompts(["the a", ""]) == [[*front, *tokenizer("the a")], front]
    lm = BloomCausalLM(LM.backbone, tokenizer)
    continued = lm.generate([*front, *tokenizer("the a")], max_new_tokens=3, strip_prompt=True)
    expected = "the a" + tokenizer.detokenize(continued, skip_special_tokens=True)
    assert lm.generate("the a", max_new_tokens=3, stop_token_ids=None) == expected
