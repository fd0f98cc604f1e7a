"""`python -m benchmarks.gpu --measure`: its participants on the emulated backend. The times mean nothing."""

import json
import sys
from functools import cache
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from fake_cupy import Driver, FakeCupy, install

from accel.cupy_gpu import driver, probe
from benchmarks.gpu import __main__ as gpu
from benchmarks.gpu import checks, figures, job, kernels, measure, others, ours
from benchmarks.gpu.job import Absent, Job, close_enough, median_seconds
from benchmarks.gpu.paper import Chip, launched
from benchmarks.gpu.weights import PERIOD, pool_of, pooled_params
from bloomref.config import BloomConfig
from bloomref.dtypes import floating_dtype
from bloomref.params import count_params
from bloomref.runtime import registry
from bloomref.runtime.engine import Engine

OURS = ("bloomref", "bloomref-late", "bloomref-steps", "bloomref-eager")


def job_of(backend: str, **changed: Any) -> Job:
    small: dict[str, Any] = {"rows": (1, 2), "prompt": 4, "tokens": 2, "long": 20, "context": 12, "runs": 1}
    return Job(backend, checks.SMALL, **{**small, **changed})


def figures_of(participant: Any, of: Job, name: str = "") -> dict[str, Any]:
    measured: dict[str, Any] = {}
    for some in participant(of, name):
        measured |= some
    return measured


# --- the whole command -------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_a_measurement_runs_from_end_to_end(
    emulated_backend: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Every process starts and reports, participants that need a GPU are absent, and a second run does nothing."""
    report = tmp_path / "report.json"
    words = f"gpu --measure --backend {emulated_backend} --presets small --rows 1 2 --tokens 2 --runs 1 --prompt 4 --long 20"
    monkeypatch.setattr(sys, "argv", [*words.split(), "--context", "12", "--torch", "no", "--output", str(report)])
    gpu.main()
    report_before = json.loads(report.read_text("utf-8"))
    answers = report_before["measured"][0]["participants"]
    assert set(answers) == set(figures.NAMES)
    assert all(answer["done"] for answer in answers.values())
    for name in OURS:
        assert answers[name].get("logit_error_rms", 1.0) < 0.05, answers[name]
        assert set(answers[name]["step_seconds"]) == {"1", "2"}
    assert answers["copy"]["absent"] == f"{emulated_backend} is no GPU"
    assert set(answers["kernels"]["kernels"]) == {"1", "2"}
    output = capsys.readouterr()
    assert f"absent: small, copy: {emulated_backend} is no GPU" in output.out
    assert "small, start: first_token_seconds" in output.err
    monkeypatch.setattr(figures, "ask", lambda *_: pytest.fail("asked again"))
    gpu.main()
    assert "11 participants are finished" in capsys.readouterr().err
    assert json.loads(report.read_text("utf-8"))["measured"] == report_before["measured"]


def test_nothing_is_measured_without_a_gpu(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(gpu, "no_device", lambda _: "no NVIDIA driver")
    monkeypatch.setattr(sys, "argv", ["gpu", "--measure"])
    with pytest.raises(SystemExit) as ended:
        gpu.main()
    assert ended.value.code == 2
    assert "device: none (no NVIDIA driver)" in capsys.readouterr().out


def test_a_process_reports_each_figure_and_why_a_participant_is_absent(monkeypatch: pytest.MonkeyPatch) -> None:
    def participant(_job: Job, _name: str) -> Any:
        yield {"step_seconds": {"1": 0.5}}
        raise Absent("no reason")

    messages: list[Any] = []
    monkeypatch.setitem(measure.PARTICIPANTS, "copy", participant)
    measure.answer(job_of("none"), "copy", messages.append)
    assert [message["figures"] for message in messages] == [
        {"step_seconds": {"1": 0.5}}, {"absent": "no reason"}, {"done": True},
    ]  # fmt: skip


@pytest.mark.parametrize("name", ["host-copy", "cublas", *OURS, "start", "kernels"])
def test_participants_run_on_a_fake_of_cupy(
    emulator: type,  # noqa: ARG001
    monkeypatch: pytest.MonkeyPatch,
    name: str,
) -> None:
    """The device is a CudaDevice, whose streams, graphs and copies run on the CPU."""
    monkeypatch.setattr(probe, "_check_packages", lambda: None)
    monkeypatch.setattr(registry, "load", cache(registry.load.__wrapped__))
    library = Driver()
    monkeypatch.setattr(driver, "library", lambda: library)
    install(monkeypatch, FakeCupy())
    assert figures_of(measure.PARTICIPANTS[name], job_of("cupy", rows=(2,)), name)
    assert "CudaDevice" in type(job_of("cupy").device).__name__


# --- participants that run bloomref ------------------------------------------------------------------------------


def test_wrong_logits_are_not_timed(emulated_backend: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The logits are wrong for the second number of rows only, and only in a step that is replayed."""
    right = Engine.read

    def wrong(engine: Engine, cache: Any, start: int, ids: Any) -> Any:
        scores = right(engine, cache, start, ids)
        is_broken = engine.backend == emulated_backend and len(ids) == 2 and start == job.CHECKED_PROMPT + 2
        return -scores if is_broken else scores

    monkeypatch.setattr(Engine, "read", wrong)
    with pytest.raises(Absent, match=r"logits off by .*%"):
        figures_of(ours.bloomref, job_of(emulated_backend), "bloomref-steps")


def test_tokens_that_the_host_would_not_choose_are_not_timed(
    emulated_backend: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ours, "chosen", lambda *_: np.full((1, 6), -1))
    with pytest.raises(Absent, match="1 rows: the host chooses other tokens"):
        figures_of(ours.bloomref, job_of(emulated_backend), "bloomref")


def test_each_participant_runs_its_kind_of_step(emulated_backend: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """There are tokens chosen on the device, with and without early starts, graphs of steps, and single launches."""
    monkeypatch.setattr(ours, "_error", lambda _: 0.0)
    one, steps = job_of(emulated_backend, rows=(2,)), []
    prepared = one.engine.prepared
    for name in ("tokens", "step"):
        right = getattr(prepared, name)

        def recorded(*arguments: Any, name: str = name, right: Any = right) -> Any:
            steps.append((name, prepared.graphs, prepared.device.starts_early))
            return right(*arguments)

        monkeypatch.setattr(prepared, name, recorded)
    kinds = [("tokens", True, True), ("tokens", True, False), ("step", True, True), ("step", False, True)]
    for name, expected in zip(OURS, kinds, strict=True):
        steps.clear()
        measured = figures_of(ours.bloomref, one, name)
        assert set(steps) == {expected}
        assert np.isfinite(measured["step_seconds"]["2"])  # a difference of two times
        assert ("prefill_seconds" in measured) == (name == "bloomref")
    prepared.device.starts_early = False
    with pytest.raises(Absent, match="no programmatic dependent launch"):
        figures_of(ours.bloomref, one, "bloomref-late")


def test_a_start_reports_how_many_kernels_were_compiled(
    emulated_backend: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("CUPY_CACHE_DIR", str(tmp_path))
    right = Engine.read

    def read(*arguments: Any) -> Any:
        (tmp_path / "a kernel.cubin").touch()
        return right(*arguments)

    monkeypatch.setattr(Engine, "read", read)
    for expected in (1, 0):
        measured = figures_of(ours.start, job_of(emulated_backend))
        assert measured["first_token_compiled"] == expected
        assert measured["weight_bytes"] == 2 * count_params(checks.config_of(checks.SMALL))
        assert min(measured["load_seconds"], measured["first_token_seconds"]) > 0


def test_every_kernel_of_a_step_is_timed(emulated_backend: str) -> None:
    """Counts and bytes are plausible, so no launch is recorded twice or left out."""
    measured = figures_of(kernels.kernels, job_of(emulated_backend, rows=(2,)))
    timed = [kernels.Timed(**row) for row in measured["kernels"]["2"]]
    names = ["embed_norm", "qkv_matvec", "attention_decode", "residual_matvec", "gelu_matvec", "residual_matvec"]
    assert [one.kernel for one in timed] == [*names, "head_matvec", "choose_best"]
    assert [one.times for one in timed] == [1, 2, 2, 2, 2, 2, 1, 1]
    weights = 2 * count_params(checks.config_of(checks.SMALL))
    assert weights < sum(one.times * one.bytes for one in timed) < 1.5 * weights
    assert all(one.seconds > 0 and one.in_cache for one in timed)
    assert measured["kernels_together"]["2"] > 0


def test_bytes_are_those_of_the_step_on_paper(emulated_backend: str, monkeypatch: pytest.MonkeyPatch) -> None:
    one = job_of(emulated_backend, rows=(2,))
    measured = figures_of(kernels.kernels, one)["kernels"]["2"]
    monkeypatch.setattr("benchmarks.gpu.paper.model_config", lambda _: one.config)
    paper = launched("", 2, one.context, one.dtype, Chip(sms=one.device.sms))
    assert [row["bytes"] for row in measured] == [size for _, size in dict.fromkeys(paper)]


# --- participants that bloomref is compared with -----------------------------------------------------------------


def test_the_copy_counts_bytes_read_and_written(monkeypatch: pytest.MonkeyPatch) -> None:
    copied: list[Any] = []

    def copyto(target: Any, source: Any) -> None:
        np.copyto(target, source)
        copied.append((target, source))

    cupy = SimpleNamespace(
        arange=np.arange, zeros_like=np.zeros_like, copyto=copyto,
        cuda=SimpleNamespace(Device=lambda: SimpleNamespace(synchronize=lambda: None)),
        get_default_memory_pool=lambda: SimpleNamespace(free_all_blocks=lambda: None),
    )  # fmt: skip
    monkeypatch.setattr(others, "device_library", lambda _: cupy)
    monkeypatch.setattr(others, "COPIED_BYTES", 4000)
    monkeypatch.setattr(others, "median_seconds", lambda run, *_: run() or 2.0)
    assert figures_of(others.copy, job_of("cupy")) == {"bytes_per_second": 4000.0}
    (target, source), *_ = copied
    assert target.nbytes == 4000
    assert np.array_equal(target, source)
    assert len(set(source.tolist())) > 900


def test_the_copy_from_the_host_has_the_size_of_the_weights(
    emulated_backend: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    one, sent = job_of(emulated_backend), []
    monkeypatch.setattr(
        one.device, "send", lambda source, target: sent.append((source.nbytes, target.nbytes)) or (lambda: None)
    )
    monkeypatch.setattr(others, "PINNED_BYTES", 100_000)
    monkeypatch.setattr(others, "median_seconds", lambda run, *_: run() or 2.0)
    weights = 2 * count_params(one.config)
    rate = figures_of(others.host_copy, one)["bytes_per_second"]
    assert set(sent) == {(100_000, 100_000)}
    assert weights <= 2 * rate == 100_000 * len(sent) < weights + 100_000


def test_the_products_have_random_operands_and_the_operations_of_a_prompt(
    emulated_backend: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """There are four products per layer."""
    one, products = job_of(emulated_backend), []
    monkeypatch.setattr(one.device, "matmul", lambda x, weight, out: products.append((x, weight, out)))
    assert figures_of(others.cublas, one)["prefill_seconds"] > 0
    d, f = one.config.hidden_dim, one.config.intermediate_dim
    runs = one.runs + 2
    assert sum(x.size * len(weight) for x, weight, _ in products) == runs * one.config.num_layers * 20 * (
        4 * d * d + 2 * d * f
    )
    for operand in (array for x, weight, _ in products for array in (x, weight)):
        assert 0.5 < np.std(operand.astype(np.float32)) / one.config.initializer_range < 2


def test_transformers_has_the_same_weights(monkeypatch: pytest.MonkeyPatch) -> None:
    torch = pytest.importorskip("torch")
    pytest.importorskip("transformers")
    one = job_of("numpy", torch="cpu")
    measured = figures_of(others.transformers, one, "transformers")
    assert torch.get_default_dtype() is torch.float32  # unchanged
    assert measured["logit_error_rms"] < 0.02
    assert np.isfinite(measured["step_seconds"]["2"])  # a difference of two times
    monkeypatch.setattr(others, "_tensor", lambda torch, _, shape: torch.zeros(shape))
    with pytest.raises(Absent, match="logits off by"):
        figures_of(others.transformers, one, "transformers")


@pytest.mark.slow
@pytest.mark.filterwarnings("default")
def test_transformers_is_absent_if_nothing_was_compiled(monkeypatch: pytest.MonkeyPatch) -> None:
    torch = pytest.importorskip("torch")
    pytest.importorskip("transformers")
    one = job_of("numpy", torch="cpu")
    measured = figures_of(others.transformers, one, "transformers-compiled")
    assert set(measured["step_seconds"]) == {"1"}
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    monkeypatch.setattr(others, "_compile_config", lambda _: None)
    with pytest.raises(Absent, match="generate has compiled nothing"):
        figures_of(others.transformers, one, "transformers-compiled")


# --- weights and times -------------------------------------------------------------------------------------------


def test_weights_are_random_and_all_different() -> None:
    config = BloomConfig(vocabulary_size=5000, num_layers=3, num_heads=4, hidden_dim=256, intermediate_dim=1024)
    pool = pool_of(config, floating_dtype("bfloat16"))
    params = pooled_params(config, pool)
    contents = set()
    for key, weight, array in params.named():
        assert array.shape == weight.shape(config)
        is_norm_weight = weight.axes == "D" and not key.endswith("bias")
        wide = np.abs(array.astype(np.float32)) if is_norm_weight else array.astype(np.float32)
        assert wide.mean() == pytest.approx(float(is_norm_weight), abs=0.01)
        assert wide.std() == pytest.approx(config.initializer_range, rel=0.25)
        contents.add(array.tobytes())
    assert len(contents) == sum(1 for _ in params.named())
    rows = params.word_embedding.view(np.uint16)
    assert len(np.unique(rows, axis=0)) == len(rows)


def test_a_pool_repeats_the_numbers_that_were_drawn(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("benchmarks.gpu.weights.PERIOD", 1009)
    monkeypatch.setattr("benchmarks.gpu.weights._SPREAD", 500)
    config = checks.config_of(checks.SMALL)
    pool = pool_of(config, np.dtype(np.float32))
    assert len(pool) == 300 * 64 + 500
    assert np.array_equal(pool, np.resize(pool[:1009], len(pool)))
    assert len(np.unique(pool)) > 1000
    assert all(PERIOD % n for n in range(2, int(PERIOD**0.5) + 1))


def test_greedy_tokens_of_these_weights_differ() -> None:
    """A tied head would find the previous token again, if the final LayerNorm's weights were all positive."""
    engine = checks.random_engine("numpy", checks.config_of(checks.SMALL), "float32")
    assert len(np.unique(checks.by_host(engine, 8))) > 8


def test_a_median_is_of_the_runs_that_fit_into_the_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """The two warm-up runs and `before` are not timed."""
    clock, calls = [0.0], []

    def pass_time(what: str, seconds: float) -> None:
        calls.append(what)
        clock[0] += seconds

    monkeypatch.setattr(job, "perf_counter", lambda: clock[0])
    seconds = median_seconds(
        lambda: pass_time("run", 4.0), lambda: pass_time("wait", 0.0), 9, lambda: pass_time("before", 1.0)
    )
    assert seconds == 4.0
    assert calls.count("run") == 2 + 3  # 12 seconds are enough


@pytest.mark.parametrize("error", [0.2, float("nan")])
def test_a_participant_with_too_large_an_error_is_absent(error: float) -> None:
    with pytest.raises(Absent, match="logits off by"):
        close_enough(error)
