"""Documents of a training: token ids of records, and which of them count in the loss."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from bloomref.errors import InvalidInput, invalid
from bloomref.shapes import Array, Bool, Int
from bloomref.training.records import Conversation, Record, Text

if TYPE_CHECKING:
    from bloomref.tokenizer import BloomTokenizer


@dataclass(frozen=True, eq=False)
class Document:
    """Token ids of one document, including its end token."""

    token_ids: Int[Array, " N"]
    is_target: Bool[Array, " N"]
    """True for tokens that count in the loss."""


def tokenize(
    records: Sequence[Record],
    tokenizer: "BloomTokenizer",
    completion_only: bool = True,
    end_ids: Sequence[int] | None = None,
    chat_template: str | None = None,
) -> list[Document]:
    """Tokenise records; each ends with the end token. Clauses: TRN-3, TRN-4, TRN-22.

    Prompt and completion are tokenised as one text. The prompt's part of the result is its longest common prefix with
    the tokens of the prompt alone, so a token that spans the boundary belongs to the completion.

    Args:
        records: the documents.
        tokenizer: has a chat template, if there are conversations.
        completion_only: of a record with a prompt, only the tokens after it count in the loss; of a conversation,
            only the answers. A text counts whole.
        end_ids: the model's end tokens, of which documents get the first; None: the tokenizer's.
        chat_template: writes conversations, and pairs as conversations; "default" is the tokenizer's own. None: the
            tokenizer's own for conversations, and no template for pairs.

    Raises:
        InvalidInput: when there is no end token, or no template for a conversation.
    """
    if end_ids is None:
        end_ids = [] if tokenizer.end_token_id is None else [tokenizer.end_token_id]
    if not end_ids:
        raise invalid("tokenizer", "an end token </s>", "none")
    if chat_template is not None:
        records = [_as_conversation(record) for record in records]
    texts = [record for record in records if isinstance(record, Text)]
    of_texts = iter(_of_texts(texts, tokenizer, completion_only, end_ids[0]))
    template = None if chat_template == "default" else chat_template
    return [
        next(of_texts)
        if isinstance(record, Text)
        else _of_conversation(record, tokenizer, completion_only, end_ids, template)
        for record in records
    ]


def _of_texts(
    texts: Sequence[Text], tokenizer: "BloomTokenizer", completion_only: bool, end: int
) -> Iterator[Document]:
    before = [text.prompt + text.joint for text in texts]
    rows = tokenizer.tokenize([start + text.completion for start, text in zip(before, texts, strict=True)])
    prompts = tokenizer.tokenize(before) if completion_only else [[] for _ in texts]
    return (_document([*row, end], prompt) for row, prompt in zip(rows, prompts, strict=True))


def _document(row: Sequence[int], prompt: Sequence[int]) -> Document:
    ids = np.array(row, np.int64)
    length = next((i for i, (a, b) in enumerate(zip(row, prompt, strict=False)) if a != b), min(len(row), len(prompt)))
    return Document(ids, np.arange(len(ids)) >= length)


def _as_conversation(record: Record) -> Record:
    """A pair as a question and its answer; anything else as it is."""
    if not isinstance(record, Text) or not record.prompt:
        return record
    turns = ({"role": "user", "content": record.prompt}, {"role": "assistant", "content": record.completion})
    return Conversation(turns, None, "data")


def _of_conversation(
    chat: Conversation,
    tokenizer: "BloomTokenizer",
    completion_only: bool,
    end_ids: Sequence[int],
    chat_template: str | None,
) -> Document:
    if chat_template is None and not tokenizer.chat_template:
        hint = "pass one: --chat-template FILE, or chat_template= in Python; or use a model that was trained on conversations"
        raise invalid(chat.place, "a model with a chat template, for conversations", "one without", hint)
    try:
        ids, answers = tokenizer.encode_answers(chat.messages, chat.tools, chat_template, chat.asked)
    except InvalidInput as error:
        raise InvalidInput(f"{chat.place}: {error}") from None
    if not any(answers):
        raise invalid(chat.place, "a chat template that shows the answers", "a text without them")
    last = max(i for i, is_answer in enumerate(answers) if is_answer and not (i and answers[i - 1]))
    if not set(end_ids) & set(ids[last:]):  # the template leaves the end of the last answer open
        ids, answers = [*ids, end_ids[0]], [*answers, 1]
    is_target = np.array(answers, bool) if completion_only else np.ones(len(ids), bool)
    return Document(np.array(ids, np.int64), is_target)


def split(documents: Sequence[Document], share: float, seed: int) -> tuple[list[Document], list[Document]]:
    """Split documents at random into (training, held-out) documents, each in the original order. Clause: TRN-7.

    Args:
        documents: all documents.
        share: share that is held out, in [0, 1); 0 holds out nothing, any other share at least one document.
        seed: seed of the draw.

    Raises:
        InvalidInput: when no document is left for training.
    """
    if share == 0.0:
        return list(documents), []
    count = max(1, round(share * len(documents)))
    if count >= len(documents):
        raise invalid("held_out", f"a share that leaves some of the {len(documents)} documents", share)
    drawn = set(np.random.default_rng([seed, 2]).permutation(len(documents))[:count].tolist())
    training = [document for i, document in enumerate(documents) if i not in drawn]
    return training, [documents[i] for i in sorted(drawn)]
