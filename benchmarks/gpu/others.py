"""Participants of `python -m benchmarks.gpu --measure` to compare with: the hardware's limits, and transformers."""

from typing import Any

import numpy as np

from benchmarks.gpu.job import CHECKED_PROMPT, Absent, Figures, Job, close_enough, ids_of, median_seconds
from benchmarks.model import relative_error
from bloomref.dtypes import accumulation_dtype
from bloomref.params import count_params

COPIED_BYTES = 1 << 32
PINNED_BYTES = 1 << 28

# --- limits of the hardware --------------------------------------------------------------------------------------


def copy(job: Job, _: str) -> Figures:
    """Participant: bytes per second, read and written, of a copy within device memory: the bandwidth of the floor."""
    cupy = device_library(job)
    source = cupy.arange(COPIED_BYTES // 4, dtype=np.uint32)
    target = cupy.zeros_like(source)
    seconds = median_seconds(lambda: cupy.copyto(target, source), cupy.cuda.Device().synchronize, job.runs)
    del source, target
    cupy.get_default_memory_pool().free_all_blocks()
    yield {"bytes_per_second": 2 * COPIED_BYTES / seconds}


def host_copy(job: Job, _: str) -> Figures:
    """Participant: bytes per second from pinned host memory, for as many bytes as the weights have."""
    device, size = job.device, count_params(job.config) * job.policy.compute_dtype.itemsize
    source = device.pinned(min(PINNED_BYTES, size))
    target = device.empty(source.shape, source.dtype)
    chunks = -(-size // len(source))

    def run() -> None:
        waits = [device.send(source, target) for _ in range(chunks)]
        for wait in waits:
            wait()

    yield {"bytes_per_second": chunks * len(source) / median_seconds(run, lambda: None, job.runs)}


def cublas(job: Job, _: str) -> Figures:
    """Participant: time of the matrix products of a prompt, one after the other.

    Every layer has the same random operands.
    """
    device, dtype = job.device, job.policy.compute_dtype
    d, f, wide = job.config.hidden_dim, job.config.intermediate_dim, accumulation_dtype(dtype)

    def random(n: int, k: int) -> Any:
        start = (n + k) % (len(job.pool) - n * k + 1)
        return device.upload(job.pool[start : start + n * k].reshape(n, k).astype(dtype))

    operands = [
        (random(job.long, k), random(n, k), device.zeros((job.long, n), wide))
        for n, k in ((3 * d, d), (d, d), (f, d), (d, f))
    ]

    def run() -> None:
        for _ in range(job.config.num_layers):
            for x, weight, out in operands:
                device.matmul(x, weight, out)

    last = operands[-1][-1]
    yield {"prefill_seconds": median_seconds(run, lambda: device.download(last[:1]), job.runs)}


def device_library(job: Job) -> Any:
    """Return CuPy.

    Raises:
        Absent: The backend is not CuPy's, or CuPy finds no device.
    """
    if job.backend.partition(":")[0] != "cupy":
        raise Absent(f"{job.backend} is no GPU")
    try:
        import cupy

        cupy.cuda.Device().synchronize()
    except Exception as error:
        raise Absent(f"CuPy finds no device: {str(error).splitlines()[0]}") from error
    return cupy


# --- transformers ------------------------------------------------------------------------------------------------


def transformers(job: Job, name: str) -> Figures:
    """Participant: `generate`, eager or compiled.

    Compiled, it has a static cache and CUDA graphs of the steps, not of the prompt.

    The compiled mode is measured for the first number of rows only, because it compiles anew for each.
    """
    torch, model = torch_model(job, job.few, job.few_params)
    yield close_enough(_error(job, torch, model))
    torch, model = torch_model(job, job.config, job.params)
    options: dict[str, Any] = {"do_sample": False, "pad_token_id": 3}
    is_compiled = name == "transformers-compiled"
    if is_compiled:
        options |= {"cache_implementation": "static", "compile_config": _compile_config(job)}
    for rows in job.rows[:1] if is_compiled else job.rows:
        yield {"step_seconds": {str(rows): _step_seconds(job, torch, model, rows, options)}}
        if is_compiled and not torch._dynamo.utils.counters["stats"]["unique_graphs"]:
            raise Absent("generate has compiled nothing: these are eager steps")


def torch_model(job: Job, config: Any, params: Any) -> tuple[Any, Any]:
    """Return torch and transformers' model with the same weights, on the device.

    Raises:
        Absent: A package or the device is missing.
    """
    try:
        import torch
        from transformers import BloomConfig, BloomForCausalLM
    except ImportError as error:
        raise Absent(f"{error.name} is not installed") from error
    if job.torch == "cuda" and not torch.cuda.is_available():
        raise Absent("torch finds no CUDA device")
    theirs = BloomConfig(
        vocab_size=config.vocabulary_size, hidden_size=config.hidden_dim, n_layer=config.num_layers,
        n_head=config.num_heads, layer_norm_epsilon=config.layer_norm_epsilon,
    )  # fmt: skip
    before = torch.get_default_dtype()
    torch.set_default_dtype(getattr(torch, job.dtype))
    try:
        with torch.device(job.torch):
            model = BloomForCausalLM(theirs).eval()
    finally:
        torch.set_default_dtype(before)
    state = {f"transformer.{key}": _tensor(torch, array, w.hf_shape(config)) for key, w, array in params.named()}
    model.load_state_dict(state, strict=False)  # the head is tied
    model.generation_config.eos_token_id = None
    return torch, model


def _tensor(torch: Any, array: Any, shape: tuple[int, ...]) -> Any:
    """Return a tensor that shares the array's memory.

    bfloat16 is viewed as integers, because torch does not know NumPy's.
    """
    name = array.dtype.name
    bits = array.view(np.int16) if name == "bfloat16" else array
    return torch.from_numpy(bits.reshape(shape)).view(getattr(torch, name))


def _error(job: Job, torch: Any, model: Any) -> float:
    ids = torch.from_numpy(job.checked_ids[:, :CHECKED_PROMPT]).to(job.torch)
    with torch.no_grad():
        got = model(ids).logits[:, -1].float().cpu().numpy()
    return relative_error(got, job.expected[0])


def _compile_config(job: Job) -> Any:
    from transformers import CompileConfig

    config = CompileConfig(dynamic=False, mode="reduce-overhead")
    if job.torch != "cuda":
        config._compile_all_devices = True
    return config


def _step_seconds(job: Job, torch: Any, model: Any, rows: int, options: dict[str, Any]) -> float:
    """Return the time of a step, from two runs of different lengths, so that the time of the prompt cancels."""
    ids = torch.from_numpy(ids_of(job.config, rows, job.prompt)).to(job.torch)
    wait = torch.cuda.synchronize if job.torch == "cuda" else lambda: None

    def seconds(count: int) -> float:
        return median_seconds(lambda: model.generate(ids, max_new_tokens=count, **options), wait, job.runs)

    try:
        return (seconds(job.tokens + 1) - seconds(1)) / job.tokens
    except Exception as error:
        raise Absent(f"{type(error).__name__}: {(str(error).splitlines() or [''])[0]}") from error
