"""Ways to damage a small checkpoint, for the tests of refusals."""

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

from bloomref.config import BloomConfig
from bloomref.formats.layouts.checkpoint import open_checkpoint
from bloomref.params import Params

CONFIG = BloomConfig(vocabulary_size=17, num_layers=2, num_heads=3, hidden_dim=12, intermediate_dim=20)
Damage = Callable[[Path], object]


def load(folder: Path) -> Params:
    return open_checkpoint(folder).params()


def json_file(name: str, change: Callable[[dict[str, Any]], object]) -> Damage:
    def damage(folder: Path) -> None:
        data = json.loads((folder / name).read_text())
        change(data)
        (folder / name).write_text(json.dumps(data))

    return damage


def file(name: str, content: bytes) -> Damage:
    return lambda folder: (folder / name).write_bytes(content)


def folder_instead(name: str) -> Damage:
    def damage(folder: Path) -> None:
        (folder / name).unlink()
        (folder / name).mkdir()

    return damage


def pipe_instead(name: str) -> Damage:
    def damage(folder: Path) -> None:
        (folder / name).unlink()
        os.mkfifo(folder / name)

    return damage


def truncated(name: str, keep: float) -> Damage:
    def damage(folder: Path) -> None:
        data = (folder / name).read_bytes()
        (folder / name).write_bytes(data[: int(len(data) * keep)])

    return damage
