"""apply_chat_template: refusals, the sandbox, and `bloomref generate --chat`. Texts are compared in tests/parity."""

import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from small_models import small_tokenizer, text_lm

from bloomref import BloomCausalLM, InvalidInput, Unsupported
from bloomref.cli.app import run

MESSAGES = [{"role": "user", "content": "the a"}, {"role": "assistant", "content": "is"}]
TOKENIZER = small_tokenizer()


@pytest.fixture(autouse=True)
def jinja2() -> Any:
    return pytest.importorskip("jinja2")


def render(template: str, messages: Any = MESSAGES, **arguments: Any) -> Any:
    return TOKENIZER.apply_chat_template(messages, chat_template=template, tokenize=False, **arguments)


@pytest.mark.parametrize(
    ("template", "arguments", "message"),
    [
        ("{{ raise_exception('roles must alternate') }}", {}, "messages: expected .*accepts, got .*alternate; change"),
        ("{{ messages[0]['content'] + 3 }}", {}, "messages: .*TypeError"),
        ("{{ nothing.attribute }}", {}, "messages: .*UndefinedError"),
        ("{% for m in messages %}", {}, "chat_template: expected a template of jinja2, got TemplateSyntaxError"),
        ("\ud800", {}, "messages: expected messages and a template of valid Unicode"),
        ("{% break %}", {}, "chat_template: expected a template of jinja2, got SyntaxError"),
        ("{{ ''.__class__.__mro__ }}", {}, "SecurityError"),
        ("{{ cycler.__init__.__globals__ }}", {}, "SecurityError"),
        ("{% set ns = namespace() %}{% set ns.__init__ = 1 %}", {}, "SecurityError"),
        ("{{ namespace(_x=1) }}", {}, "SecurityError"),
        ("{{ messages.append(1) }}", {}, "SecurityError"),
        ("x", {"messages": []}, "conversation: expected messages such as"),
        ("x", {"messages": "Hi"}, "conversation: expected messages such as"),
        ("x", {"messages": ["Hi"]}, r"messages\[0\]: expected a dictionary such as"),
        ("x", {"tools": [print]}, r"tools\[0\]: expected a JSON schema, .*get_json_schema"),
        ("x", {"documents": ["Hi"]}, r"documents\[0\]: expected a dictionary"),
        ("x", {"return_assistant_tokens_mask": True}, "return_assistant_tokens_mask: expected tokenize=True"),
        (
            "x",
            {"continue_final_message": True, "add_generation_prompt": True},
            "continue_final_message: expected False",
        ),
        ("x", {"continue_final_message": True}, "continue_final_message: expected a template that shows"),
        (
            "x",
            {"continue_final_message": True, "messages": [{"content": 3}]},
            "continue_final_message: expected a last",
        ),
        (3, {}, "chat_template: expected a template, or the name of one"),
    ],
)
def test_what_is_refused(template: Any, arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(InvalidInput, match=message):
        render(template, **arguments)


def test_a_tokenizer_without_a_template_says_so() -> None:
    with pytest.raises(InvalidInput, match="chat_template: expected a tokenizer with a chat template, got one without"):
        TOKENIZER.apply_chat_template(MESSAGES)
    several = small_tokenizer()
    several.chat_template = {"rag": "a", "tool_use": "b"}
    with pytest.raises(InvalidInput, match="pass one of rag, tool_use"):
        several.apply_chat_template(MESSAGES)


def test_without_jinja2_one_sentence_says_what_to_install(monkeypatch: pytest.MonkeyPatch, jinja2: Any) -> None:
    from bloomref import chat_template

    chat_template._environment.cache_clear()
    monkeypatch.setattr(jinja2, "__version__", "3.1.5")
    with pytest.raises(Unsupported, match=r"expected jinja2 3.1.6 or later, got 3.1.5"):
        render("one that is not compiled yet")
    monkeypatch.setitem(sys.modules, "jinja2", None)
    with pytest.raises(Unsupported, match=r"expected jinja2 to be installed; pip install 'bloomref\[chat\]'"):
        render("one that is not compiled yet")


def test_the_callers_messages_stay_as_they_are_and_templates_see_plain_values() -> None:
    messages = [{"role": np.str_("user"), "content": "a", "image": object(), "n": np.int64(3), "none": None}]
    before = dict(messages[0])
    text = render("{{ messages[0].image }}{{ messages[0].n }}{{ messages[0].none is defined }}", messages)
    assert text == "<object>3False"
    assert messages[0] == before
    assert render("{{ messages[0].content }}", MESSAGES, continue_final_message=False) == "the a"
    continued = "{% for m in messages %}[{{ m.content }}]{% endfor %}"
    assert render(continued, MESSAGES, continue_final_message=True) == "[the a][is"
    assert MESSAGES[-1]["content"] == "is"


def test_special_tokens_stand_where_the_template_writes_them() -> None:
    ids = TOKENIZER.apply_chat_template(MESSAGES, chat_template="{{ bos_token }}{{ messages[0].content }}</s>")
    assert ids == [1, *TOKENIZER("the a"), 2]


def test_messages_as_prompts_say_how_they_become_ids() -> None:
    with pytest.raises(InvalidInput, match=r"inputs: expected a text.*got messages; .*apply_chat_template"):
        text_lm().generate(MESSAGES)  # type: ignore[call-overload]


@pytest.fixture(scope="module")
def chat_model() -> BloomCausalLM:
    lm = text_lm()
    assert lm.tokenizer is not None
    lm.tokenizer.chat_template = (
        "{% for m in messages %}<s>{{ m.content }}{% endfor %}{% if add_generation_prompt %}</s>{% endif %}"
    )
    return lm


@pytest.mark.parametrize(
    "prompt", ["the a", '[{"role": "user", "content": "the"}, {"role": "assistant", "content": "a"}]']
)
def test_the_command_line_answers(
    chat_model: BloomCausalLM, tmp_path: Path, capfd: pytest.CaptureFixture[str], prompt: str
) -> None:
    chat_model.save_to_preset(tmp_path)
    command = ["generate", "--chat", "--model", str(tmp_path), "--backend", "numpy", "-n", "4"]
    assert run([*command, prompt]) == 0
    ids = [1, *TOKENIZER("the a"), 2] if prompt == "the a" else [1, *TOKENIZER("the"), 1, *TOKENIZER("a"), 2]
    assert capfd.readouterr().out == "".join(chat_model.stream(ids, max_new_tokens=4)) + "\n"
    assert run([*command, "[{1"]) == 2
    assert "prompt: expected a JSON array such as" in capfd.readouterr().err
    assert run([*command, "a", "--best-of", "2"]) == 2
    assert "--chat: expected one conversation with one answer" in capfd.readouterr().err
