"""The backend of docs/writing-a-backend.md is correct. Its installation is simulated."""

import os
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import numpy as np
import pytest
import strategies
from test_docs import blocks

from bloomref.config import BloomConfig
from bloomref.dtypes import POLICIES
from bloomref.runtime import registry
from bloomref.runtime.engine import Engine
from bloomref.runtime.inputs import TokenBatch

ROOT = Path(__file__).parents[2]
PAGE = list(blocks((ROOT / "docs/writing-a-backend.md").read_text("utf-8")))
CODE = next(block.code for block in PAGE if block.language == "python")
PROJECT = tomllib.loads(next(block.code for block in PAGE if block.language == "toml"))
CONFIG = BloomConfig(
    vocabulary_size=40,
    num_layers=2,
    num_heads=3,
    hidden_dim=15,
    intermediate_dim=11,
    apply_residual_connection_post_layernorm=True,
    tie_word_embeddings=False,
)
UNIT = {"float64": 2.0**-52, "float32": 2.0**-23, "float16": 2.0**-10, "bfloat16": 2.0**-7}
BOUND = 200  # units in the last place of 1; results are of the size 1 to 10, the least of the mistakes below makes ten times as much


def install(folder: Path, code: str = CODE) -> None:
    project = PROJECT["project"]
    points = project["entry-points"]["bloomref.backends"]
    info = folder / f"my_backend-{project['version']}.dist-info"
    info.mkdir(parents=True)
    (folder / "my_backend.py").write_text(code, "utf-8")
    metadata = f"Metadata-Version: 2.1\nName: {project['name']}\nVersion: {project['version']}\n"
    (info / "METADATA").write_text(metadata, "utf-8")
    lines = "".join(f"{name} = {target}\n" for name, target in points.items())
    (info / "entry_points.txt").write_text(f"[bloomref.backends]\n{lines}", "utf-8")


@pytest.fixture(autouse=True)
def _nothing_leaks(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(registry, "load", cache(registry.load.__wrapped__))
    yield
    sys.modules.pop("my_backend", None)


def worst_error(case: strategies.Float32Case, policy: str) -> float:
    """Largest error of hidden states and logits, over two calls, in units of the compute dtype."""
    results = []
    for name in ("mine", "numpy"):
        engine = Engine(case.params, case.config, POLICIES[policy], backend=name)
        hidden = engine.hidden(TokenBatch(case.token_ids, case.is_real))
        cache = engine.new_cache(case.batch, case.time)
        pieces = [
            engine.extend(cache, a, case.token_ids[:, a:b], case.is_real[:, a:b])
            for a, b in ((0, 3), (3, 3), (3, case.time))
        ]
        found = (hidden, engine.logits(hidden), np.concatenate(pieces, 1))
        results.append([array.astype(np.float64)[case.is_real] for array in found])
    unit = UNIT[POLICIES[policy].compute_dtype.name]
    return max(float(np.abs(a - b).max()) / unit for a, b in zip(*results, strict=True))


@pytest.mark.parametrize("policy", POLICIES)
@pytest.mark.parametrize("kind", ["real", "left", "holes", "padding row"])
@pytest.mark.parametrize("form", [{}, {"apply_residual_connection_post_layernorm": False, "tie_word_embeddings": True}])
def test_the_page_has_a_right_backend(tmp_path, monkeypatch, policy, kind, form):
    install(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    assert worst_error(strategies.Float32Case(CONFIG.replace(**form), time=7, kind=kind), policy) < BOUND


@pytest.mark.parametrize(
    ("right", "wrong"),
    [
        ("0.044715", "0.045"),
        ("distance <= 0", "distance <= 1"),
        ("& step.key_is_real[:, None, None]", ""),
        ("np.arange(start, stop)[:, None]", "np.arange(stop - start)[:, None]"),
        ("alibi.slopes(config.num_heads, self.wide)", "np.float32([1 / 16, 1 / 256, 1 / 4096])"),
        ("normed if self.config", "x if self.config"),
        ("if self.params.lm_head is None", "if True"),
    ],
)
def test_a_mistake_on_the_page_is_found(tmp_path, monkeypatch, right, wrong):
    assert CODE.count(right) == 1
    install(tmp_path, CODE.replace(right, wrong))
    monkeypatch.syspath_prepend(str(tmp_path))
    assert (
        max(worst_error(strategies.Float32Case(CONFIG, time=7, kind=k), "float32") for k in ("real", "holes")) > BOUND
    )


@pytest.mark.slow
def test_it_conforms_as_the_page_says(tmp_path):
    install(tmp_path)
    command = [sys.executable, "-m", "bloomref", "conform", "--backend", "mine", "--require", "--examples", "3"]
    command += ["--dtype", "float32", "--dtype", "bfloat16"]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(tmp_path), str(ROOT)])}
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
    assert done.returncode == 0, done.stdout[-4000:]
    for dtype in ("float32", "bfloat16"):
        assert f"mine, {dtype}: conforms" in done.stdout
