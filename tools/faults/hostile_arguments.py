"""Surface: every public function and method of the package, with hostile values for one argument."""

import inspect
import os
from collections.abc import Callable, Iterator
from dataclasses import fields
from decimal import Decimal
from fractions import Fraction
from itertools import islice
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
from numpy.random import Generator

import bloomref
from bloomref import (
    BloomCausalLM,
    BloomForQuestionAnswering,
    BloomForSequenceClassification,
    BloomForTokenClassification,
    GenerationOptions,
    LoraConfig,
)
from bloomref.errors import visible
from bloomref.generation.score_options import ScoreOptions
from bloomref.training.settings import Settings
from tools.faults.damage import pick
from tools.faults.talking_model import MESSAGES, TEXTS, write_talker
from tools.faults.trials import Surface, Trial

_ADAPTER = "adapter"
_UNBOUNDED = {"steps", "epochs", "accumulate"}
_FUNCTIONS = {"data", "evaluate"}


class _Liar:
    """An object that fails at whatever is asked."""

    def _fail(self, *_: Any) -> Any:
        raise ValueError("planted")

    __len__ = __repr__ = __str__ = __iter__ = __bool__ = __hash__ = __array__ = __fspath__ = __index__ = __float__ = (
        _fail
    )
    __getitem__ = __eq__ = __lt__ = __call__ = _fail


def _values() -> list[Any]:
    """Hostile values: new ones each time, since some of them can be changed or used up."""
    deep: list[Any] = []
    for _ in range(2000):
        deep = [deep]
    endless: list[Any] = []
    endless.append(endless)
    return [
        *(
            None,
            True,
            False,
            0,
            -1,
            1,
            3,
            10**9,
            2**31,
            2**63,
            10**400,
            0.5,
            -0.5,
            1e308,
            float("nan"),
            float("inf"),
            1j,
        ),
        *(
            "",
            "x",
            "auto",
            "x" * 2_000,
            "a\nb",
            "\x1b[2J",
            "\ud800",
            "a\0b",
            "../x",
            "missing/x",
            "hf://a/b",
            b"x",
            b"",
        ),
        *(
            [],
            [[]],
            [None],
            [0],
            [-1],
            [10**9],
            [1.5],
            ["a"],
            ["a", 1],
            [[1], [2, 3]],
            [[1, 2], "a"],
            [True],
            deep,
            endless,
        ),
        *((), (1,), {}, {"a": 1}, {1: 2}, {"token_ids": None}, {"token_ids": [[10**9]]}, {"token_ids": [[1], [2, 3]]}),
        *(
            {"token_ids": [[1, 2]], "padding_mask": [[0, 2]]},
            {"inputs_embeds": 1},
            [{"role": None}],
            [{"content": "x"}],
        ),
        *(set(), {1}, frozenset("a"), range(3), object(), int, len, lambda: 1, (i for i in "ab"), iter([1]), _Liar()),
        *(np.array(1), np.array([]), np.array([[1, 2]]), np.array([[np.nan]]), np.array(["a"]), np.array([None])),
        *(np.broadcast_to(np.float32(0), (10**6, 10**6)), np.zeros((2, 0)), np.zeros((1,) * 20), np.float32("nan")),
        *(
            np.zeros(3, ml_dtypes.bfloat16),
            np.int64(3),
            np.array([2**40]),
            np.zeros(2, "M8[s]"),
            Decimal(1),
            Fraction(1, 2),
        ),
        *(
            Path("x"),
            Path("a\0b"),
            Path("missing/x"),
            Path("."),
            ...,
            NotImplemented,
            memoryview(b"ab"),
            ValueError("x"),
            os,
        ),
    ]


def _one(*_: Any) -> int:
    return 1


def _write(folder: Path) -> None:
    write_talker(folder)
    lm = BloomCausalLM.from_preset(folder)
    lm.add_adapter({"r": 2})
    lm.save_adapter(folder / _ADAPTER)


def _receivers(folder: Path, method: str) -> dict[str, Any]:
    """Name of each public class -> an object of it, with an adapter if the method is about one."""
    lm = BloomCausalLM.from_preset(folder)
    if "adapter" in method and method not in ("add_adapter", "load_adapter"):
        lm.add_adapter({"r": 2})
    heads = (BloomForQuestionAnswering, BloomForSequenceClassification, BloomForTokenClassification)
    objects: list[Any] = [lm, lm.backbone, lm.backbone.config, lm.tokenizer, GenerationOptions(), LoraConfig()]
    return {type(item).__name__: item for item in objects} | {
        head.__name__: head(lm.backbone, lm.tokenizer) for head in heads
    }


def _sane(folder: Path, receivers: dict[str, Any]) -> dict[str, Any]:
    """Name of each required argument -> a value with which it is accepted."""
    lm, config = receivers["BloomCausalLM"], receivers["BloomConfig"]
    words = lm.tokenizer.get_vocabulary()
    return {
        **config.to_dict(),
        **{name: getattr(config, name) for name in ("vocabulary_size", "num_layers", "num_heads", "hidden_dim")},
        "intermediate_dim": config.intermediate_dim,
        "backbone": lm.backbone,
        "config": config,
        "params": lm.params,
        "inputs": {"token_ids": [[5, 6]]},
        "prompt": "Everyone",
        "text": "Everyone",
        "texts": ["a"],
        "prompts": ["a"],
        "variables": {},
        "name": "default",
        "rank": 2,
        "data": ["Everyone has the right"] * 2,
        "preset": str(folder),
        "path": folder / _ADAPTER,
        "folder": folder,
        "adapter": None,
        "adapters": lm.adapter_set,
        "ids": [5, 6],
        "id": 5,
        "token": words[5],
        "conversation": MESSAGES,
        "messages": MESSAGES,
        "question": "Who?",
        "context": "I.",
        "vocabulary": {word: i for i, word in enumerate(words)},
        "merges": [],
        "key": "h.0.mlp.dense_h_to_4h.weight",
        "ranks": {},
        "prompt_length": 1,
        "max_length": None,
    }


_SANE_OF: dict[str, dict[str, Any]] = {
    "generate": {"inputs": "Everyone", "max_new_tokens": 2},
    "stream": {"max_new_tokens": 2},
    "generate_each": {"max_new_tokens": 2},
    "fit": {"steps": 1, "batch": 1, "context": 16},
    "classify": {"inputs": TEXTS[0]},
    "save_adapter": {"path": "new"},
    "save_to_preset": {"path": "new"},
    "save": {"folder": Path("new")},
}
_KEYWORDS: dict[str, list[str]] = {
    **{key: [f.name for f in fields(GenerationOptions)] for key in ("generate", "stream", "generate_each", "create")},
    "fit": [field.name for field in fields(Settings)],
    "score": [field.name for field in fields(ScoreOptions)],
    "replace": ["num_layers", "layer_norm_epsilon", "eos_token_id", "tie_word_embeddings", "hidden_dropout"],
    "__init__": ["backend", "name", "pad_token_id", "eos_token_id", "tie_word_embeddings", "trainable"],
    "from_preset": ["revision", "dtype", "backend", "name"],
    "from_params": ["backend", "name"],
    "apply_chat_template": ["bos_token", "x"],
}
"""Method with `**keywords` -> some of them."""
_FILES = {"data": ("config.json",), "backend": ("numpy",)}
"""Argument -> the file or the object that it is the content of."""


def _methods() -> list[tuple[str, str]]:
    """(class, method) of everything that a user of the package can call."""
    classes = [name for name in bloomref.__all__ if inspect.isclass(getattr(bloomref, name))]
    names = [
        (name, method) for name in classes for method in dir(getattr(bloomref, name)) if not method.startswith("_")
    ]
    names += [(name, special) for name in classes for special in ("__init__", "__call__")]
    return [
        (name, method)
        for name, method in names
        if not issubclass(getattr(bloomref, name), Exception) and _is_method(getattr(bloomref, name), method)
    ]


def _is_method(owner: type, name: str) -> bool:
    item = inspect.getattr_static(owner, name, None)
    return inspect.isfunction(item) or isinstance(item, classmethod | staticmethod)


def _parameters(function: Callable[..., Any], method: str) -> tuple[list[str], list[str]]:
    """Names of all arguments, and of the required ones."""
    parameters = [p for p in inspect.signature(function).parameters.values() if p.name != "self"]
    plain = [p for p in parameters if p.kind not in (p.VAR_KEYWORD, p.VAR_POSITIONAL)]
    more = _KEYWORDS.get(method, []) if len(plain) < len(parameters) else []
    return [*(p.name for p in plain), *more], [p.name for p in plain if p.default is p.empty]


def _consumed(answer: Any) -> Any:
    return list(islice(answer, 3)) if isinstance(answer, Iterator) else answer


def _trial(base: Path, scratch: Path, rng: Generator) -> Trial:
    scratch.mkdir()
    (scratch / "deep").mkdir()
    called = [(c, m, n) for c, m in _methods() for n in _parameters(getattr(getattr(bloomref, c), m), m)[0]]
    owner, method, name = pick(rng, called)
    receivers = _receivers(base, method)
    place = int(rng.integers(len(_values())))
    value = _values()[place]
    if name in _UNBOUNDED and isinstance(value, int | float) and value > 1:
        value = -1
    if name in _FUNCTIONS and callable(value) and not isinstance(value, type):
        value = _one  # what a function of the caller raises is the caller's
    function = getattr(bloomref, owner) if method == "__init__" else getattr(receivers[owner], method)
    _, required = _parameters(function, method)
    sane = _sane(base, receivers) | _SANE_OF.get(method, {})
    arguments = {**{key: sane[key] for key in required}, **_SANE_OF.get(method, {}), name: value}

    def ask() -> None:
        before = Path.cwd()
        os.chdir(scratch / "deep")
        try:
            _consumed(function(**arguments))
        finally:
            os.chdir(before)

    return Trial(f"{owner}.{method}({name}={_shown(value)})", ask, names=_names(method, name, value))


def _names(method: str, name: str, value: Any) -> tuple[str, ...]:
    """Words of which a message has one: the argument, the method or a word of it (`adapter`), what was passed."""
    own = (
        [str(value), str(Path(value))] if isinstance(value, str | Path) else [*value] if isinstance(value, dict) else []
    )
    texts = [visible(text)[:30].strip() for text in own if isinstance(text, str)]
    about = [] if method.startswith("_") else [method, *(word for word in method.split("_") if len(word) > 4)]
    return (name, *about, *texts, *_FILES.get(name, ()))


def _shown(value: Any) -> str:
    try:
        return repr(value)[:60]
    except Exception:  # it lies
        return type(value).__name__


SURFACES = (Surface("arguments", "Python API, every argument", _write, _trial),)
