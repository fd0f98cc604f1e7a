"""BloomTokenizer: BLOOM's byte-level BPE with the interface of KerasHub's class, based on the `tokenizers` library."""

import json
import warnings
from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, overload

from bloomref.argument_kinds import as_path, check_collection, check_text, check_unicode
from bloomref.chat_methods import ChatMethods
from bloomref.errors import BadWeights, BloomrefWarning, InvalidInput, Unsupported, invalid
from bloomref.formats.files import read_json, write_json
from bloomref.formats.recognise import AGAIN, JSON, named_for_what_it_is
from bloomref.formats.tokenizers.byte_alphabet import missing_bytes, named_bytes, to_bytes
from bloomref.formats.tokenizers.tokenizer_facts import TokenizerFacts
from bloomref.formats.tokenizers.tokenizer_files import (
    bloom_tokenizer_json,
    check_merges,
    has_keras_tokenizer,
    keras_added_tokens,
    vocabulary_and_merges,
)
from bloomref.validation import check_bool, check_known, is_integer

if TYPE_CHECKING:
    from tokenizers import Tokenizer

SPECIAL_TOKENS = {"unk_token": "<unk>", "bos_token": "<s>", "eos_token": "</s>", "pad_token": "<pad>"}


class TokenSpan(NamedTuple):
    """A token of an encoded text: its id, and the characters that it covers."""

    id: int
    part: int | None
    """0 for a token of the first text, 1 of the second, None for a special token that was added."""
    word: int | None
    """Number of the word within the text, by the tokenizer's first split."""
    start: int
    stop: int


class BloomTokenizer(ChatMethods):
    """Converts text to token ids and back. Lossless: `detokenize(tokenize(text)) == text`, if no byte is missing.

    Text is split by BLOOM's rule. The special tokens `<unk>`, `<s>`, `</s>` and `<pad>` are recognised in text if the
    vocabulary has them. Nothing is added at the ends of a text unless `tokenize` is asked to.

    Args:
        vocabulary: token -> id, or the path of a JSON file with this object.
        merges: "left right" strings or 2-tuples by decreasing priority, or the path of a text file with one per line.

    Raises:
        InvalidInput: when the vocabulary or the merges are invalid, or do not match each other.

    Example:
        >>> tokenizer = BloomTokenizer({"<s>": 0, "</s>": 1, "h": 2, "i": 3, "hi": 4}, ["h i"])
        >>> tokenizer("hi</s>")
        [4, 1]
    """

    def __init__(self, vocabulary: Mapping[str, int] | str | Path, merges: Sequence[Any] | str | Path) -> None:
        self._backend = _build(_read_vocabulary(vocabulary), _read_merges(merges))
        self._take(TokenizerFacts())

    @classmethod
    def from_preset(cls, preset: str | Path, **kwargs: Any) -> "BloomTokenizer":
        """Load the tokenizer of a preset.

        Args:
            preset: a built-in name, `hf://...`, `kaggle://...` or a folder. A folder has Hugging Face's
                `tokenizer.json`, or KerasHub's `assets/tokenizer/{vocabulary.json,merges.txt}`.
            **kwargs: `revision`: branch, tag or commit of a hub repository.

        Raises:
            InvalidInput: when the preset does not exist, or has no tokenizer.
            BadWeights: when a file is damaged, or is that of another kind of tokenizer.
        """
        from bloomref.presets.adapted_models import locate

        check_known(kwargs, ("revision",), "an argument of BloomTokenizer.from_preset")
        folder = locate(preset, weights=False, **kwargs).tokenizer_folder
        tokenizer = cls.find(folder)
        if tokenizer is None:
            raise invalid("preset", "a folder with tokenizer.json or assets/tokenizer/vocabulary.json", str(folder))
        return tokenizer

    @classmethod
    def find(cls, folder: Path) -> "BloomTokenizer | None":
        """Load the tokenizer of a folder, or return None if the folder has none.

        A pruned vocabulary that lacks bytes is no error: a `BloomrefWarning` names them.

        Raises:
            BadWeights: when a file is damaged, or is that of another kind of tokenizer.
        """
        folder = as_path("folder", folder)
        if has_keras_tokenizer(folder):
            tokenizer = cls._from_keras(folder)
        elif (folder / "tokenizer.json").is_file() or (folder / "tokenizer.json").is_symlink():
            tokenizer = cls._from_hugging_face(folder / "tokenizer.json")
        else:
            if beside := [
                name for name in ("tokenizer_config.json", "special_tokens_map.json") if (folder / name).is_file()
            ]:
                hint = f"text cannot be tokenized; {AGAIN}"
                warnings.warn(f"{folder}: {beside[0]} without tokenizer.json: {hint}", BloomrefWarning, stacklevel=3)
            return None
        if missing := missing_bytes(tokenizer._backend.get_vocab(with_added_tokens=False)):
            lost = f"no token for the bytes {named_bytes(missing)}: a text with one of them loses it"
            warnings.warn(f"{folder}: the tokenizer has {lost}", BloomrefWarning, stacklevel=3)
        return tokenizer

    @classmethod
    def _from_keras(cls, folder: Path) -> "BloomTokenizer":
        vocabulary, merges = vocabulary_and_merges(folder)
        try:
            tokenizer = cls(vocabulary, merges)
        except InvalidInput as error:
            raise BadWeights(f"{folder}: {error}") from None
        added = keras_added_tokens(folder, vocabulary)
        tokenizer._backend = _library().Tokenizer.from_str(json.dumps(bloom_tokenizer_json(vocabulary, merges, added)))
        tokenizer._take(TokenizerFacts.read(folder))
        return tokenizer

    @classmethod
    def _from_hugging_face(cls, file: Path) -> "BloomTokenizer":
        tokenizer = cls.__new__(cls)
        tokenizer._backend = _load(file)
        tokenizer._take(TokenizerFacts.read(file.parent))
        return tokenizer

    def _take(self, facts: TokenizerFacts) -> None:
        self._facts = facts
        self._special = {role: facts.named(role) or token for role, token in SPECIAL_TOKENS.items()}

    # --- text and ids ----------------------------------------------------------------------------

    @overload
    def tokenize(self, text: str, add_special_tokens: bool = False) -> list[int]: ...
    @overload
    def tokenize(self, text: list[str], add_special_tokens: bool = False) -> list[list[int]]: ...
    def tokenize(self, text: str | list[str], add_special_tokens: bool = False) -> list[int] | list[list[int]]:
        """Return the token ids of a text, or of each text of a list.

        Args:
            text: the text or texts.
            add_special_tokens: also add what the post-processor of `tokenizer.json` puts before and after a text, such
                as `<s>`. BLOOM's own tokenizer has none.

        Raises:
            InvalidInput: when `text` is neither a string nor a list of strings, or has lone surrogates, which UTF-8
                cannot encode.
        """
        check_bool("add_special_tokens", add_special_tokens)
        if isinstance(text, str):
            return self._tokenize([text], add_special_tokens)[0]
        if isinstance(text, (list, tuple)) and all(isinstance(item, str) for item in text):
            return self._tokenize(list(text), add_special_tokens)
        raise invalid("text", "a string or a list of strings", text)

    def as_prompts(self, texts: list[str]) -> list[list[int]]:
        """The ids of texts that a model is to continue: behind what the post-processor puts before a text, such as
        `<s>`, but without what it puts after one: GEN-19.

        Raises:
            InvalidInput: as `tokenize`.
        """
        check_collection("texts", texts, "a list of texts")
        return [[*self._front, *ids] for ids in self._tokenize(texts, False)]

    @cached_property
    def _front(self) -> list[int]:
        """Ids that the post-processor puts before a text."""
        encoding = self._backend.encode("a", add_special_tokens=True)
        added = [part is None for part in encoding.sequence_ids]
        return encoding.ids[: added.index(False) if False in added else 0]

    def _tokenize(self, texts: list[str], add_special_tokens: bool) -> list[list[int]]:
        self._check_unicode(texts)
        return [e.ids for e in self._backend.encode_batch(list(texts), add_special_tokens=add_special_tokens)]

    @staticmethod
    def _check_unicode(texts: list[str]) -> None:
        for text in texts:
            check_text("text", text)
            check_unicode("text", text)

    @overload
    def __call__(self, text: str, add_special_tokens: bool = False) -> list[int]: ...
    @overload
    def __call__(self, text: list[str], add_special_tokens: bool = False) -> list[list[int]]: ...
    def __call__(self, text: str | list[str], add_special_tokens: bool = False) -> list[int] | list[list[int]]:
        """Return the ids of a text, or of each text: another name of `tokenize`."""
        return self.tokenize(text, add_special_tokens)

    @overload
    def detokenize(self, ids: Sequence[int], skip_special_tokens: bool = False) -> str: ...
    @overload
    def detokenize(self, ids: Sequence[Sequence[int]], skip_special_tokens: bool = False) -> list[str]: ...
    def detokenize(
        self, ids: Sequence[int] | Sequence[Sequence[int]], skip_special_tokens: bool = False
    ) -> str | list[str]:
        """Return the text of a sequence of ids, or of each sequence of a list. Invalid UTF-8 becomes U+FFFD.

        Args:
            ids: token ids.
            skip_special_tokens: leave special tokens out of the text.

        Raises:
            InvalidInput: when an id is not an integer, or no token has it.
        """
        check_bool("skip_special_tokens", skip_special_tokens)
        rows = _rows(ids)
        if rows is not None:
            return [self._detokenize(row, skip_special_tokens) for row in rows]
        return self._detokenize(ids, skip_special_tokens)

    def _detokenize(self, ids: Sequence[Any], skip_special_tokens: bool) -> str:
        checked = [self._check_id(token_id) for token_id in ids]
        return self._backend.decode(checked, skip_special_tokens=skip_special_tokens)

    encode = tokenize
    decode = detokenize

    def spans(self, text: str, second: str | None = None) -> list["TokenSpan"]:
        """The tokens of a text, or of two texts joined as transformers joins a pair, with their places.

        Raises:
            InvalidInput: as `tokenize`.
        """
        self._check_unicode([text] if second is None else [text, second])
        encoding = self._backend.encode(text, second)
        parts = zip(encoding.ids, encoding.sequence_ids, encoding.word_ids, encoding.offsets, strict=True)
        return [TokenSpan(token_id, part, word, *offsets) for token_id, part, word, offsets in parts]

    # --- vocabulary ------------------------------------------------------------------------------

    def vocabulary_size(self) -> int:
        """Highest id plus one. BLOOM's tokenizer has 250680 tokens, and BLOOM's embedding 250880 rows."""
        return len(self._tokens)

    def get_vocabulary(self) -> list[str]:
        """Tokens in the order of their ids, in the printable spelling of byte-level BPE ("Ġ" is a space)."""
        return [token for token in self._tokens if token is not None]

    def id_to_token(self, id: int) -> str:
        """Token with this id, in the printable spelling of byte-level BPE.

        Raises:
            InvalidInput: when no token has this id.
        """
        token = self._tokens[self._check_id(id)]
        assert token is not None
        return token

    def token_to_id(self, token: str) -> int:
        """Id of a token, which has the printable spelling of byte-level BPE.

        Raises:
            InvalidInput: when the vocabulary does not have the token.
        """
        is_text = isinstance(token, str) and not any("\ud800" <= character <= "\udfff" for character in token)
        token_id = self._backend.token_to_id(token) if is_text else None
        if token_id is None:
            raise invalid("token", f"one of the {self.vocabulary_size()} tokens of the vocabulary", repr(token))
        return token_id

    def token_bytes(self, id: int) -> bytes:
        """UTF-8 bytes of the token with this id; empty for a special token.

        Raises:
            InvalidInput: when no token has this id.
        """
        token_id = self._check_id(id)
        return b"" if token_id in self._special_ids else to_bytes(self.id_to_token(token_id))

    def lost_characters(self, text: str) -> str:
        """The characters of a text that `tokenize` leaves out: the vocabulary has no token for one of their bytes."""
        self._check_unicode([text])
        suspects = {c for c in set(text) if not self._missing_bytes.isdisjoint(c.encode())}
        if not suspects or self.detokenize(self.tokenize(text)) == text:  # they may be spelled by a special token
            return ""
        return "".join(sorted(suspects))

    def has_token(self, id: int) -> bool:
        """True if a token has this id."""
        return is_integer(id) and 0 <= id < len(self._tokens) and self._tokens[id] is not None

    @property
    def start_token_id(self) -> int | None:
        """Id of `<s>`, or None if the vocabulary does not have this token."""
        return self._backend.token_to_id(self._special["bos_token"])

    @property
    def end_token_id(self) -> int | None:
        """Id of `</s>`, or None if the vocabulary does not have this token."""
        return self._backend.token_to_id(self._special["eos_token"])

    @property
    def pad_token_id(self) -> int | None:
        """Id of `<pad>`, or None if the vocabulary does not have this token."""
        return self._backend.token_to_id(self._special["pad_token"])

    @property
    def unk_token_id(self) -> int | None:
        """Id of `<unk>`, or None if the vocabulary does not have this token. Byte-level BPE never produces it."""
        return self._backend.token_to_id(self._special["unk_token"])

    bos_token_id = start_token_id
    eos_token_id = end_token_id

    @cached_property
    def _tokens(self) -> list[str | None]:
        vocabulary = self._backend.get_vocab(with_added_tokens=True)
        tokens: list[str | None] = [None] * (max(vocabulary.values(), default=-1) + 1)
        for token, token_id in vocabulary.items():
            tokens[token_id] = token
        return tokens

    @cached_property
    def _missing_bytes(self) -> frozenset[int]:
        """Bytes without a token of their own, from which byte-level BPE begins."""
        return frozenset(missing_bytes(self._backend.get_vocab(with_added_tokens=False)))

    @cached_property
    def _special_ids(self) -> frozenset[int]:
        added = self._backend.get_added_tokens_decoder()
        return frozenset(token_id for token_id, token in added.items() if token.special)

    def _check_id(self, token_id: Any) -> int:
        if not is_integer(token_id):
            raise invalid("ids", "integers", token_id)
        if not self.has_token(int(token_id)):
            raise invalid("ids", f"ids in [0, {self.vocabulary_size()}) that have a token", token_id)
        return int(token_id)

    # --- beside the vocabulary -------------------------------------------------------------------

    @property
    def tokenizer_config(self) -> dict[str, Any]:
        """The object in `tokenizer_config.json`, with all of its keys; empty if the tokenizer has no such file."""
        return dict(self._facts.config)

    @property
    def special_tokens_map(self) -> dict[str, str]:
        """Role -> special token, such as "bos_token" -> "<s>": BLOOM's roles, and others that the files name."""
        roles = {role: self._facts.named(role) for role in ("sep_token", "cls_token", "mask_token")}
        named = {role: token for role, token in roles.items() if token is not None}
        return {role: t for role, t in self._special.items() if self._backend.token_to_id(t) is not None} | named

    def save(self, folder: Path) -> None:
        """Write `tokenizer.json` and everything that was read beside it into an existing folder: PRE-12."""
        folder = as_path("folder", folder)
        if not folder.is_dir():
            raise invalid("folder", "an existing folder", str(folder))
        write_json(folder / "tokenizer.json", json.loads(self._backend.to_str()))
        present = {role: token for role, token in self.special_tokens_map.items() if role in SPECIAL_TOKENS}
        self._facts.write(folder, present)

    def __repr__(self) -> str:
        return f"BloomTokenizer: {self.vocabulary_size()} tokens"

    def __reduce__(self) -> Any:
        return _restore, (self._backend.to_str(), self._special, self._facts)


# --- building and loading ------------------------------------------------------------------------


def _library() -> Any:
    try:
        import tokenizers
    except ImportError:
        raise Unsupported("tokenizers: expected it to be installed; pip install tokenizers") from None
    return tokenizers


def _build(vocabulary: dict[str, int], merges: list[str]) -> "Tokenizer":
    for merge in merges:
        left, right = merge.split(" ")
        if not {left, right, left + right} <= vocabulary.keys():
            raise invalid("merges", "pairs whose halves and union are in the vocabulary", merge)
    backend: Tokenizer = _library().Tokenizer.from_str(json.dumps(bloom_tokenizer_json(vocabulary, merges)))
    return backend


def _load(file: Path) -> "Tokenizer":
    tk = _library()
    expected = "a tokenizer.json of Hugging Face's tokenizers"
    with named_for_what_it_is(file, expected, JSON):
        try:
            backend: Tokenizer = tk.Tokenizer.from_file(str(file))
        except Exception as error:  # the library raises plain Exception
            check_merges(read_json(file), file)
            raise BadWeights(f"{file}: expected {expected}, got {error}") from None
    kind = f"{type(backend.model).__name__} with decoder {type(backend.decoder).__name__}"
    if kind != "BPE with decoder ByteLevel":
        raise BadWeights(f"{file}: expected a byte-level BPE (BPE with decoder ByteLevel), got {kind}")
    backend.no_padding()
    backend.no_truncation()
    return backend


def _restore(state: str, special: dict[str, str], facts: TokenizerFacts | None = None) -> BloomTokenizer:
    tokenizer = BloomTokenizer.__new__(BloomTokenizer)
    tokenizer._backend, tokenizer._special = _library().Tokenizer.from_str(state), special
    tokenizer._facts = facts or TokenizerFacts(specials=special)  # a pickle of 0.1.0 has none
    return tokenizer


def _read_vocabulary(vocabulary: object) -> dict[str, int]:
    if isinstance(vocabulary, (str, Path)):
        try:
            vocabulary = json.loads(Path(vocabulary).read_text("utf-8"))
        except (OSError, ValueError, RecursionError) as error:
            raise InvalidInput(f"vocabulary: expected the path of a JSON file, got {error}") from None
    if not isinstance(vocabulary, Mapping):
        raise invalid("vocabulary", "a dictionary {token: id} or the path of one", type(vocabulary).__name__)
    for token, token_id in vocabulary.items():
        if not isinstance(token, str) or not is_integer(token_id) or not 0 <= token_id < 2**32:
            raise invalid("vocabulary", "strings with ids in [0, 2**32)", {token: token_id})
    if len(set(vocabulary.values())) != len(vocabulary):
        raise invalid("vocabulary", "a different id for every token", "repeated ids")
    return {token: int(token_id) for token, token_id in vocabulary.items()}


def _read_merges(merges: object) -> list[str]:
    if isinstance(merges, (str, Path)):
        try:
            lines = Path(merges).read_text("utf-8").splitlines()
        except (OSError, ValueError) as error:
            raise InvalidInput(f"merges: expected the path of a text file, got {error}") from None
        merges = [line for line in lines if line and not line.startswith("#version")]
    if not isinstance(merges, Sequence):
        raise invalid("merges", "a list of pairs or the path of one", type(merges).__name__)
    return [_pair(merge) for merge in merges]


def _pair(merge: Any) -> str:
    halves = merge.split(" ") if isinstance(merge, str) else merge
    if not isinstance(halves, (list, tuple)) or len(halves) != 2 or not all(isinstance(h, str) and h for h in halves):
        raise invalid("merges", "pairs: 'left right' or (left, right)", merge)
    return " ".join(halves)


def _rows(ids: Any) -> list[Any] | None:
    """Return the sequences of a list of sequences, or None for a single sequence."""
    try:
        rows = None if isinstance(ids, str) else list(ids)
    except TypeError:  # no sequence, or an array without axes
        rows = None
    if rows is None:
        raise invalid("ids", "a list of ids, or a list of lists", ids)
    return rows if rows and hasattr(rows[0], "__iter__") else None
