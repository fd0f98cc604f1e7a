"""The methods of a BloomTokenizer for chat models. Clause: PRE-13."""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from bloomref.argument_kinds import check_collection
from bloomref.chat_answers import with_answers
from bloomref.chat_template import render
from bloomref.errors import InvalidInput, describe, invalid
from bloomref.formats.tokenizers.tokenizer_facts import TokenizerFacts
from bloomref.validation import check_bool, check_integer

if TYPE_CHECKING:
    from tokenizers import Tokenizer


class ChatMethods(ABC):
    """Chat templates of a tokenizer."""

    _facts: TokenizerFacts
    _backend: "Tokenizer"

    @property
    @abstractmethod
    def special_tokens_map(self) -> dict[str, str]: ...

    @property
    def chat_template(self) -> str | dict[str, str] | None:
        """The chat template; name -> template if there are several, with the usual one under "default".

        It may be set to another text or dictionary, or to None.
        """
        templates = self._facts.templates
        return templates.get("default") if templates.keys() <= {"default"} else dict(templates)

    @chat_template.setter
    def chat_template(self, templates: str | Mapping[str, str] | None) -> None:
        self._facts = self._facts.with_templates(templates)

    def apply_chat_template(
        self,
        conversation: Sequence[Any],
        tools: Sequence[Mapping[str, Any]] | None = None,
        documents: Sequence[Mapping[str, Any]] | None = None,
        chat_template: str | None = None,
        add_generation_prompt: bool = False,
        continue_final_message: bool = False,
        tokenize: bool = True,
        return_dict: bool = False,
        return_assistant_tokens_mask: bool = False,
        **variables: Any,
    ) -> Any:
        """A conversation as the text that a chat model was trained on, or as its token ids. Clause: PRE-13.

        As in transformers, from which it differs in one default: `return_dict` is False. Special tokens are written by
        the template alone. A chat model's answer: `lm.generate(tokenizer.apply_chat_template(...), strip_prompt=True)`.

        Args:
            conversation: messages such as {"role": "user", "content": "Hi"}; or a list of conversations.
            tools: JSON schemas of functions, for templates that show them.
            documents: texts such as {"title": ..., "text": ...}, for templates that show them.
            chat_template: a template in jinja2's language, or the name of one of several; None: the model's own.
            add_generation_prompt: end with the beginning of an answer.
            continue_final_message: end within the last message, which the model is to continue.
            tokenize: False: return the text.
            return_dict: return {"input_ids", "attention_mask"}.
            return_assistant_tokens_mask: also "assistant_masks", with 1 for each token of an answer, if the template
                has `{% generation %}` blocks. Needs `return_dict=True`.
            **variables: further variables of the template.

        Raises:
            InvalidInput: without a template, and when it refuses the conversation; Unsupported: without jinja2.

        Example:
            >>> from bloomref import BloomTokenizer
            >>> tokenizer = BloomTokenizer({"<s>": 0, "</s>": 1, "H": 2, "i": 3}, [])
            >>> template = "{% for m in messages %}{{ bos_token + m.content + eos_token }}{% endfor %}"
            >>> tokenizer.apply_chat_template([{"role": "user", "content": "Hi"}], chat_template=template)
            [0, 2, 3, 1]
        """
        check_bool("return_assistant_tokens_mask", return_assistant_tokens_mask)
        check_bool("continue_final_message", continue_final_message)
        check_bool("return_dict", return_dict)
        check_bool("tokenize", tokenize)
        if return_assistant_tokens_mask and not (return_dict and tokenize):
            raise invalid("return_assistant_tokens_mask", "tokenize=True and return_dict=True with it", "another value")
        if continue_final_message and (add_generation_prompt or return_assistant_tokens_mask):
            other = "add_generation_prompt" if add_generation_prompt else "return_assistant_tokens_mask"
            raise invalid("continue_final_message", f"False with {other}", True)
        chats, is_one = _conversations(conversation)
        values = {**self.special_tokens_map, **variables, "tools": _objects("tools", tools)}
        values |= {"documents": _objects("documents", documents), "add_generation_prompt": add_generation_prompt}
        template = _choose(self._facts.templates, chat_template, tools is not None)
        options = {"continue_last": continue_final_message, "mark_answers": return_assistant_tokens_mask}
        rendered = [render(template, chat, values, **options) for chat in chats]
        if not tokenize:
            texts = [chat.text for chat in rendered]
            return texts[0] if is_one else texts
        encodings = self._backend.encode_batch([chat.text for chat in rendered], add_special_tokens=False)
        columns = {"input_ids": [encoding.ids for encoding in encodings]}
        if return_dict:
            columns["attention_mask"] = [[1] * len(ids) for ids in columns["input_ids"]]
        if return_assistant_tokens_mask:
            both = zip(rendered, encodings, strict=True)
            columns["assistant_masks"] = [chat.mask(encoding.offsets) for chat, encoding in both]
        result = {name: rows[0] if is_one else rows for name, rows in columns.items()}
        return result if return_dict else result["input_ids"]

    def encode_answers(
        self,
        messages: Sequence[Mapping[str, Any]],
        tools: Sequence[Mapping[str, Any]] | None = None,
        chat_template: str | None = None,
        asked: int = 0,
    ) -> tuple[list[int], list[int]]:
        """Token ids of a conversation, and 1 for each token of an answer: what training reads. Clause: TRN-22.

        Args:
            messages: one conversation.
            tools, chat_template: as in `apply_chat_template`.
            asked: number of messages at the beginning whose answers do not count.

        Raises:
            InvalidInput: as `apply_chat_template`, and when the template's text does not show the answers.
        """
        check_integer("asked", asked, 0)
        check_collection("messages", messages, "a list of messages")
        messages = list(messages)
        if not messages:
            raise invalid("messages", "one message or more", "none")
        template = _choose(self._facts.templates, chat_template, tools is not None)
        values = {**self.special_tokens_map, "tools": _objects("tools", tools), "documents": None}
        chat = with_answers(template, messages, {**values, "add_generation_prompt": False}, asked)
        encoding = self._backend.encode(chat.text, add_special_tokens=False)
        return encoding.ids, chat.mask(encoding.offsets)


def _choose(templates: Mapping[str, str], named: str | None, has_tools: bool) -> str:
    """The template of this name, or this text; without either, the one for tools if there is one, or the default."""
    if named is not None and not isinstance(named, str):
        raise invalid("chat_template", "a template, or the name of one", named)
    if named is not None and (named not in templates or templates.keys() == {"default"}):
        return named
    names = [named] if named is not None else ["tool_use", "default"] if has_tools else ["default"]
    for name in names:
        if name in templates:
            return templates[name]
    if templates:
        hint = f"pass one of {', '.join(sorted(templates))}"
        raise invalid("chat_template", "the name of a template, since none is the default", "none", hint)
    raise InvalidInput(
        "chat_template: expected a tokenizer with a chat template, got one without; pass chat_template=..., or use a "
        "model that was trained on conversations"
    )


def _conversations(conversation: object) -> tuple[list[Sequence[Any]], bool]:
    """The conversations of a caller, and True if it is one alone."""
    if not isinstance(conversation, Sequence) or isinstance(conversation, str) or not conversation:
        expected = 'messages such as [{"role": "user", "content": "Hi"}]'
        raise invalid("conversation", expected, conversation if conversation else "none")
    is_one = not isinstance(conversation[0], (list, tuple))
    return ([conversation] if is_one else list(conversation)), is_one


def _objects(name: str, values: Sequence[Any] | None) -> list[Mapping[str, Any]] | None:
    if values is None:
        return None
    check_collection(name, values, "a list of dictionaries")
    for index, value in enumerate(values):
        if not isinstance(value, Mapping):
            hint = "transformers.utils.get_json_schema makes that of a function" if callable(value) else ""
            expected = "a JSON schema" if name == "tools" else "a dictionary"
            raise InvalidInput(describe(f"{name}[{index}]", expected, value, hint))
    return list(values)
