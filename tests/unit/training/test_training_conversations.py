"""Conversations through a chat template: the answers are learned, and nothing else; each ends with an end token."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from chats import CHATML, TEMPLATES
from hypothesis import given
from hypothesis import strategies as st
from small_models import small_tokenizer, text_lm
from typer.testing import CliRunner

from bloomref.cli.app import app
from bloomref.errors import InvalidInput
from bloomref.training.documents import Document, tokenize
from bloomref.training.records import Conversation, Text, of_record

pytest.importorskip("jinja2")

TOKENIZER = small_tokenizer()
END = 2
MARKED = """{% for m in messages %}{{ '<' + m.role + '>' }}{% if m.role == 'assistant' %}{% generation %}{{ m.content }}
{%- endgeneration %}{% else %}{{ m.content }}{% endif %}{% endfor %}"""
FORGETFUL = "{% for m in messages %}{% if loop.last or m.role == 'user' %}{{ m.content }}{% endif %}{% endfor %}"
SPACED = "ĠĠĠĠĠĠĠĠĠbĠ</s>Ċ|ĠĠĠĠĠĠĠĠĠdĠ</s>Ċ"


class Rows:
    """Records that can be iterated more than once, as data sets of other libraries are."""

    def __init__(self, rows: list[Any]) -> None:
        self.rows = rows

    def __iter__(self) -> Any:
        return iter(self.rows)


def chat(*contents: str, first: str = "user") -> Conversation:
    roles = ("user", "assistant") if first == "user" else ("assistant", "user")
    record = of_record([{"role": roles[i % 2], "content": text} for i, text in enumerate(contents)], "here")
    assert isinstance(record, Conversation)
    return record


def document(record: Any, template: str | None, completion_only: bool = True, end_ids: Any = (END,)) -> Document:
    return tokenize([record], TOKENIZER, completion_only, end_ids, template)[0]


def learned(result: Document) -> str:
    """The learned tokens as a text, with | between two stretches of them."""
    edges = np.flatnonzero(np.diff(result.is_target)) + 1
    stretches = zip(np.split(result.token_ids, edges), np.split(result.is_target, edges), strict=True)
    return "|".join("".join(map(TOKENIZER.id_to_token, ids)) for ids, target in stretches if target[0])


@pytest.mark.clause("TRN-22")
@pytest.mark.parametrize(
    ("template", "expected"),
    [
        (MARKED, "b|d</s>"),
        (CHATML, "b<|im_end|>Ċ|d<|im_end|>Ċ</s>"),
        (TEMPLATES["names before colons"], "Ġb</s>|Ġd</s>"),
        (TEMPLATES["instructions in brackets"], SPACED),
        (TEMPLATES["headings"], "bĊĊ|dĊĊ</s>"),
    ],
)
def test_answers_are_learned(template: str, expected: str) -> None:
    record = chat("a", "b", "c", "d")
    result = document(record, template)
    assert learned(result) == expected
    text = TOKENIZER.apply_chat_template(record.messages, chat_template=template)
    assert result.token_ids.tolist()[: len(text)] == text
    assert document(record, template, completion_only=False).is_target.all()


@pytest.mark.clause("TRN-22")
@given(st.lists(st.text(st.sampled_from("ab the意.\n"), min_size=1, max_size=8), min_size=2, max_size=6))
def test_marks_and_prefixes_agree(contents: list[str]) -> None:
    """A template with marks around all that an answer adds learns what the same template without marks does."""
    plain = (
        "{% for m in messages %}{{ m.role }}: {{ m.content }};{% endfor %}{{ 'assistant: ' if add_generation_prompt }}"
    )
    marked = plain.replace("{{ m.content }};", "{% generation %}{{ m.content }};{% endgeneration %}", 1)
    marked = marked.replace(
        "{% for m in messages %}", "{% for m in messages %}{% if m.role == 'user' %}user: {{ m.content }};{% else %}"
    )
    marked = marked.replace("{% endfor %}", "{% endif %}{% endfor %}")
    one, other = (document(chat(*contents), template) for template in (plain, marked))
    assert one.token_ids.tolist() == other.token_ids.tolist()
    assert one.is_target.tolist() == other.is_target.tolist()


@pytest.mark.clause("TRN-3")
@pytest.mark.parametrize(("ends", "last"), [([5, 2], 5), ([2, 5], 2), ((7,), 7)])
def test_the_models_first_end_token_ends_every_document(ends: Any, last: int) -> None:
    records = [Text("", "a"), Text("a", "b"), chat("a", "b")]
    for result in tokenize(records, TOKENIZER, True, ends, MARKED):
        assert result.token_ids[-1] == last
        assert result.is_target[-1]


@pytest.mark.clause("TRN-3")
def test_the_end_token_of_a_template_is_not_repeated() -> None:
    template = TEMPLATES["names before colons"]
    for ends in ([END], [5, END]):
        assert document(chat("a", "b"), template, end_ids=ends).token_ids.tolist().count(END) == 1
    assert document(chat("a", "b"), template, end_ids=[5]).token_ids[-1] == 5


@pytest.mark.clause("TRN-22")
@pytest.mark.parametrize("name", [name for name in TEMPLATES if name.startswith("marked")])
def test_marks_are_those_of_apply_chat_template(name: str) -> None:
    messages = list(chat("the a", "is the意", "b", "c").messages)
    options: dict[str, Any] = {"return_dict": True, "return_assistant_tokens_mask": True}
    expected = TOKENIZER.apply_chat_template(messages, chat_template=TEMPLATES[name], **options)
    ids, answers = TOKENIZER.encode_answers(messages, chat_template=TEMPLATES[name])
    assert (ids, answers) == (expected["input_ids"], expected["assistant_masks"])
    assert 0 < sum(answers) < len(ids)


@pytest.mark.clause("TRN-22")
@pytest.mark.parametrize(("template", "expected"), [(MARKED, "d</s>"), (CHATML, "d<|im_end|>Ċ</s>")])
def test_answers_in_a_prompt_are_not_learned(template: str, expected: str) -> None:
    messages = list(chat("a", "b", "c", "d").messages)
    record = of_record({"prompt": messages[:3], "completion": messages[3:]}, "here")
    assert learned(document(record, template)) == expected


@pytest.mark.clause("TRN-22")
def test_pairs_become_conversations_when_a_template_is_passed() -> None:
    record = of_record({"instruction": "a", "input": "b", "output": "c"}, "here")
    assert learned(document(record, None)) == "c</s>"
    whole = "".join(map(TOKENIZER.id_to_token, document(record, MARKED).token_ids))
    assert whole == "<user>aĊb<assistant>c</s>"
    assert document(Text("", "plain"), MARKED).token_ids.tolist() == [*TOKENIZER.tokenize("plain"), END]


@pytest.mark.clause("TRN-22")
def test_the_tokenizers_own_template() -> None:
    own = small_tokenizer()
    own.chat_template = MARKED
    for template in (None, "default"):
        (result,) = tokenize([chat("a", "b")], own, chat_template=template)
        assert learned(result) == "b</s>"
    (result,) = tokenize([Text("a", "b")], own, chat_template="default")
    assert result.token_ids.tolist() == document(Text("a", "b"), MARKED).token_ids.tolist()


@pytest.mark.clause("TRN-22")
@pytest.mark.parametrize(
    ("template", "contents", "problem"),
    [
        (None, "ab", r"here: expected a model with a chat template.* --chat-template FILE.*chat_template="),
        ("{{ raise_exception('No.') }}", "ab", "here: messages: .*No"),
        ("{% for", "ab", "here: chat_template: expected a template of jinja2"),
        (FORGETFUL, "abcd", r"here: chat_template: .*up to message 1; .*generation"),
        ("{% for m in messages if m.role == 'user' %}{{ m.content }}{% endfor %}", "ab", "here: .*shows the answers"),
    ],
)
def test_a_template_that_hides_the_answers_is_refused(template: str | None, contents: str, problem: str) -> None:
    with pytest.raises(InvalidInput, match=problem):
        document(chat(*contents), template)


def test_records_of_every_kind_in_python(tmp_path: Path) -> None:
    path = tmp_path / "pairs.csv"
    path.write_text("prompt,completion\nthe, is\n")
    messages = [{"role": "user", "content": "the"}, {"role": "assistant", "content": "is"}]
    data = ["the is", {"input": "the", "target": "is"}, path, messages, {"messages": messages}]
    parts: list[Any] = [data, messages, Rows(data[1:2])]
    counts = [text_lm().fit(part, steps=1, batch=1, chat_template=MARKED).steps[0].tokens for part in parts]
    rows = [document(record, MARKED) for record in (of_record(item, "") for item in [*data[:2], *data[3:]])]
    assert counts[0] == sum(int(row.is_target[1:].sum()) for row in rows) + 2
    assert counts[1:] == [2, 2]


@pytest.mark.clause("TRN-3")
def test_a_model_ends_its_documents_as_its_settings_say() -> None:
    lm = text_lm()
    assert lm.end_token_ids == (END,)
    lm.generation_config = {"eos_token_id": [9, END]}
    assert lm.end_token_ids == (9, END)
    history = lm.fit(["the is"], steps=1, batch=1, held_out=["a b"])
    ids = [*TOKENIZER.tokenize("a b"), 9]
    assert history.evaluations[0].loss == pytest.approx(-lm.score(ids).log_likelihood / (len(ids) - 1), rel=1e-6)


@pytest.mark.parametrize(("data", "name"), [({"text": ["a"]}, "dict"), (3, "int"), (np.ones(3), "ndarray")])
def test_data_of_another_type_is_refused(data: Any, name: str) -> None:
    with pytest.raises(InvalidInput, match=f"data: expected a path, .* got {name}"):
        text_lm().fit(data, steps=1)


def test_a_template_from_the_command_line(tmp_path: Path) -> None:
    data, template = tmp_path / "chat.jsonl", tmp_path / "chat.jinja"
    data.write_text('{"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]}')
    template.write_text(MARKED)
    command = ["finetune", str(data), "--out", str(tmp_path / "out"), "--steps", "1", "--batch", "1", "--json"]
    command += ["--context", "32"]
    for options, problem in (([], "--chat-template FILE"), (["--chat-template", "no-such-file"], "no-such-file")):
        assert problem in str(CliRunner().invoke(app, [*command, *options]).exception)
    done = CliRunner().invoke(app, [*command, "--chat-template", str(template)])
    assert done.exit_code == 0, done.output
