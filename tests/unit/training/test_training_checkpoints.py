"""Checkpoints of a training as a whole: any damage is refused, and a folder belongs to one run at a time."""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st
from small_models import text_lm

from bloomref.errors import BadWeights, InvalidInput
from bloomref.training import training_state
from bloomref.training.history import History
from bloomref.training.training_state import TrainingState, latest, load, reserved, save, write_checksums

TEXTS = ["the a", "is the a", "a the is", "the the"]
SETTINGS: dict[str, Any] = {"steps": 3, "batch": 2, "context": 8, "learning_rate": 1e-2}
STATE = TrainingState(
    {"settings": {"seed": 1}, "history": {"steps": [1, 2]}},
    {"variables": {"x": np.arange(5.0)}, "first": {"x": np.zeros(5)}},
)


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    save(tmp_path, 7, STATE)
    path = latest(tmp_path)
    assert path is not None
    return path


def test_an_undamaged_checkpoint_is_read(checkpoint: Path) -> None:
    state = load(checkpoint)
    assert (state.step, state.values["settings"]) == (7, {"seed": 1})
    assert state.arrays["variables"]["x"].tolist() == [0, 1, 2, 3, 4]


@pytest.mark.clause("TRN-20")
@given(number=st.integers(0, 3), place=st.floats(0, 1, exclude_max=True), bit=st.integers(0, 7), cut=st.booleans())
@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_any_damaged_byte_is_noticed(checkpoint: Path, number: int, place: float, bit: int, cut: bool) -> None:
    path = sorted(checkpoint.iterdir())[number]
    whole = path.read_bytes()
    damaged, at = bytearray(whole), int(place * len(whole))
    damaged[at] ^= 1 << bit
    assume(not cut or whole[at:].strip())  # the line end of a JSON file says nothing
    path.write_bytes(whole[:at] if cut else damaged)
    try:
        with pytest.raises(BadWeights):
            load(checkpoint)
    finally:
        path.write_bytes(whole)


def linked(path: Path) -> None:
    shutil.move(path, path.parent.parent / "elsewhere")
    path.symlink_to(path.parent.parent / "elsewhere")


DAMAGE: dict[str, Callable[[Path], object]] = {
    "no checksums": lambda folder: (folder / "checksums.json").unlink(),
    "a file too many": lambda folder: (folder / "second.safetensors").write_bytes(b""),
    "a missing file": lambda folder: (folder / "first.safetensors").unlink(),
    "a link to a file": lambda folder: linked(folder / "first.safetensors"),
    "a folder for a file": lambda folder: (folder / "state.json").unlink() or (folder / "state.json").mkdir(),
    "a link to the folder": linked,
    "a file for the folder": lambda folder: shutil.rmtree(folder) or folder.write_text(""),
    "a broken link": lambda folder: shutil.rmtree(folder) or folder.symlink_to("nowhere"),
    "checksums of another form": lambda folder: (folder / "checksums.json").write_text('{"state.json": 5}'),
    "files of another checkpoint": lambda folder: (folder / "first.safetensors").write_bytes(
        (folder / "variables.safetensors").read_bytes()
    ),
}


@pytest.mark.clause("TRN-20")
@pytest.mark.parametrize("damage", DAMAGE)
def test_links_and_other_files_are_refused(damage: str, checkpoint: Path) -> None:
    DAMAGE[damage](checkpoint)
    assert latest(checkpoint.parent) == checkpoint
    with pytest.raises(BadWeights) as caught:
        load(checkpoint)
    assert checkpoint.name in str(caught.value) or "checksums.json" in str(caught.value)


def test_what_is_no_folder_is_not_removed(tmp_path: Path) -> None:
    (tmp_path / "checkpoint-00000001").write_text("mine")
    (tmp_path / "checkpoint-00000002").symlink_to(tmp_path)
    save(tmp_path, 3, STATE)
    assert len(os.listdir(tmp_path)) == 3


# --- histories ---------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("finished")
    text_lm().fit(TEXTS, checkpoints=folder, evaluate=lambda _: 1.0, **SETTINGS)
    return folder


HISTORIES: dict[str, Callable[[dict[str, Any]], object]] = {
    "shorter": lambda history: history["steps"].pop(),
    "longer": lambda history: history["steps"].append({**history["steps"][-1], "step": 4}),
    "another order": lambda history: history["steps"].reverse(),
    "a loss that is a text": lambda history: history["steps"][0].update(loss="x"),
    "a count that is no integer": lambda history: history["steps"][0].update(tokens=1.5),
    "an evaluation that is no number": lambda history: history["evaluations"][0].update(loss=None),
    "an evaluation of the future": lambda history: history["evaluations"][0].update(step=9),
    "no list": lambda history: history.update(steps=5),
    "empty": lambda history: history["steps"].clear(),
}


@pytest.mark.clause("TRN-20")
@pytest.mark.parametrize("change", HISTORIES)
def test_a_history_that_does_not_fit_is_refused(change: str, finished: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(finished, tmp_path / "copy")
    path = latest(folder)
    state = json.loads((path / "state.json").read_text())
    HISTORIES[change](state["history"])
    (path / "state.json").write_text(json.dumps(state))
    write_checksums(path)
    lm = text_lm()
    before = lm.params.word_embedding.tobytes()
    with pytest.raises(BadWeights, match="history"):
        lm.fit(TEXTS, checkpoints=folder, resume=True, evaluate=lambda _: 1.0, **SETTINGS)
    assert lm.params.word_embedding.tobytes() == before


def test_an_undamaged_history_is_read(finished: Path) -> None:
    values = load(latest(finished)).values
    history = History.from_dict(values["history"])
    assert [record.step for record in history.steps] == [1, 2, 3]
    assert history.to_dict() == values["history"]


# --- two runs ----------------------------------------------------------------------------------


@pytest.mark.clause("TRN-21")
def test_a_folder_belongs_to_one_run(tmp_path: Path) -> None:
    pytest.importorskip("fcntl")
    for folder in (tmp_path, tmp_path / "new", tmp_path / "deep/er"):
        with reserved(folder), pytest.raises(InvalidInput, match="another folder"):
            text_lm().fit(TEXTS, checkpoints=folder, **SETTINGS)
        assert folder.exists() is (folder == tmp_path)
    with reserved(tmp_path), reserved(tmp_path / "other"):
        pass


@pytest.mark.clause("TRN-21")
def test_a_dead_run_holds_no_folder(tmp_path: Path) -> None:
    script = f"import os, pathlib\nfrom bloomref.training.training_state import reserved\nwith reserved(pathlib.Path({str(tmp_path)!r})): os.kill(os.getpid(), 9)"
    assert subprocess.run([sys.executable, "-c", script], check=False).returncode == -9
    with reserved(tmp_path):
        save(tmp_path, 1, STATE)
    assert training_state.latest(tmp_path)


@pytest.mark.parametrize("pad", [None, 0, 10**6, 2**70])
def test_a_padding_id_beyond_the_vocabulary_is_no_index(pad: int | None) -> None:
    from bloomref import BloomBackbone, BloomCausalLM

    drawn = text_lm()
    config = drawn.backbone.config.replace(pad_token_id=pad)
    lm = BloomCausalLM(BloomBackbone.from_params(config, drawn.params), drawn.tokenizer)
    history = lm.fit(TEXTS, held_out=0.3, **SETTINGS | {"steps": 1})
    assert np.isfinite([*history.losses, history.evaluations[0].loss]).all()
