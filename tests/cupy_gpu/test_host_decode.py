"""Decoding steps: the bits of the blocks, one capture, persistent buffers. The kernels are emulated.

The emulated device refuses anything but launches in a capture, and its graphs reference arrays weakly, as those of CUDA
do.
"""

import gc
import itertools
from typing import Any

import numpy as np
import pytest
import strategies
from emulated_device import EmulatedDevice
from fake_cupy import FakeCupy, Graph, Stream, install
from host_model import CONFIG, run_blocks

from accel import cupy_gpu
from accel.cupy_gpu import launches, memory, probe
from accel.cupy_gpu.cupy_backend import CupyBackend
from accel.cupy_gpu.prepared import CupyPrepared
from bloomref import BloomBackbone, BloomCausalLM
from bloomref.config import BloomConfig
from bloomref.dtypes import POLICIES
from bloomref.errors import BadWeights, Unsupported
from bloomref.runtime.backend import Choice, Step, SupportsWholeStep
from bloomref.runtime.engine import Engine

CASE = strategies.Float32Case(CONFIG, seed=2, batch=3, time=12, kind="left")
REAL = np.ones(CASE.is_real.shape, bool)

pytestmark = pytest.mark.usefixtures("emulator")


def prepare(policy: str = "float32", device: Any = None, params: Any = CASE.params, config: Any = CONFIG) -> Any:
    device = device or EmulatedDevice(seed=0)
    return CupyBackend("cupy", lambda: device).prepare(params, config, POLICIES[policy])


def blocks(prepared: CupyPrepared, cache: Any, start: int, stop: int, real: Any) -> Any:
    """Return the logits after column stop - 1, computed block by block."""
    x = run_blocks(prepared, CASE.token_ids[:, start:stop], cache, Step.at(start, real[:, :stop]))
    return prepared.logits(prepared.final_norm(x), True)[:, 0]


def steps(prepared: CupyPrepared, cache: Any, start: int, stop: int, real: Any) -> list[bytes]:
    return [
        prepared.step(CASE.token_ids[:, t], cache, Step.at(t, real[:, : t + 1])).tobytes() for t in range(start, stop)
    ]


# --- a step ------------------------------------------------------------------------------------------------------


@pytest.mark.clause("BKD-17")
@pytest.mark.parametrize("real", [REAL, CASE.is_real], ids=["dense", "padded"])
@pytest.mark.parametrize("policy", ["float64", "float32", "bfloat16", "float16"])
def test_a_step_has_the_bits_of_the_blocks(policy: str, real: Any) -> None:
    """This holds at every position, although one graph serves them all."""
    prepared = prepare(policy)
    assert isinstance(prepared, SupportsWholeStep)
    caches = [prepared.new_cache(3, 70) for _ in range(2)]
    for cache in caches:
        blocks(prepared, cache, 0, 4, real)
    expected = [blocks(prepared, caches[0], t, t + 1, real).tobytes() for t in range(4, 12)]
    assert steps(prepared, caches[1], 4, 12, real) == expected
    assert steps(prepared, caches[1], 6, 9, real) == expected[2:5]  # rewound
    for mine, theirs in zip(*(cache.state().layers for cache in reversed(caches)), strict=True):
        assert mine.keys[:, :, :12].tobytes() == theirs.keys[:, :, :12].tobytes()
        assert mine.values[:, :, :12].tobytes() == theirs.values[:, :, :12].tobytes()


def test_one_capture_serves_every_position(monkeypatch: pytest.MonkeyPatch) -> None:
    device, captures = EmulatedDevice(seed=0), []
    capture = device.capture
    monkeypatch.setattr(device, "capture", lambda work: captures.append(len(device.launched)) or capture(work))
    prepared = prepare(device=device)
    cache = prepared.new_cache(3, 70)
    device.launched.clear()
    steps(prepared, cache, 0, 12, REAL)
    each = len(device.launched) // 12
    assert captures == [0]  # before the first step
    assert device.launched == device.launched[:each] * 12
    expected = [
        "embed_norm",
        *["qkv_matvec", "attention_decode", "residual_matvec", "gelu_matvec", "residual_matvec"] * 2,
    ]
    assert [name.split("<")[0] for name in device.launched[:each]] == [*expected, "head_matvec"]


@pytest.mark.parametrize(("policy", "rows"), [("float32", 3), ("bfloat16", 5)], ids=["gemv", "tensor cores"])
def test_each_product_prefetches_the_weights_of_the_next(
    monkeypatch: pytest.MonkeyPatch, policy: str, rows: int
) -> None:
    device, products = EmulatedDevice(seed=0), []
    config = CONFIG.replace(num_heads=2, hidden_dim=16, intermediate_dim=24)

    def launch(one: launches.Launch, *arguments: Any) -> None:
        name = one.kernel.expression.partition("<")[0]
        if name.endswith(("_matvec", "_tensor")):
            weight = arguments[1 if "tensor" in name or "residual" in name else 4]
            products.append((weight, None if "head" in name else arguments[-2:]))

    prepared = prepare(policy, device, strategies.Float32Case(config, seed=2).params, config)
    monkeypatch.setattr(device, "launch", launch)
    monkeypatch.setattr(prepared, "graphs", False)
    prepared.step(np.zeros(rows, int), prepared.new_cache(rows, 4), Step.at(0, np.ones((rows, 1), bool)))
    assert len(products) == 4 * config.num_layers + 1
    for (_, (following, loads)), (weight, _) in itertools.pairwise(products):
        assert following is weight
        assert loads == weight.nbytes // 16


def test_a_graph_lives_as_long_as_its_cache_and_no_longer() -> None:
    prepared = prepare()
    cache = prepared.new_cache(3, 12)
    first = steps(prepared, cache, 0, 6, CASE.is_real)
    gc.collect()
    assert steps(prepared, cache, 0, 6, CASE.is_real) == first
    chosen = cache.select(np.array([0, 1, 2]))
    assert chosen.state().decode_steps == chosen.state().choosing_steps == {}
    replay = next(iter(cache.state().decode_steps.values()))._replay
    del cache
    gc.collect()
    with pytest.raises(AssertionError, match="memory that was freed"):
        replay()


def test_without_graphs_the_same_kernels_run_one_by_one(monkeypatch: pytest.MonkeyPatch) -> None:
    results = []
    for graphs in (True, False):
        monkeypatch.setattr(CupyPrepared, "graphs", graphs)
        device = EmulatedDevice(seed=0)
        prepared = prepare("bfloat16", device)
        monkeypatch.setattr(device, "capture", device.capture if graphs else None)
        results.append((steps(prepared, prepared.new_cache(3, 12), 0, 12, REAL), device.launched))
    assert results[0] == results[1]


def scores_behind_one_token(prepared: CupyPrepared, ids: Any) -> Any:
    return prepared.step(ids, prepared.new_cache(len(ids), 3), Step.at(0, np.ones((len(ids), 1), bool)))


def test_more_rows_than_a_graph_supports_use_cublas() -> None:
    device = EmulatedDevice(seed=0)
    prepared = prepare(device=device)
    ids = np.arange(65) % 40
    scores = scores_behind_one_token(prepared, ids)
    assert scores.shape == (65, 40)
    assert any("bias_gelu" in name for name in device.launched)
    np.testing.assert_allclose(scores[:5], scores_behind_one_token(prepared, ids[:5]), atol=1e-5)


@pytest.mark.parametrize("rows", [17, 33, 64])
def test_a_row_has_the_same_bits_in_a_group_and_alone(rows: int) -> None:
    prepared, ids = prepare(), np.arange(rows) % 40
    scores = scores_behind_one_token(prepared, ids)
    for first in (0, 15, rows - 2):
        alone = scores_behind_one_token(prepared, ids[first : first + 2])
        assert scores[first : first + 2].tobytes() == alone.tobytes()


WHOLE = CONFIG.replace(intermediate_dim=40)
POST_NORM = WHOLE.replace(apply_residual_connection_post_layernorm=True)
MANY = strategies.Float32Case(WHOLE, seed=2, batch=20, time=4, kind="left")
RAGGED = strategies.Float32Case(CONFIG, seed=2, batch=20, time=4, kind="left")
EACH = {"embed_norm", "layer_norm", "attention_decode"}
TENSOR = EACH | {"qkv_tensor", "residual_tensor", "gelu_tensor", "head_tensor"}
MATVEC = EACH | {"qkv_matvec", "residual_matvec", "gelu_matvec", "head_matvec"}


@pytest.mark.clause("BKD-17", "BKD-18")
@pytest.mark.parametrize(
    ("policy", "arch", "config", "kernels"),
    [
        ("bfloat16", 90, WHOLE, TENSOR),
        ("float16", 80, WHOLE, TENSOR),
        ("float16", 75, WHOLE, MATVEC),
        ("float32", 90, WHOLE, MATVEC),
        ("float32", 90, CONFIG, MATVEC),
        ("bfloat16", 90, POST_NORM, MATVEC),
    ],
)
def test_twenty_rows_are_a_graph(policy: str, arch: int, config: BloomConfig, kernels: set[str]) -> None:
    device, case = EmulatedDevice(arch, seed=0), RAGGED if config is CONFIG else MANY
    prepared = prepare(policy, device, case.params, config)
    caches, real = [prepared.new_cache(20, 12) for _ in range(3)], np.ones((20, 12), bool)

    def step_at(t: int) -> Any:
        return Step.at(t, real[:, : t + 1])

    device.launched.clear()
    for t in range(4):
        scores = prepared.step(case.token_ids[:, t], caches[0], step_at(t))
        x = run_blocks(prepared, case.token_ids[:, t : t + 1], caches[1], step_at(t))
        assert prepared.logits(prepared.final_norm(x), True)[:, 0].tobytes() == scores.tobytes()
        prepared.step(case.token_ids[:, t], caches[2], step_at(t))
    assert {name.split("<")[0] for name in device.launched} == kernels
    ids = scores.argmax(1)
    for count in (1, 4):
        tokens = prepared.tokens(ids, caches[2], step_at(4), Choice(), count)
        again, expected = caches[0], []
        for t in range(count):
            expected.append(prepared.step(expected[-1] if expected else ids, again, step_at(4 + t)).argmax(1))
        assert tokens.tolist() == np.stack(expected, 1).tolist()
    assert all(step._replay is not None for step in caches[0].state().decode_steps.values())
    broken = prepare(policy, device, case.params.map(lambda array: array * np.float32(np.inf)), config)
    with pytest.raises(BadWeights, match=r"^logits: expected finite numbers"):
        broken.tokens(ids, broken.new_cache(20, 12), step_at(0), Choice(), 2)


@pytest.mark.parametrize(
    ("batch", "policy", "config"), [(1, "float32", CONFIG), (64, "float32", CONFIG), (40, "float16", WHOLE)]
)
def test_steps_allocate_at_most_what_was_estimated(batch: int, policy: str, config: BloomConfig) -> None:
    device = EmulatedDevice(seed=0)
    held = 0
    empty = device.empty

    def counting(shape: Any, dtype: Any) -> Any:
        nonlocal held
        array = empty(shape, dtype)
        held += array.nbytes
        return array

    device.empty = counting  # type: ignore[method-assign]
    prepared = prepare(policy, device, strategies.Float32Case(config, seed=2).params, config)
    cache, before = prepared.new_cache(batch, 100), held
    step, ids = Step.at(0, np.ones((batch, 1), bool)), np.zeros(batch, int)
    prepared.step(ids, cache, step)
    prepared.tokens(ids, cache, step, Choice(1.0, top_k=64), 2)
    assert 0 < held - before <= memory.step_bytes(config, POLICIES[policy], batch, 100)


# --- tokens chosen on the device ---------------------------------------------------------------------------------


def continued(prepared: CupyPrepared, choice: Choice, cuts: tuple[int, ...], real: Any = REAL) -> Any:
    """Return 6 tokens per row after four columns, chosen in calls of `cuts` tokens each, and the cache."""
    cache, ids, parts = prepared.new_cache(3, 12), CASE.token_ids[:, 4], []
    blocks(prepared, cache, 0, 4, real)
    start = 4
    for count in cuts:
        here = Choice(choice.temperature, choice.top_k, choice.top_p, choice.forbidden, choice.seeds, start - 4)
        known = np.concatenate([real[:, :4], np.ones((3, start - 3), bool)], 1)
        parts.append(prepared.tokens(ids, cache, Step.at(start, known), here, count))
        ids, start = parts[-1][:, -1], start + count
    return np.concatenate(parts, 1), cache


@pytest.mark.clause("BKD-18", "GEN-1")
@pytest.mark.parametrize("real", [REAL, CASE.is_real], ids=["dense", "padded"])
@pytest.mark.parametrize("policy", ["float32", "bfloat16"])
def test_the_best_tokens_are_those_that_the_host_would_choose(policy: str, real: Any) -> None:
    prepared = prepare(policy)
    forbidden = np.arange(40) % 3 == 0
    tokens, _ = continued(prepared, Choice(forbidden=forbidden), (6,), real)
    cache, ids = prepared.new_cache(3, 12), CASE.token_ids[:, 4]
    blocks(prepared, cache, 0, 4, real)
    for t in range(6):
        known = np.concatenate([real[:, :4], np.ones((3, t + 1), bool)], 1)
        scores = prepared.step(ids, cache, Step.at(4 + t, known))
        ids = np.where(forbidden, -np.inf, scores).argmax(1)
        assert tokens[:, t].tolist() == ids.tolist()


CHOICES = {
    "best": Choice(),
    "temperature": Choice(0.7, seeds=np.arange(3)),
    "top-p": Choice(2.0, top_p=0.8, seeds=np.arange(3)),
    "top-k": Choice(2.0, 8, seeds=np.arange(3)),
    "all": Choice(2.0, 20, 0.9, np.arange(40) == 7, np.arange(3)),
}


@pytest.mark.clause("BKD-18")
@pytest.mark.parametrize("name", CHOICES)
def test_tokens_do_not_depend_on_how_many_are_requested_at_once(name: str) -> None:
    prepared = prepare()
    whole, _ = continued(prepared, CHOICES[name], (6,))
    for cuts in ((1, 5), (2, 2, 2)):
        assert continued(prepared, CHOICES[name], cuts)[0].tolist() == whole.tolist()


@pytest.mark.clause("BKD-18")
def test_the_draws_of_a_row_depend_on_its_seed_only() -> None:
    prepared = prepare()
    cache, step, ids = prepared.new_cache(3, 12), Step.at(0, np.ones((3, 1), bool)), np.array([5, 5, 5])
    tokens = prepared.tokens(ids, cache, step, Choice(3.0, seeds=np.array([1, 2, 1])), 8)
    assert tokens[0].tolist() == tokens[2].tolist() != tokens[1].tolist()


def test_choices_that_are_not_supported_and_nan_are_errors() -> None:
    prepared, step = prepare(), Step.at(0, np.ones((2, 1), bool))
    with pytest.raises(Unsupported, match=r"^tokens: .* 1 to 64 rows in 16 or 32 bits, and top_k up to 64$"):
        prepared.tokens(np.array([1, 2]), prepared.new_cache(2, 4), step, Choice(1.0, top_k=65), 1)
    broken = prepare(params=CASE.params.map(lambda array: array * np.float32(np.inf)))
    with pytest.raises(
        BadWeights,
        match=r"^logits: expected finite numbers; the weights hold NaN or overflow in float32; use dtype float64 ",
    ):
        broken.tokens(np.array([1, 2]), broken.new_cache(2, 4), step, Choice(), 2)


# --- the callers -------------------------------------------------------------------------------------------------


def test_the_engine_reads_one_position_by_a_step_and_many_in_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    from bloomref.runtime import engine as module

    engine = Engine(CASE.params, CONFIG, POLICIES["float32"])
    engine.prepared = prepare()
    cache = engine.new_cache(3, 12)
    whole = engine.read(cache, 0, CASE.token_ids, CASE.is_real)
    sizes = []
    run = engine.run
    monkeypatch.setattr(engine, "run", lambda *a: sizes.append(a[2].shape[1]) or run(*a))
    monkeypatch.setattr(module, "READ_ROWS", 15)
    np.testing.assert_allclose(engine.read(cache, 0, CASE.token_ids, CASE.is_real), whole, atol=1e-5)
    assert sizes == [5, 5, 2]
    engine.read(cache, 0, CASE.token_ids[:, :11], CASE.is_real[:, :11])
    del sizes[:]
    np.testing.assert_allclose(engine.read(cache, 11, CASE.token_ids[:, 11:], CASE.is_real[:, 11:]), whole, atol=1e-5)
    assert sizes == []


@pytest.mark.clause("BKD-18", "GEN-5", "GEN-6")
def test_generate_chooses_on_the_device(monkeypatch: pytest.MonkeyPatch) -> None:
    """Greedy tokens are the reference's, rows end separately, a seed repeats, and no logits are copied to the host."""
    lm, expected = (BloomCausalLM(BloomBackbone.from_params(CONFIG, CASE.params, dtype)) for dtype in ("float32", None))
    lm.backbone.engine.prepared = prepare()
    monkeypatch.setattr(CupyPrepared, "step", lambda *_: pytest.fail("the logits of a step were copied to the host"))
    prompts = [[3, 4, 5], [7], [8, 9]]
    free = expected.generate(prompts, max_new_tokens=12, stop_token_ids=None)
    assert lm.generate(prompts, max_new_tokens=12, stop_token_ids=None) == free
    stop = [free[1][4]]
    assert lm.generate(prompts, max_new_tokens=12, stop_token_ids=stop) == expected.generate(
        prompts, max_new_tokens=12, stop_token_ids=stop
    )
    drawn = [lm.generate(prompts, max_new_tokens=9, temperature=3.0, top_p=0.9, seed=seed) for seed in (1, 1, 2)]
    assert drawn[0] == drawn[1] != drawn[2]


def test_the_estimate_of_a_cache_includes_one_chunk_of_a_prompt_not_all_of_it() -> None:
    config = CONFIG.replace(hidden_dim=384, intermediate_dim=400)
    device = EmulatedDevice(seed=0)
    prepared = prepare("float16", device, strategies.Float32Case(config, seed=1).params, config)
    cache, policy = memory.cache_bytes(config, POLICIES["float16"], 2, 9000, 4), POLICIES["float16"]
    step_bytes = memory.step_bytes(config, policy, 2, 9000)
    free = cache + step_bytes + memory.working_bytes(config, policy, memory.CHUNK_ROWS)
    assert free < cache + memory.working_bytes(config, policy, 18000)
    device.free_bytes = lambda: free  # type: ignore[method-assign]
    prepared.new_cache(2, 9000)
    device.free_bytes = lambda: free - 1  # type: ignore[method-assign]
    with pytest.raises(Unsupported, match="do not fit"):
        prepared.new_cache(2, 9000)


@pytest.mark.parametrize("policy", ["float32", "bfloat16"])
def test_cupy_gets_the_calls_of_a_step(monkeypatch: pytest.MonkeyPatch, policy: str) -> None:
    """The fake refuses allocations, copies and cuBLAS during a capture, and captures no default stream."""
    monkeypatch.setattr(probe, "_check_packages", lambda: None)
    fake = install(monkeypatch, FakeCupy())
    replays = []
    launch = Graph.launch
    monkeypatch.setattr(Graph, "launch", lambda self: replays.append(len(self.launches)) or launch(self))
    prepared = cupy_gpu.make_backend("1").prepare(CASE.params, CONFIG, POLICIES[policy])
    cache, emulated = prepared.new_cache(3, 12), prepare(policy)
    logits = steps(prepared, cache, 0, 5, REAL)
    assert logits == steps(emulated, emulated.new_cache(3, 12), 0, 5, REAL)
    assert replays == [12] * 5
    tokens = [
        p.tokens(CASE.token_ids[:, 0], p.new_cache(3, 12), Step.at(0, REAL[:, :1]), CHOICES["all"], 5)
        for p in (prepared, emulated)
    ]
    assert tokens[0].tolist() == tokens[1].tolist()
    assert replays[5:] == [14] * 5
    assert Stream.entered == []
    assert fake.entered == [0]
