"""Host code of a call: chunks, kernel sequences, memory estimates, arrays of other libraries.

The kernels are emulated.
"""

import weakref
from typing import Any

import numpy as np
import pytest
import strategies
from emulated_device import EmulatedDevice
from host_model import CONFIG, run_blocks
from hypothesis import given
from hypothesis import strategies as st

from accel.cupy_gpu import launches, memory
from accel.cupy_gpu.cupy_backend import CupyBackend
from accel.cupy_gpu.prepared import CupyPrepared, chunks
from bloomref.config import BloomConfig
from bloomref.dtypes import POLICIES, accumulation_dtype
from bloomref.errors import InvalidInput, Unsupported
from bloomref.runtime.backend import Memory, Step

FLOAT32 = POLICIES["float32"]


class Small(EmulatedDevice):
    """A device with `free` bytes of free memory."""

    def __init__(self, free: int = 1 << 30, arch: int = 90) -> None:
        super().__init__(arch, seed=0)
        self.free = free

    def free_bytes(self) -> int:
        return self.free


def prepare(device: Any, policy: str = "float32", config: BloomConfig = CONFIG) -> CupyPrepared:
    case, names = strategies.Float32Case(config, seed=2), POLICIES[policy]
    return CupyBackend("cupy", lambda: device).prepare(case.params, config, names)


def hidden(prepared: CupyPrepared, ids: Any, real: Any, cuts: tuple[int, ...] = ()) -> Any:
    cache, parts = prepared.new_cache(*ids.shape), []
    for start, stop in zip((0, *cuts), (*cuts, ids.shape[1]), strict=True):
        parts.append(run_blocks(prepared, ids[:, start:stop], cache, Step.at(start, real[:, :stop])))
    return parts


# --- chunks ------------------------------------------------------------------------------------------------------


@given(batch=st.integers(0, 9), time=st.integers(0, 40), limit=st.integers(1, 50))
def test_chunks_cover_every_position_once_and_in_order(batch: int, time: int, limit: int) -> None:
    visits = np.zeros((batch, time), int)
    for chunk in chunks(batch, time, limit):
        assert chunk.batch * chunk.time == chunk.rows.stop - chunk.rows.start <= max(limit, 1)
        assert chunk.batch == 1 or chunk.time == time
        rows, columns = np.divmod(np.arange(batch * time)[chunk.rows], max(time, 1))
        assert set(rows) == set(range(batch)[chunk.sequences])
        first = chunk.number * min(time, limit)
        assert set(columns) == set(range(first, first + chunk.time))
        assert (visits[rows, :first] == 1).all()  # a chunk comes after the ones that it attends to
        visits[rows, columns] += 1
    assert (visits == 1).all()


@pytest.mark.usefixtures("emulator")
@pytest.mark.parametrize("policy", ["float64", "float32"])
@pytest.mark.parametrize("limit", [1, 7, 25, 64])
def test_a_call_in_chunks_equals_the_whole_call(monkeypatch: pytest.MonkeyPatch, policy: str, limit: int) -> None:
    case = strategies.Float32Case(CONFIG, seed=5, batch=3, time=25, kind="holes")
    prepared = prepare(Small(), policy)

    def run() -> Any:
        parts = hidden(prepared, case.token_ids, case.is_real, (3, 24))
        return np.concatenate([prepared.logits(prepared.final_norm(x), False) for x in parts], 1)[case.is_real]

    whole = run()
    monkeypatch.setattr(memory, "CHUNK_ROWS", limit)
    monkeypatch.setattr(memory, "LOGITS_BYTES", 0)
    np.testing.assert_allclose(run(), whole, rtol=0, atol=1e-12 if policy == "float64" else 2e-5)


@pytest.mark.usefixtures("emulator")
def test_one_step_serves_caches_of_several_sizes() -> None:
    case = strategies.Float32Case(CONFIG, seed=6, batch=2, time=5, kind="holes")
    prepared, step = prepare(Small()), Step.at(0, case.is_real)
    x = prepared.embed(case.token_ids)
    few, many = (prepared.to_host(prepared.attention_block(0, x, prepared.new_cache(2, p), step)) for p in (5, 9))
    assert few.tobytes() == many.tobytes()


@pytest.mark.usefixtures("emulator")
def test_logits_of_the_last_position_are_the_same_alone() -> None:
    prepared, x = prepare(Small()), np.random.default_rng(0).standard_normal((2, 5, 48)).astype(np.float32)
    everything, last = (prepared.logits(prepared.from_host(x), only) for only in (False, True))
    assert last.shape == (2, 1, 40)
    assert last.tobytes() == everything[:, -1:].tobytes()


@pytest.mark.usefixtures("emulator")
@pytest.mark.parametrize(
    ("batch", "time", "policy", "expected"),
    [
        (16, 1, "float16", "qkv_matvec attention_decode residual_matvec gelu_matvec residual_matvec"),
        (17, 1, "float16", "qkv_matvec attention_decode residual_matvec gelu_matvec residual_matvec"),
        (64, 1, "float32", "qkv_matvec attention_decode residual_matvec gelu_matvec residual_matvec"),
        (65, 1, "float32", "layer_norm qkv_split attention_decode bias_residual layer_norm bias_gelu bias_residual"),
        (17, 1, "float64", "layer_norm qkv_split attention_rows bias_residual layer_norm bias_gelu bias_residual"),
        (9, 2, "float32", "layer_norm qkv_split attention_rows bias_residual layer_norm bias_gelu bias_residual"),
        (1, 17, "float16", "layer_norm qkv_split attention_flash bias_residual layer_norm bias_gelu bias_residual"),
        (1, 17, "float32", "layer_norm qkv_split attention_tiled bias_residual layer_norm bias_gelu bias_residual"),
        (3, 7, "float32", "layer_norm qkv_split attention_rows bias_residual layer_norm bias_gelu bias_residual"),
        (2, 8, "float32", "layer_norm qkv_split attention_tiled bias_residual gelu_matvec residual_matvec"),
        (2, 3, "float32", "layer_norm qkv_split attention_rows bias_residual gelu_matvec residual_matvec"),
        (1, 1, "float64", "layer_norm qkv_split attention_rows bias_residual layer_norm bias_gelu bias_residual"),
    ],
)
def test_a_block_runs_the_kernels_of_its_path(batch: int, time: int, policy: str, expected: str) -> None:
    """docs/cupy.md shows the three paths. The tensor-core kernels do not support the widths here."""
    run_block(CONFIG, batch, time, policy, expected)


@pytest.mark.usefixtures("emulator")
@pytest.mark.parametrize(
    ("time", "last_only", "expected"), [(1, False, ["head_matvec"]), (2, True, ["head_matvec"]), (2, False, [])]
)
def test_logits_of_one_position_per_sequence_are_those_of_a_step(
    time: int, last_only: bool, expected: list[str]
) -> None:
    device = Small()
    prepared, x = prepare(device), np.random.default_rng(0).standard_normal((17, time, 48)).astype(np.float32)
    logits = prepared.logits(prepared.from_host(x), last_only)
    assert [name.split("<")[0] for name in device.launched] == expected
    few = prepared.logits(prepared.from_host(x[8:10]), last_only)  # the last row of a group, the first of the next
    np.testing.assert_allclose(logits[8:10], few, rtol=0, atol=0 if expected else 1e-5)


@pytest.mark.usefixtures("emulator")
@pytest.mark.parametrize(
    ("batch", "time", "policy", "arch", "tensor"),
    [
        (17, 1, "float16", 80, "attention_decode"),
        (17, 1, "float16", 75, None),
        (8, 8, "bfloat16", 90, "attention_flash"),
        (5, 1, "bfloat16", 90, "attention_decode"),
        (4, 1, "bfloat16", 90, None),
        (65, 1, "bfloat16", 90, None),
        (17, 1, "float32", 90, None),
    ],
)
def test_products_use_tensor_cores_in_16_bits_and_for_5_to_64_rows(
    batch: int, time: int, policy: str, arch: int, tensor: str | None
) -> None:
    """Widths must be multiples of 8, and the residual pre-layernorm."""
    device, config = Small(arch=arch), CONFIG.replace(intermediate_dim=40, num_layers=1)
    prepared = prepare(device, policy, config)
    device.launched.clear()
    hidden(prepared, np.zeros((batch, time), int), np.ones((batch, time), bool))
    expected = f"layer_norm qkv_tensor {tensor} residual_tensor layer_norm gelu_tensor residual_tensor"
    names = " ".join(name.split("<")[0] for name in device.launched[1:])
    assert names == expected if tensor else "tensor" not in names
    for changed in (config.replace(intermediate_dim=44), config.replace(apply_residual_connection_post_layernorm=True)):
        assert not prepare(device, policy, changed)._blocks.uses_tensor_cores(17)


@pytest.mark.usefixtures("emulator")
@pytest.mark.parametrize(
    ("head_width", "policy", "attention"),
    [
        (128, "float16", "attention_flash"),
        (136, "float16", "attention_rows"),
        (160, "float16", "attention_rows"),
        (128, "float32", "attention_tiled"),
        (136, "float32", "attention_rows"),
    ],
)
def test_heads_wider_than_the_tiles_use_the_plain_kernel(head_width: int, policy: str, attention: str) -> None:
    config = CONFIG.replace(num_heads=1, hidden_dim=head_width)
    rest = "bias_residual layer_norm bias_gelu bias_residual"
    run_block(config, 1, 17, policy, f"layer_norm qkv_split {attention} {rest}")


def run_block(config: BloomConfig, batch: int, time: int, policy: str, expected: str) -> None:
    device = Small()
    prepared = prepare(device, policy, config.replace(num_layers=1))
    device.launched.clear()
    hidden(prepared, np.zeros((batch, time), int), np.ones((batch, time), bool))
    assert " ".join(name.split("<")[0] for name in device.launched) == f"embed_norm {expected}"


@pytest.mark.usefixtures("emulator")
def test_one_step_serves_two_devices() -> None:
    case = strategies.Float32Case(CONFIG, seed=6, batch=2, time=5, kind="holes")
    step, results = Step.at(0, case.is_real), []
    for name in ("GPU 0", "GPU 1"):
        device = Small()
        device.name = name
        prepared = prepare(device)
        x = prepared.embed(case.token_ids)
        results.append(prepared.to_host(prepared.attention_block(0, x, prepared.new_cache(2, 5), step)).tobytes())
    assert results[0] == results[1]
    assert len(step.derived) == 2


@given(
    heads=st.sampled_from((16, 32, 1)),
    rows=st.integers(1, 10_000),
    length=st.integers(1, 5000),
    sms=st.sampled_from((20, 132, 200)),
)
def test_the_split_k_buffers_are_large_enough_for_every_chunk(heads: int, rows: int, length: int, sms: int) -> None:
    """A batch that is divided is so large that its last, short chunk needs no more splits than the whole."""
    whole = launches.decode_buffers(rows, heads, 64, length, sms)
    for chunk in chunks(rows, 1, memory.CHUNK_ROWS):
        part = launches.decode_buffers(chunk.batch, heads, 64, length, sms)
        assert (part.partials, part.arrival_counter) <= (whole.partials, whole.arrival_counter)


# --- memory estimates --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("policy", POLICIES)
def test_a_cache_that_fits_is_allocated_and_a_larger_one_is_refused(policy: str) -> None:
    device, names = Small(), POLICIES[policy]
    prepared = prepare(device, policy)
    device.free = (
        memory.cache_bytes(CONFIG, names, 4, 100, 4)
        + memory.step_bytes(CONFIG, names, 4, 100)
        + memory.working_bytes(CONFIG, names, 400)
    )
    prepared.new_cache(4, 100)
    with pytest.raises(
        Unsupported,
        match=r"^cache: .*B for 4 rows of 101 positions do not fit into .*; 100 positions for 4 rows or 3 rows of 101 positions fit$",
    ):
        prepared.new_cache(4, 101)
    with pytest.raises(Unsupported, match=r"5 rows of 100 positions do not fit .* or 4 rows of 100 positions fit$"):
        prepared.new_cache(5, 100)
    device.free = 10
    with pytest.raises(Unsupported, match=r"free on emulated sm_90; free memory there, or use a narrower dtype$"):
        prepared.new_cache(1, 1)


def test_a_whole_generation_is_refused_before_anything_is_allocated() -> None:
    from bloomref.runtime.engine import Engine, EngineCache

    engine = Engine.__new__(Engine)
    engine.prepared = prepare(Small(free=500_000))
    engine.runs_on = CupyBackend("cupy", lambda: Small())
    assert isinstance(engine.new_cache(1, 10), EngineCache)
    with pytest.raises(Unsupported, match="positions for 8 rows"):
        engine.new_cache(8, 2048)


class Counting(EmulatedDevice):
    """Counts the bytes that are allocated, and their peak."""

    def __init__(self) -> None:
        super().__init__(seed=0)
        self.held = self.peak = 0

    def empty(self, shape: Any, dtype: Any) -> Any:
        array = super().empty(shape, dtype)
        self.held += array.nbytes
        self.peak = max(self.peak, self.held)
        weakref.finalize(array.base, self._drop, array.nbytes)  # views keep the base alive, not the array
        return array

    def _drop(self, nbytes: int) -> None:
        self.held -= nbytes


@pytest.mark.usefixtures("emulator")
@pytest.mark.parametrize("policy", ["float64", "float32", "float16"])
@pytest.mark.parametrize(("batch", "time"), [(3, 1), (20, 1), (2, 40)])
def test_a_call_allocates_what_was_estimated(
    monkeypatch: pytest.MonkeyPatch, policy: str, batch: int, time: int
) -> None:
    monkeypatch.setattr(memory, "CHUNK_ROWS", 32)
    device, names = Counting(), POLICIES[policy]
    config = CONFIG.replace(intermediate_dim=192)
    prepared = prepare(device, policy, config)
    assert device.held == pytest.approx(memory.weight_bytes(config, names), rel=1e-3)  # and the slopes
    cache = prepared.new_cache(batch, time)
    before = device.peak = device.held
    assert before == pytest.approx(
        memory.weight_bytes(config, names) + memory.cache_bytes(config, names, batch, time, 4), rel=1e-3
    )
    x = run_blocks(prepared, np.zeros((batch, time), int), cache, Step.at(0, np.ones((batch, time), bool)))
    prepared.logits(prepared.final_norm(x), False)
    need = memory.working_bytes(config, names, batch * time)
    assert 0.4 * need < device.peak - before <= need


@pytest.mark.parametrize("name", ["bloom_560m_multi", "bloom_7b_multi"])
def test_the_estimates_for_real_models_are_those_of_their_dimensions(name: str) -> None:
    """2 bytes per parameter, 4 for the few vectors; 2 L D numbers per cached position."""
    from bloomref.params import count_params
    from bloomref.presets.preset_registry import PRESETS

    config = PRESETS[name].config
    need = CupyBackend("cupy", Small).memory(config, POLICIES["bfloat16"], 1, 2048)
    assert isinstance(need, Memory)
    assert need.weights == pytest.approx(2 * count_params(config), rel=2e-3)
    assert need.cache == pytest.approx(2 * 2 * config.num_layers * config.hidden_dim * 2048, rel=2e-2)
    assert need.working < 0.01 * need.weights


# --- arrays of other libraries -----------------------------------------------------------------------------------


@pytest.mark.usefixtures("emulator")
@pytest.mark.parametrize("policy", ["float64", "float32", "float16"])
def test_hidden_states_are_imported_and_exported_without_a_copy(policy: str) -> None:
    prepared, names = prepare(Small(), policy), POLICIES[policy]
    theirs = np.random.default_rng(0).standard_normal((2, 3, 48)).astype(names.compute_dtype)
    x = prepared.from_dlpack(theirs)
    assert np.shares_memory(x.rows, theirs)
    ours = np.from_dlpack(prepared.final_norm(x))
    assert (ours.shape, ours.dtype) == ((2, 3, 48), names.compute_dtype)
    assert ours.tobytes() == prepared.to_host(prepared.final_norm(prepared.from_host(theirs))).tobytes()
    for last_only in (False, True):
        scores = np.from_dlpack(prepared.scores(x, last_only))
        assert scores.dtype == accumulation_dtype(names.compute_dtype)
        assert scores.tobytes() == prepared.logits(x, last_only).tobytes()


@pytest.mark.parametrize(
    "array",
    [np.zeros((2, 48), np.float32), np.zeros((1, 2, 47), np.float32), np.zeros((1, 2, 48)), np.zeros((1, 2, 96), np.float32)[..., ::2]],
    ids=["no batch", "another width", "another dtype", "strided"],
)  # fmt: skip
def test_an_array_of_another_shape_or_dtype_is_refused(array: Any) -> None:
    with pytest.raises(InvalidInput, match=r"^x: expected a contiguous float32 array of shape \(B, T, 48\), got "):
        prepare(Small()).from_dlpack(array)
