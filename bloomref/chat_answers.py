"""The answers in a rendered conversation, which training learns. Clause: TRN-22."""

from collections.abc import Mapping, Sequence
from typing import Any

from bloomref.chat_template import Rendered, render
from bloomref.errors import InvalidInput, describe


def with_answers(
    template: str, messages: Sequence[Mapping[str, Any]], values: Mapping[str, Any], asked: int = 0
) -> Rendered:
    """Render a conversation and find its answers: by the template's `{% generation %}` blocks or, where it has none, by
    what each answer adds to the text of the messages before it.

    Args:
        template, messages, values: those of `render`.
        asked: number of messages at the beginning whose answers are left out.

    Raises:
        InvalidInput: when the template refuses the conversation, or changes earlier messages as later ones come.
    """
    marked = render(template, messages, values, mark_answers=True)
    if marked.answers:
        begin = _added(template, messages, asked, values, marked.text)[0] if asked else 0
        return Rendered(marked.text, tuple(span for span in marked.answers if span[0] >= begin))
    indices = [index for index in range(asked, len(messages)) if messages[index].get("role") == "assistant"]
    spans = tuple(_added(template, messages, index, values, marked.text) for index in indices)
    return Rendered(marked.text, tuple((start, stop) for start, stop in spans if stop > start))


def _added(
    template: str, messages: Sequence[Mapping[str, Any]], index: int, values: Mapping[str, Any], whole: str
) -> tuple[int, int]:
    """(start, stop) of the characters that a message adds to the text before it, which asks for an answer."""
    before = render(template, messages[:index], {**values, "add_generation_prompt": True}).text
    through = render(template, messages[: index + 1], values).text
    if not through.startswith(before) or not whole.startswith(through):
        expected = "a template that writes the beginning of a conversation as the beginning of its text"
        hint = "pass one with {% generation %} blocks around the answers"
        raise InvalidInput(describe("chat_template", expected, f"another text up to message {index}", hint))
    return len(before), len(through)
