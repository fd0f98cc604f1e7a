"""Compiled kernels: cached between runs, discarded when a source changes, and compiled without fast-math."""

import ast
from pathlib import Path

import pytest

numba = pytest.importorskip("numba", reason="numba is not installed")

import llvmlite.binding  # noqa: E402
import numpy as np  # noqa: E402
from processes import copy_packages, python, source_root  # noqa: E402

from accel.numba_cpu import jit_cache, sharing  # noqa: E402
from accel.numba_cpu.jit_cache import cache_folder  # noqa: E402
from bloomref.config import BloomConfig  # noqa: E402
from bloomref.dtypes import dtype_policy  # noqa: E402
from bloomref.params import init_params  # noqa: E402
from bloomref.runtime import registry  # noqa: E402
from bloomref.runtime.backend import SupportsCompilation  # noqa: E402
from bloomref.runtime.engine import Engine  # noqa: E402

RUN = str(Path(__file__).with_name("run_model.py"))
FOLDER = "import accel.numba_cpu.jit_cache as c; print(c.cache_folder())"


def run(root: Path, cache: Path, **environment: str) -> list[str]:
    result = python(RUN, root=root, NUMBA_CACHE_DIR=str(cache), **environment)
    assert result.returncode == 0, result.stderr
    return result.stdout.split()


@pytest.mark.slow
def test_a_second_process_compiles_nothing_and_gives_the_same_bits(tmp_path):
    first = run(source_root(), tmp_path)
    second = run(source_root(), tmp_path)
    assert int(first[0]) > 0
    assert int(second[0]) == 0
    assert first[1:] == second[1:]


@pytest.mark.slow
def test_a_kernel_that_another_file_inlines_is_compiled_again_when_it_changes(tmp_path):
    root, cache = copy_packages(tmp_path / "code"), tmp_path / "cache"
    before = run(root, cache)
    source = root / "accel/numba_cpu/elementwise.py"
    text = source.read_text("utf-8")
    assert "f32(0.79788456)" in text
    source.write_text(text.replace("f32(0.79788456)", "f32(0.7)"), "utf-8")
    after = run(root, cache)
    assert int(after[0]) > 0
    assert after[1] != before[1]
    assert after[2] != before[2]


def test_the_folder_is_named_by_the_sources(tmp_path):
    root = copy_packages(tmp_path)
    names = {python("-c", FOLDER, root=root).stdout}
    for path in sorted((root / "accel/numba_cpu").glob("*.py")):
        path.write_text(path.read_text("utf-8") + "\n", "utf-8")
        names.add(python("-c", FOLDER, root=root).stdout)
        break
    assert len(names) == 2


def test_the_folder_is_named_by_the_instruction_set():
    """Tile sizes are constants of the compiled code: kernels of two instruction sets must not share a folder."""
    names = {python("-c", FOLDER, root=source_root(), BLOOMREF_NUMBA_ISA=isa).stdout for isa in ("generic", "avx512")}
    assert len(names) == 2
    assert "" not in names


def test_two_installations_and_two_processors_do_not_share_a_folder(tmp_path, monkeypatch):
    """The same sources elsewhere, the same processor with fewer instructions: neither has the marks of the other."""
    names = {cache_folder()}
    with monkeypatch.context() as patch:
        patch.setattr(jit_cache, "__file__", str(copy_packages(tmp_path) / "accel/numba_cpu/jit_cache.py"))
        names.add(cache_folder())
    fewer = llvmlite.binding.get_host_cpu_features()
    fewer["avx2"] = not fewer.get("avx2")
    monkeypatch.setattr(llvmlite.binding, "get_host_cpu_features", lambda: fewer)
    names.add(cache_folder())
    assert len(names) == 3


def test_what_was_compiled_is_remembered_by_dtype(tmp_path, monkeypatch):
    backend, (single, half) = registry.load("numba"), map(dtype_policy, ("float32", "mixed_bfloat16"))
    monkeypatch.setenv("NUMBA_CACHE_DIR", str(tmp_path))
    assert isinstance(backend, SupportsCompilation)
    backend.compile(half)
    assert backend.is_compiled(half)
    assert backend.is_compiled(dtype_policy("bfloat16"))
    assert not backend.is_compiled(single)


def test_the_folder_can_be_chosen(tmp_path, monkeypatch):
    monkeypatch.setenv("NUMBA_CACHE_DIR", str(tmp_path))
    assert cache_folder().parent == tmp_path
    monkeypatch.delenv("NUMBA_CACHE_DIR")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert cache_folder().parent == tmp_path / "bloomref" / "numba"


# --- no fast-math ------------------------------------------------------------------------------------------------


def fastmath_values(source: str) -> list[str]:
    """Values of every `fastmath=` and of FASTMATH in a source."""
    tree = ast.parse(source)
    values = [ast.unparse(k.value) for node in ast.walk(tree) if isinstance(node, ast.Call)
             for k in node.keywords if k.arg == "fastmath"]  # fmt: skip
    for node in ast.walk(tree):
        targets = [node.target] if isinstance(node, ast.AnnAssign) else getattr(node, "targets", [])
        if any(isinstance(t, ast.Name) and t.id == "FASTMATH" for t in targets):
            values.append(f"FASTMATH = {ast.unparse(node.value)}")
    return values


def test_the_compiler_may_change_no_result():
    files = {}
    for path in sorted((source_root() / "accel").rglob("*.py")):
        for value in fastmath_values(path.read_text("utf-8")):
            files.setdefault(value, []).append(path.name)
    assert set(files) == {"FASTMATH", "FASTMATH = False"}
    assert files["FASTMATH = False"] == ["jit.py"]


def test_fast_math_is_detected():
    assert fastmath_values("@njit(fastmath={'contract'})\ndef f(): ...\nFASTMATH: Final = True") == [
        "{'contract'}",
        "FASTMATH = True",
    ]


# --- threads -----------------------------------------------------------------------------------------------------


@pytest.mark.skipif(numba.config.NUMBA_NUM_THREADS < 2, reason="one thread only: nothing to compare")
@pytest.mark.parametrize("policy", ["float32", "bfloat16", "float16"])
def test_the_number_of_threads_changes_no_bit(policy, monkeypatch):
    """Prompts longer and shorter than one thread's share, then single tokens; as the sizes ask for, and all shared."""
    config = BloomConfig(vocabulary_size=210, num_layers=2, num_heads=9, hidden_dim=63, intermediate_dim=300)
    names = dtype_policy(policy)
    engine = Engine(init_params(config, 0, names.variable_dtype), config, names, "numba")
    ids = np.random.default_rng(0).integers(0, 210, (3, 150))
    results = set()
    before = numba.get_num_threads()
    try:
        for threads, limit in ((1, 0), (2, 0), (2, 0), (2, sharing.SHARED_FROM), (2, 1 << 20)):
            numba.set_num_threads(threads)
            monkeypatch.setattr(sharing, "SHARED_FROM", limit)
            cache, bits = engine.new_cache(3, 150), b""
            for a, b in ((0, 140), (140, 143), (143, 144), (144, 150)):
                hidden = engine.run(cache, a, ids[:, a:b])
                bits += engine.prepared.logits(hidden, False).tobytes()
            results.add(bits)
    finally:
        numba.set_num_threads(before)
    assert len(results) == 1
