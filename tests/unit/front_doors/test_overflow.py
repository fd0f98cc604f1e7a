"""Numbers that overflow in a dtype: every front door says so, with dtypes that are wide enough, and NumPy is silent.

Warnings are errors in these tests.
"""

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest

from bloomref import BloomBackbone, BloomCausalLM, BloomTokenizer
from bloomref.cli.app import run
from bloomref.errors import BadWeights
from bloomref.formats.safetensors_io import SafetensorsFile, write_safetensors
from bloomref.formats.tokenizers.byte_alphabet import BYTES
from bloomref.presets.preset_registry import PRESETS
from bloomref.wider_dtypes import overflow_hint

TINY = PRESETS["bloom_tiny_udhr"].folder
HINT = r"use dtype bfloat16 or float32 \(--dtype on the command line\)"
PLAIN = BloomTokenizer({**BYTES, "</s>": 256}, [])
IDS = {"token_ids": [[5, 6, 7]]}
Change = Callable[[dict[str, Any]], None]


def loud(weights: dict[str, Any]) -> None:
    """The residual stream passes 65504 in layer 2; every weight fits into float16."""
    for layer in (1, 2):
        weights[f"transformer.h.{layer}.mlp.dense_4h_to_h.bias"] += 40000.0


def big(weights: dict[str, Any]) -> None:
    weights["transformer.ln_f.bias"][0] = 1e5


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    file = SafetensorsFile(TINY / "model.safetensors")
    made = {}
    for change in (loud, big):
        folder = tmp_path_factory.mktemp(change.__name__)
        for name in ("config.json", "tokenizer.json"):
            shutil.copy(TINY / name, folder)
        weights = {name: np.array(file.view(name), np.float32) for name in file.entries}
        change(weights)
        narrow = {name: array.astype(ml_dtypes.bfloat16) for name, array in weights.items()}
        write_safetensors(folder / "model.safetensors", narrow)
        made[change.__name__] = folder
    return made


@pytest.fixture(scope="module")
def model(folders: dict[str, Path]) -> BloomCausalLM:
    return BloomCausalLM.from_preset(folders["loud"], dtype="float16")


REFUSED: dict[str, Callable[[BloomCausalLM], Any]] = {
    "generate": lambda lm: lm.generate("x", max_new_tokens=2),
    "beams": lambda lm: lm.generate("x", max_new_tokens=2, num_beams=2),
    "stream": lambda lm: list(lm.stream("x", max_new_tokens=2)),
    "score": lambda lm: lm.score("Everyone has"),
}


@pytest.mark.parametrize("door", REFUSED)
def test_text_is_refused_with_a_wider_dtype(model: BloomCausalLM, door: str) -> None:
    with pytest.raises(BadWeights, match=f"overflow in float16; {HINT}"):
        REFUSED[door](model)


COMPUTED: dict[str, Callable[[BloomCausalLM], Any]] = {
    "logits": lambda lm: lm.logits(IDS),
    "hidden": lambda lm: lm.backbone(IDS),
    "trace": lambda lm: lm.backbone.trace(IDS, "layers.3.mlp_block")["layers.3.mlp_block"],
}


@pytest.mark.parametrize("door", COMPUTED)
def test_numbers_are_returned_as_they_are_without_a_warning(model: BloomCausalLM, door: str) -> None:
    assert not np.isfinite(COMPUTED[door](model).astype(np.float32)).all()


def test_other_doors_are_silent(model: BloomCausalLM) -> None:
    model.backbone(IDS, training=True)
    model.loss_and_gradients(IDS)
    model.backbone.token_embedding(np.full((1, 144), 60000, np.float16), reverse=True)


def test_a_training_that_diverges_is_refused_without_a_warning() -> None:
    lm = BloomCausalLM(BloomBackbone(257, 1, 2, 4, 8), PLAIN)
    with pytest.raises(BadWeights, match="finite norm"):
        lm.fit(["the hare"] * 2, steps=4, batch=2, context=4, learning_rate=1e38)


def test_weights_that_do_not_fit_name_wider_dtypes(folders: dict[str, Path]) -> None:
    with pytest.raises(BadWeights, match=rf"ln_f\.bias as float16: expected finite numbers, got inf; {HINT}"):
        BloomBackbone.from_preset(folders["big"], dtype="float16")
    BloomBackbone.from_preset(folders["big"], dtype="bfloat16")


COMMANDS = {
    "generate": ["generate", "x", "-n", "1"],
    "score": ["score", "Everyone has"],
    "trace": ["trace", "Everyone has", "-o", "{out}"],
}


@pytest.mark.parametrize("command", COMMANDS)
def test_commands_say_it_in_one_line(
    folders: dict[str, Path], tmp_path: Path, capfd: pytest.CaptureFixture[str], command: str
) -> None:
    out = str(tmp_path / "trace.safetensors")
    arguments = [part.format(out=out) for part in COMMANDS[command]]
    assert run([*arguments, "-m", str(folders["loud"]), "--dtype", "float16"]) == 4
    lines = capfd.readouterr().err.splitlines()
    assert [line for line in lines if not line.startswith("backend ")] == [lines[-1]]
    assert lines[-1].endswith("use dtype bfloat16 or float32 (--dtype on the command line)")
    if command == "trace":
        assert "bloomref: layers.2.mlp_block: expected finite numbers, got inf" in lines[-1]
        assert "layers.2.mlp_block" in SafetensorsFile(Path(out)).entries


def test_the_widest_dtype_has_no_hint() -> None:
    assert overflow_hint("float64") == ""
    assert "float64" in overflow_hint("float32")
