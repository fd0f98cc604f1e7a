"""Preparing takes little more memory than the packed weights; the file's weights stay in the file."""

from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("numba", reason="numba is not installed")

from processes import python, source_root

from bloomref.config import BloomConfig
from bloomref.dtypes import floating_dtype
from bloomref.formats.layouts import hf
from bloomref.params import init_params

MEASURE = str(Path(__file__).with_name("measure_memory.py"))
SMALL = BloomConfig(vocabulary_size=60, num_layers=1, num_heads=2, hidden_dim=32, intermediate_dim=64)
LARGE = BloomConfig(vocabulary_size=60_000, num_layers=6, num_heads=10, hidden_dim=640, intermediate_dim=2560)


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="reads the memory in use from /proc")
@pytest.mark.parametrize(
    ("stored", "policy"),
    [
        ("float32", "float32"),
        ("float16", "float32"),
        ("float32", "bfloat16"),
        ("float16", "bfloat16"),
        ("bfloat16", "bfloat16"),
        ("float32", "float16"),
        ("float16", "mixed_bfloat16"),
        ("float16", "float64"),
    ],
)
def test_the_packed_weights_are_the_only_copy_in_memory(tmp_path: Path, stored: str, policy: str) -> None:
    """68 M parameters: 137 to 547 MB packed."""
    for name, config in (("small", SMALL), ("large", LARGE)):
        hf.save(tmp_path / name, config, init_params(config, 0, floating_dtype(stored)))
    result = python(
        MEASURE, str(tmp_path / "small"), str(tmp_path / "large"), policy, root=source_root(), BLOOMREF_NUMBA_KEEP="0"
    )
    assert result.returncode == 0, result.stderr
    peak, left = map(float, result.stdout.split())
    assert 0.9 < peak <= 1.25
    assert 0.9 < left <= 1.1


def test_stored_weights_are_the_callers_arrays() -> None:
    """Arrays in memory are not copied either."""
    from bloomref import BloomBackbone

    params = init_params(SMALL, 0)
    model = BloomBackbone.from_params(SMALL, params, "bfloat16", backend="numba")
    assert all(array is stored for (_, _, array), (_, _, stored) in zip(
        params.named(), model.engine._params.named(), strict=True))  # fmt: skip
    rounded = {key: array for key, _, array in model.params.named()}
    assert all(np.array_equal(array.astype(rounded[key].dtype), rounded[key]) for key, _, array in params.named())
