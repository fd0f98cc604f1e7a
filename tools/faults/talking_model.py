"""A small model with a tokenizer, and surfaces of the files that lie beside weights: tokenizer, settings, templates."""

import json
from pathlib import Path
from typing import Any

from numpy.random import Generator

import bloomref
from bloomref import BloomCausalLM, BloomConfig, BloomTokenizer
from bloomref.formats.layouts import hf
from bloomref.params import init_params
from tools.faults.damage import copied, damaged_bytes, damaged_json, pick
from tools.faults.model_files import file_surface
from tools.faults.trials import Surface, Trial

PRESET = Path(bloomref.__file__).parent / "presets" / "bloom_tiny_udhr"
TEXTS = ("Everyone has the right", "", "Jeder 意 é\n", "</s> <s>")
_SIZES = {"num_layers": 1, "num_heads": 2, "hidden_dim": 8, "intermediate_dim": 32}
MESSAGES = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Yes?"}]
TEMPLATE = (
    "{% for message in messages %}{{ '<' + message['role'] + '>' + message['content'] + eos_token }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<assistant>' }}{% endif %}"
)
_SNIPPETS = (
    *("{{ 'a' * 10**11 }}", "{{ [0] * 10**11 }}", "{% for i in range(10**9) %}x{% endfor %}", "{{ 10**10**8 }}"),
    *("{{ ''.__class__.__mro__ }}", "{{ messages[9].content }}", "{{ undefined.x }}", "{% include 'x' %}", "{{ 1/0 }}"),
    *("{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}", "{{ raise_exception('a\nb') }}", "{% set x = namespace() %}"),
    *(
        "{{ messages | tojson }}",
        "{{ strftime_now('%Y') }}",
        "{% generation %}",
        "{% break %}",
        "{{ '\x1b[2J' }}",
        "{{",
    ),
    *("{{ '%99999999999d' % 1 }}", "{{ '{:>99999999999}'.format(1) }}", "{{ 'x'.center(10**11) }}", "{{ self.x }}"),
)


def write_talker(folder: Path) -> None:
    """A model of random weights with the tokenizer of the shipped preset and generation settings."""
    size = BloomTokenizer.from_preset(PRESET).vocabulary_size()
    config = BloomConfig(vocabulary_size=size, bos_token_id=1, eos_token_id=2, pad_token_id=3, **_SIZES)
    hf.save(folder, config, init_params(config, 1), tokenizer_from=PRESET)
    settings = json.loads((folder / "tokenizer_config.json").read_bytes())
    (folder / "tokenizer_config.json").write_text(json.dumps({**settings, "chat_template": TEMPLATE}), "utf-8")
    generation = {"do_sample": False, "num_beams": 2, "max_new_tokens": 3, "top_k": 5, "top_p": 0.9, "min_length": 0}
    generation |= {"temperature": 1.0, "eos_token_id": [2], "pad_token_id": 3, "bos_token_id": 1, "seed": 1}
    generation |= {"repetition_penalty": 1.1, "bad_words_ids": [[5]], "suppress_tokens": [6], "length_penalty": 1.0}
    (folder / "generation_config.json").write_text(json.dumps(generation), "utf-8")


# --- tokenizers ----------------------------------------------------------------------------------


def _tokenize(folder: Path) -> list[list[int]]:
    lm = BloomCausalLM.from_preset(folder)
    if lm.tokenizer is None:  # a remark says so
        return []
    ids = [lm.tokenizer.tokenize(text) for text in TEXTS]
    lm.tokenizer.detokenize(ids)
    lm.score("Everyone has the right")
    lm.generate("Everyone", max_new_tokens=2)
    return ids


def _other_ids(ids: list[list[int]], folder: Path, _: Path) -> str:
    from tokenizers import Tokenizer

    if not (folder / "tokenizer.json").is_file():
        return "" if not ids else "ids without a tokenizer"
    try:
        reader = Tokenizer.from_file(str(folder / "tokenizer.json"))
    except Exception as error:  # the library has no class of its own
        return f"tokenizers refuses it: {error!s:.100}"
    others = [reader.encode(text, add_special_tokens=False).ids for text in TEXTS]
    return "" if others == ids else "tokenizers gives other ids"


TOKENIZERS = file_surface(
    "tokenizer",
    "tokenizer files",
    write_talker,
    lambda folder: [folder / name for name in ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json")],
    _tokenize,
    change=damaged_json,
    judge=_other_ids,
    names=("tokenizer", "text"),
)


# --- generation settings -------------------------------------------------------------------------


def _generate(folder: Path) -> list[Any]:
    lm = BloomCausalLM.from_preset(folder)
    return [lm.generate("Everyone has", max_new_tokens=3), lm.generate([[5, 6, 7]], max_length=6)]


SETTINGS = file_surface(
    "generation",
    "generation_config.json",
    write_talker,
    lambda folder: [folder / "generation_config.json"],
    _generate,
    change=damaged_json,
)


# --- chat templates ------------------------------------------------------------------------------


def _chat_trial(base: Path, scratch: Path, rng: Generator) -> Trial:
    folder = copied(base, scratch)
    path = folder / "chat_template.jinja"
    template = TEMPLATE.encode()
    if rng.random() < 0.5:
        place = int(rng.integers(2)) * len(template)
        template = template[:place] + pick(rng, _SNIPPETS).encode() + template[place:]
    else:
        template = damaged_bytes(template, rng)
    path.write_bytes(template)

    def ask() -> list[Any]:
        tokenizer = BloomTokenizer.from_preset(folder)
        return [
            tokenizer.apply_chat_template(MESSAGES, tokenize=False),
            tokenizer.apply_chat_template(MESSAGES, add_generation_prompt=True),
        ]

    return Trial(f"template {template[-60:]!r}", ask, names=("chat_template", "template", "messages", "text"))


CHATS = Surface("chat", "chat templates", write_talker, _chat_trial, needs="jinja2")
SURFACES = (TOKENIZERS, SETTINGS, CHATS)
