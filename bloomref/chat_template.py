"""Chat templates: a conversation as one text, rendered with jinja2 as transformers renders it. Clause: PRE-13.

Templates come with a model's files, so they run in jinja2's sandbox and see plain values only.
"""

import json
import re
import secrets
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from functools import lru_cache
from typing import Any

import numpy as np

from bloomref.errors import InvalidInput, Unsupported, describe, invalid

_OLDEST = (3, 1, 6)  # a template can leave the sandbox of older versions
_MARK = "bloomref_mark"
_CONTINUED = "bloomref continues here "
_REASONING = ("reasoning_content", "thinking", "reasoning")
"""Names of a message's reasoning. A template reads the first, some read the second, a caller may write any."""


@dataclass(frozen=True)
class Rendered:
    """A rendered conversation.

    Args:
        text: the conversation as a text.
        answers: (start, stop) of the characters within `{% generation %}` blocks, in order.
    """

    text: str
    answers: tuple[tuple[int, int], ...] = ()

    def mask(self, offsets: Iterable[tuple[int, int]]) -> list[int]:
        """1 for each token that has a character of an answer, else 0; `offsets` are (start, stop) of the tokens."""
        return [int(any(start < end and stop > begin for begin, end in self.answers)) for start, stop in offsets]


def render(
    template: str,
    messages: Sequence[Any],
    values: Mapping[str, Any],
    *,
    continue_last: bool = False,
    mark_answers: bool = False,
) -> Rendered:
    """Render one conversation.

    Args:
        template: the template, in jinja2's language.
        messages: dictionaries such as {"role": "user", "content": "Hi"}. A key whose value is None counts as absent.
        values: other variables of the template: special tokens, `tools`, `documents`, `add_generation_prompt` ...
        continue_last: end the text within the content of the last message.
        mark_answers: find the `{% generation %}` blocks.

    Raises:
        InvalidInput: when the template is damaged, or refuses the conversation; Unsupported: without jinja2.
    """
    compiled = _compiled(template)
    mark = f"\ue000{secrets.token_hex(8)}\ue001" if mark_answers else None
    conversation = [_message(index, message) for index, message in enumerate(messages)]
    ending = _open_end(conversation) if continue_last else ""
    try:
        text = compiled.render({**_plain(values), "messages": conversation, _MARK: mark})
    except Exception as error:  # a template can raise anything
        hint = "change the messages, or pass another chat_template"
        expected = "a conversation that the chat template accepts"
        raise InvalidInput(describe("messages", expected, _named(error), hint)) from None
    try:
        text.encode()
    except UnicodeEncodeError as error:
        expected = "messages and a template of valid Unicode"
        raise invalid("messages", expected, repr(text[error.start]), f"at {error.start}") from None
    if continue_last:
        text = _cut(text, ending)
    return _without_marks(text, mark) if mark else Rendered(text)


def _message(index: int, message: object) -> dict[str, Any]:
    if not isinstance(message, Mapping):
        raise invalid(f"messages[{index}]", 'a dictionary such as {"role": "user", "content": "Hi"}', message)
    plain = {key: value for key, value in _plain(message).items() if value is not None}
    reasoning = next((plain[name] for name in _REASONING if name in plain), None)
    return plain if reasoning is None else {"thinking": reasoning, **plain, "reasoning_content": reasoning}


def _plain(value: Any) -> Any:
    """The value in plain types: a template could call the methods of other objects. They become their type's name."""
    if isinstance(value, np.generic):
        value = value.item()
    if value is None or isinstance(value, bool):
        return value
    for kind in (str, int, float):
        if isinstance(value, kind):
            return kind(value)
    if isinstance(value, Mapping):
        return {_plain(key): _plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    return f"<{type(value).__name__}>"


# --- the end of a message that the model continues ---------------------------------------------------------------


def _open_end(conversation: list[dict[str, Any]]) -> str:
    """Append a mark to the last message's text, in place. Returns the text."""
    content = conversation[-1].get("content") if conversation else None
    blocks = content if isinstance(content, list) else [conversation[-1]] if isinstance(content, str) else []
    key = "text" if isinstance(content, list) else "content"
    for block in reversed(blocks):
        if isinstance(block, dict) and isinstance(block.get(key), str):
            text: str = block[key]
            block[key] = text + _CONTINUED
            return text
    raise invalid("continue_final_message", "a last message with a text to continue", content)


def _cut(text: str, ending: str) -> str:
    at = text.rfind(_CONTINUED.strip())
    if at < 0 or ending.strip() not in text:
        hint = "the template leaves it out, or changes it"
        raise invalid("continue_final_message", "a template that shows the last message's text", "another one", hint)
    is_whole = text[at : at + len(_CONTINUED)] == _CONTINUED
    return text[:at] if is_whole else text[:at].rstrip()  # a template that trims the message


def _without_marks(text: str, mark: str) -> Rendered:
    pieces, answers, position = text.split(mark), [], 0
    for index, piece in enumerate(pieces):
        if index % 2:
            answers.append((position, position + len(piece)))
        position += len(piece)
    return Rendered("".join(pieces), tuple(answers))


# --- jinja2 ------------------------------------------------------------------------------------------------------


def _library() -> Any:
    try:
        import jinja2
    except ImportError:
        raise Unsupported("chat template: expected jinja2 to be installed; pip install 'bloomref[chat]'") from None
    version = tuple(int(number) for number in re.findall(r"\d+", jinja2.__version__)[:3])
    if version < _OLDEST:
        hint = "pip install --upgrade jinja2"
        raise Unsupported(describe("chat template", "jinja2 3.1.6 or later", jinja2.__version__, hint))
    return jinja2


@lru_cache(maxsize=32)
def _compiled(template: str) -> Any:
    environment = _environment()
    try:
        return environment.from_string(template)
    except Exception as error:  # jinja2 leaves some mistakes to Python, such as a `break` outside of a loop
        raise InvalidInput(describe("chat_template", "a template of jinja2", _named(error))) from None


@lru_cache(maxsize=1)
def _environment() -> Any:
    _library()
    from jinja2 import ext, nodes
    from jinja2.exceptions import SecurityError, TemplateError
    from jinja2.sandbox import ImmutableSandboxedEnvironment
    from jinja2.utils import Namespace

    class Generation(ext.Extension):
        """The tag `{% generation %} ... {% endgeneration %}` around what the model is to say."""

        tags = {"generation"}  # noqa: RUF012 - as jinja2 declares it

        def parse(self, parser: Any) -> Any:
            line = next(parser.stream).lineno
            body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
            call = self.call_method("_marked", [nodes.Name(_MARK, "load")])
            return nodes.CallBlock(call, [], [], body).set_lineno(line)

        def _marked(self, mark: object, caller: Any) -> str:
            return f"{mark}{caller()}{mark}" if isinstance(mark, str) else str(caller())

    class PublicNamespace(Namespace):
        """jinja2's `namespace`, without names that begin with an underscore: they would reach Python's internals."""

        def __init__(*args: Any, **kwargs: Any) -> None:  # so that `namespace(self=...)` works, as in jinja2
            for name in dict(*args[1:], **kwargs):
                _check_public(name)
            Namespace.__init__(*args, **kwargs)

        def __setitem__(self, name: str, value: object) -> None:
            _check_public(name)
            super().__setitem__(name, value)

    def _check_public(name: object) -> None:
        if isinstance(name, str) and name.startswith("_"):
            raise SecurityError(f"the name {name!r} of a namespace begins with an underscore")

    def raise_exception(message: str) -> None:
        raise TemplateError(message)

    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[Generation, ext.loopcontrols]
    )
    environment.filters["tojson"] = _to_json
    environment.globals |= {
        "raise_exception": raise_exception,
        "strftime_now": lambda format: datetime.now().strftime(format),
        "namespace": PublicNamespace,
        "dict": lambda *args, **kwargs: dict(*args, **kwargs),
    }
    return environment


def _to_json(
    value: Any, ensure_ascii: bool = False, indent: Any = None, separators: Any = None, sort_keys: bool = False
) -> str:
    """jinja2's own filter of this name escapes HTML, which no model has been trained on."""
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)


def _named(error: Exception) -> str:
    message = next(iter(str(error).splitlines()), "")
    return f"{type(error).__name__}: {message}" if message else type(error).__name__
