"""Surfaces: checkpoints of a training, files of training data."""

import csv
import io
import json
import pickle
import shutil
from pathlib import Path
from typing import Any

import numpy as np
from numpy.random import Generator

from bloomref import BloomBackbone, BloomCausalLM
from bloomref.params import init_params
from bloomref.training import training_state
from tools.faults.damage import copied, damage_file, damaged_bytes, damaged_json, pick
from tools.faults.model_files import CONFIG, file_surface
from tools.faults.talking_model import write_talker
from tools.faults.trials import Surface, Trial

_RUN = {"batch": 2, "context": 8, "steps": 4, "learning_rate": 1e-2, "save_every": 1, "eval_every": 1}
_BATCHES = [[1, 2, 3, 4, 5, 6, 7, 8], [9, 10, 11, 12, 13, 14, 15, 16]]


def _train(folder: Path, evaluate: Any = lambda _: 1.0) -> dict[str, bytes]:
    """Begin or continue a training. The result is the weights at its end."""
    lm = BloomCausalLM(BloomBackbone.from_params(CONFIG, init_params(CONFIG, 1), "float32"))
    history = lm.fit(_documents(), checkpoints=folder, resume=True, evaluate=evaluate, **_RUN)
    return {name: array.tobytes() for name, _, array in lm.backbone.params.named()} | {
        "losses": np.array(history.losses).tobytes()
    }


def _documents() -> Any:
    from bloomref.training.packing import Batch

    ids = np.array(_BATCHES)
    return lambda number: Batch.of_windows(np.roll(ids, number, axis=1))


def _write_checkpoint(folder: Path) -> None:
    """The state after two of four steps, and the weights after all four."""
    steps: list[int] = []
    folder.mkdir()

    def evaluate(_: Any) -> float:
        steps.append(len(steps))
        if len(steps) == 4:
            shutil.copytree(folder / "whole", folder / "run")
        return 1.0

    (folder / "weights.pickle").write_bytes(pickle.dumps(_train(folder / "whole", evaluate)))
    shutil.rmtree(folder / "whole")
    assert training_state.latest(folder / "run") is not None


def _files(folder: Path) -> list[Path]:
    return [path for path in (folder / "run").rglob("*") if path.is_file()]


def _other_end(weights: dict[str, bytes], _: Path, base: Path) -> str:
    return "" if weights == pickle.loads((base / "weights.pickle").read_bytes()) else "it goes on to other weights"


CHECKPOINTS = file_surface(
    "checkpoint",
    "training checkpoints",
    _write_checkpoint,
    _files,
    lambda folder: _train(folder / "run"),
    judge=_other_end,
    names=("checkpoint",),
)

# --- data ----------------------------------------------------------------------------------------

_TEXT = "Everyone has the right to education.\nEducation shall be free.\n"
_PAIRS = [{"prompt": "Who has?", "completion": " Everyone."}, {"prompt": "What?", "completion": " A right."}]
_ALPACA = [{"instruction": "Say", "input": "it", "output": "Everyone"}, {"instruction": "Say", "output": "has"}]
_CHAT = [{"messages": [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Yes?"}]}] * 2
_SHARED = [{"conversations": [{"from": "human", "value": "Hi"}, {"from": "gpt", "value": "Yes?"}]}]


def _table(delimiter: str) -> str:
    file = io.StringIO()
    writer = csv.DictWriter(file, ["prompt", "completion"], delimiter=delimiter)
    writer.writeheader()
    writer.writerows(_PAIRS)
    return file.getvalue()


def _lines(records: list[Any]) -> str:
    return "".join(json.dumps(record) + "\n" for record in records)


_DATA = {
    "text.txt": _TEXT,
    "pairs.jsonl": _lines(_PAIRS),
    "chat.jsonl": _lines(_CHAT),
    "texts.jsonl": _lines([{"text": _TEXT}, {"text": "A"}]),
    "alpaca.json": json.dumps(_ALPACA),
    "shared.json": json.dumps(_SHARED, indent=1),
    "pairs.csv": _table(","),
    "pairs.tsv": _table("\t"),
}


def _write_data(folder: Path) -> None:
    write_talker(folder)
    for name, content in _DATA.items():
        (folder / name).write_text(content, "utf-8")


def _damaged_data(path: Path, rng: Generator) -> None:
    if path.suffix == ".json" and rng.random() < 0.7:
        damage_file(path, rng, damaged_json)
    elif path.suffix == ".jsonl" and rng.random() < 0.7:
        lines = path.read_bytes().splitlines()
        place = int(rng.integers(len(lines)))
        path.write_bytes(b"\n".join([*lines[:place], damaged_json(lines[place], rng), *lines[place + 1 :]]))
    else:
        damage_file(path, rng, damaged_bytes)


def _no_json(path: Path) -> str:
    """A remark if Python reads neither the whole of a JSON file nor each of its lines."""
    content = path.read_bytes()
    for parts in ([content], [line for line in content.splitlines() if line.strip()]):
        try:
            for part in parts:
                json.loads(part)
        except (ValueError, RecursionError):
            continue
        return ""
    return f"json refuses {path.name}"


def _data_trial(base: Path, scratch: Path, rng: Generator) -> Trial:
    folder = copied(base, scratch)
    path = folder / pick(rng, [*_DATA])
    _damaged_data(path, rng)

    def ask() -> None:
        lm = BloomCausalLM.from_preset(folder)
        lm.fit([path], steps=1, batch=1, context=16)

    return Trial(
        f"{path.name} damaged", ask, lambda _: _no_json(path) if "json" in path.suffix else "", (path.name, "data")
    )


DATA = Surface("data", "training data", _write_data, _data_trial)
SURFACES = (CHECKPOINTS, DATA)
