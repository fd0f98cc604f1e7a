"""Records of training data: a text, a pair, an instruction or a conversation. Their keys decide. Clause: TRN-2."""

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, replace
from typing import Any

from bloomref.errors import InvalidInput, describe, represented

EXPECTED = (
    "a text, a list of messages, or an object with text; prompt and completion; instruction and output; input and "
    "target; messages; or conversations"
)
_ROLES = {"human": "user", "user": "user", "gpt": "assistant", "chatgpt": "assistant", "assistant": "assistant"}
_ROLES |= {"system": "system", "tool": "tool"}
"""ShareGPT's names of a speaker -> roles of chat templates."""


@dataclass(frozen=True)
class Text:
    """A document without roles.

    Args:
        prompt: empty unless the document has a prompt and an answer.
        completion: the answer, or the whole text.
        joint: text between the two; it belongs to the prompt.
    """

    prompt: str
    completion: str
    joint: str = ""


@dataclass(frozen=True)
class Conversation:
    """A document that a chat template writes.

    Args:
        messages: as the template takes them: {"role", "content"}, and other keys that it may read.
        tools: JSON schemas of functions, for the template; None: none.
        place: its name in error messages.
        asked: number of messages at its beginning that belong to the prompt.
    """

    messages: tuple[Mapping[str, Any], ...]
    tools: list[Any] | None
    place: str
    asked: int = 0


Record = Text | Conversation


@dataclass(frozen=True)
class Format:
    """Keys of a kind of record.

    Args:
        needs: keys that it must have.
        may: other keys that it may have.
        read: makes the document of a record; the second argument is its place.
    """

    needs: tuple[str, ...]
    may: tuple[str, ...]
    read: Callable[[Mapping[str, Any], str], Record]


def of_record(record: object, place: str) -> Record:
    """Return the document of a record.

    Args:
        record: a string, a list of messages, or a mapping with the keys of one of FORMATS. None as a value counts as
            an absent key. Keys of no format are ignored: they describe the record.
        place: name of the record in error messages.

    Raises:
        InvalidInput: when it is none of these, or has the keys of two formats; naming its keys.
    """
    if isinstance(record, str):
        record = {"text": record}
    if is_conversation(record):
        record = {"messages": record}
    if not isinstance(record, Mapping):
        raise InvalidInput(describe(place, EXPECTED, type(record).__name__))
    present = {key: value for key, value in record.items() if value is not None}
    formats = formats_of(present)
    own = next((form for form in formats if not _others(present, form)), None)
    if own is None:
        also = ", ".join(_others(present, formats[0])) if formats else ""
        hint = f"remove {also}, which another format has, or rename the others" if also else ""
        raise InvalidInput(describe(place, EXPECTED, _keys_of(present), hint))
    return own.read(present, place)


def formats_of(keys: Collection[str]) -> list[Format]:
    """The formats all of whose needed keys are among these."""
    return [form for form in FORMATS if set(form.needs) <= set(keys)]


def is_conversation(value: object) -> bool:
    """True for a list of messages."""
    return isinstance(value, (list, tuple)) and bool(value) and all(_is_message(item) for item in value)


def _is_message(value: object) -> bool:
    return isinstance(value, Mapping) and ("role" in value or {"from", "value"} <= value.keys())


def _others(record: Mapping[str, Any], form: Format) -> list[str]:
    """Keys of other formats that have a value: the text of such a record is uncertain."""
    known = {*form.needs, *form.may}
    return [key for key, value in record.items() if key in KEYS and key not in known and not _is_empty(value)]


def _is_empty(value: object) -> bool:
    """True for an empty text or list; an array, of which no one may ask its truth value, is none."""
    return isinstance(value, (str, list, tuple, dict)) and not value


def _keys_of(record: Mapping[Any, Any]) -> str:
    return f"the keys {', '.join(map(str, record))}" if record else "no keys"


# --- one function per format -------------------------------------------------------------------------------------


def _text(record: Mapping[str, Any], place: str) -> Text:
    return Text("", _answer(record, "text", place))


def _pair(record: Mapping[str, Any], place: str) -> Record:
    prompt, completion = record["prompt"], record["completion"]
    if is_conversation(prompt) and is_conversation(completion):
        asked = len(prompt)
        chat = _conversation([*prompt, *completion], record.get("tools"), place)
        if not any(message["role"] == "assistant" for message in chat.messages[asked:]):
            raise InvalidInput(describe(place, "a completion with an answer (role assistant)", "none"))
        return replace(chat, asked=asked)
    return Text(_string(record, "prompt", place), _answer(record, "completion", place))


def _instruction(record: Mapping[str, Any], place: str) -> Text:
    parts = [_string(record, key, place) for key in ("instruction", "input") if key in record]
    prompt = "\n".join(part for part in parts if part)
    return Text(prompt, _answer(record, "output", place), "\n" if prompt else "")


def _task(record: Mapping[str, Any], place: str) -> Text:
    prompt = _string(record, "input", place)
    return Text(prompt, _answer(record, "target", place), "\n" if prompt else "")


def _messages(record: Mapping[str, Any], place: str) -> Conversation:
    return _conversation(record["messages"], record.get("tools"), place)


def _conversations(record: Mapping[str, Any], place: str) -> Conversation:
    messages = record["conversations"]
    if not _is_empty(record.get("system", "")) and isinstance(messages, (list, tuple)):
        messages = [{"role": "system", "content": _string(record, "system", place)}, *messages]
    return _conversation(messages, record.get("tools"), place)


FORMATS = (
    Format(("text",), (), _text),
    Format(("prompt", "completion"), ("tools",), _pair),
    Format(("instruction", "output"), ("input",), _instruction),
    Format(("input", "target"), (), _task),
    Format(("messages",), ("tools", "prompt"), _messages),  # data sets repeat the first message as `prompt`
    Format(("conversations",), ("system", "tools"), _conversations),
)
KEYS = frozenset({key for form in FORMATS for key in (*form.needs, *form.may)} | {"history"})
"""Keys that have text to learn from, or that change it."""


# --- values ------------------------------------------------------------------------------------------------------


def _answer(record: Mapping[str, Any], key: str, place: str) -> str:
    text = _string(record, key, place)
    if not text:
        raise InvalidInput(describe(place, f"a {key} that is not empty", "an empty one"))
    return text


def _string(record: Mapping[str, Any], key: str, place: str) -> str:
    value = record[key]
    if not isinstance(value, str):
        raise InvalidInput(describe(place, f"{key} to be a text", f"{key} = {represented(value)}"))
    try:
        value.encode()
    except UnicodeEncodeError as error:
        raise InvalidInput(describe(place, f"{key} in valid Unicode", f"a lone surrogate at {error.start}")) from None
    return value


def _conversation(messages: object, tools: object, place: str) -> Conversation:
    if not isinstance(messages, (list, tuple)):
        raise InvalidInput(describe(place, "a list of messages", messages if messages != "" else "an empty text"))
    if tools is not None and not isinstance(tools, list):
        raise InvalidInput(describe(place, "tools to be a list of JSON schemas", f"tools = {represented(tools)}"))
    read = tuple(_message(item, f"{place}, message {index}") for index, item in enumerate(messages))
    if not any(message["role"] == "assistant" for message in read):
        raise InvalidInput(describe(place, "a conversation with an answer (role assistant)", "none"))
    return Conversation(read, tools or None, place)


def _message(item: object, place: str) -> Mapping[str, Any]:
    expected = "an object with role and content, or with from and value"
    if not isinstance(item, Mapping):
        raise InvalidInput(describe(place, expected, type(item).__name__))
    if not _is_message(item):
        raise InvalidInput(describe(place, expected, _keys_of(item)))
    if item.get("weight", 1) in (0, False):
        raise InvalidInput(describe(place, "a message without weight", "weight = 0", "every answer is learned"))
    if "role" not in item:
        speaker = item["from"]
        if not isinstance(speaker, str) or speaker not in _ROLES:
            raise InvalidInput(
                describe(place, f"from to be one of {', '.join(_ROLES)}", f"from = {represented(speaker)}")
            )
        item = {"role": _ROLES[speaker], "content": item["value"]}
        _string(item, "content", place)
    _string(item, "role", place)
    if isinstance(item.get("content"), str):
        _string(item, "content", place)
    return item
