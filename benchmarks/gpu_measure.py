"""One participant of `python -m benchmarks.gpu --measure`, in a process of its own: prints one line of JSON.

bloomref            `tokens`: steps and the choice of the best token as one CUDA graph, no word from the host between them
bloomref-steps      `step`: the same graph, but the scores go to the host and a token comes back
bloomref-eager      `step` without graphs: the same kernels, launched one by one
transformers        `generate` of Hugging Face's model on torch, as it is
transformers-compiled   the same with a static cache and torch.compile(mode="reduce-overhead"), where that works
cublas              the matrix products of a prompt, alone
copy                a copy within the device's memory, whose rate is the bandwidth of the floor

Each times the second of two equal runs, after a first that compiles; the median of `--runs`. Weights are random.
"""

import argparse
import json
import statistics
from collections.abc import Callable
from time import perf_counter
from typing import Any

import numpy as np

from benchmarks.gpu_checks import SMALL, config_of

PARTICIPANTS = (
    "bloomref",
    "bloomref-steps",
    "bloomref-eager",
    "transformers",
    "transformers-compiled",
    "cublas",
    "copy",
)
COPIED_BYTES = 1 << 32
CHECKED_LAYERS = 2


class Absent(Exception):
    """Why a participant cannot take part."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("participant", choices=PARTICIPANTS)
    parser.add_argument("--backend", default="cupy")
    parser.add_argument("--preset", default="bloom_560m_multi", help=f"whose dimensions to use, or {SMALL}")
    parser.add_argument("--dtype", default="bfloat16", choices=("bfloat16", "float16", "float32"))
    parser.add_argument("--rows", type=int, nargs="+", default=[1])
    parser.add_argument("--prompt", type=int, default=32)
    parser.add_argument("--tokens", type=int, default=64)
    parser.add_argument(
        "--long", type=int, default=2048, help="length of the prompt of which only the reading is timed"
    )
    parser.add_argument("--runs", type=int, default=5)
    arguments = parser.parse_args()
    try:
        found = measure(arguments)
    except Absent as error:
        found = {"absent": str(error)}
    print(json.dumps(found))


def measure(arguments: argparse.Namespace) -> dict[str, Any]:
    name = arguments.participant
    if name == "copy":
        return {"bytes_per_second": copy_rate(arguments)}
    if name == "cublas":
        return {"prefill_seconds": products_seconds(arguments)}
    return bloomref(arguments) if name.startswith("bloomref") else transformers(arguments)


def median_seconds(run: Callable[[], Any], wait: Callable[[], Any], runs: int) -> float:
    """Of one run, after two that do not count; `wait` returns when everything queued is done."""
    seconds = []
    for number in range(runs + 2):
        wait()
        began = perf_counter()
        run()
        wait()
        if number > 1:
            seconds.append(perf_counter() - began)
    return statistics.median(seconds)


# --- bloomref ----------------------------------------------------------------------------------------------------


def bloomref(arguments: argparse.Namespace) -> dict[str, Any]:
    """Seconds of a step for each number of rows, of a long prompt, of loading and the first token; the error of the logits."""
    from bloomref.params import init_params

    config = config_of(arguments.preset)
    error = checked_error(arguments, config)
    params = init_params(config, 0, policy(arguments).variable_dtype)
    began = perf_counter()
    engine = engine_of(arguments, params, config)
    loaded = perf_counter()
    read(engine, 1, arguments.prompt, arguments.prompt)
    first = perf_counter() - loaded
    prompt = min(arguments.long, 64) if arguments.preset == SMALL else arguments.long
    return {
        "logit_error_rms": error,
        "load_seconds": loaded - began,
        "first_token_seconds": first,
        "step_seconds": {rows: steps_seconds(engine, rows, arguments) for rows in arguments.rows},
        "prefill_seconds": median_seconds(lambda: read(engine, 1, prompt, prompt), lambda: None, arguments.runs),
    }


def policy(arguments: argparse.Namespace) -> Any:
    from bloomref.dtypes import dtype_policy

    return dtype_policy(arguments.dtype)


def engine_of(arguments: argparse.Namespace, params: Any, config: Any) -> Any:
    from bloomref.runtime.engine import Engine

    engine = Engine(params, config, policy(arguments), arguments.backend)
    if arguments.participant == "bloomref-eager":
        engine.prepared.graphs = False
    return engine


def ids_of(config: Any, rows: int, length: int) -> Any:
    return np.random.default_rng(1).integers(4, config.vocabulary_size, (rows, length))


def read(engine: Any, rows: int, length: int, capacity: int) -> tuple[Any, Any]:
    """A cache that holds a prompt, and the scores behind it, which are on the host: the device has finished."""
    cache = engine.new_cache(rows, capacity)
    return cache, engine.read(cache, 0, ids_of(engine.config, rows, length))


def steps_seconds(engine: Any, rows: int, arguments: argparse.Namespace) -> float:
    """A token of each row, greedily chosen."""
    from bloomref.errors import Unsupported
    from bloomref.runtime.backend import Choice, step

    prompt, count = arguments.prompt, arguments.tokens
    cache, scores = read(engine, rows, prompt, prompt + count)
    first = scores.argmax(axis=1)

    def on_the_device() -> None:
        facts = step(prompt, np.ones((rows, prompt + 1), bool))
        engine.prepared.tokens(first, cache.blocks, facts, Choice(), count)

    def with_the_host() -> None:
        ids = first
        for t in range(count):
            ids = engine.read(cache, prompt + t, ids[:, None]).argmax(axis=1)

    try:
        if arguments.participant == "bloomref":
            return median_seconds(on_the_device, lambda: None, arguments.runs) / count
    except Unsupported:  # so many rows are not chosen there
        pass
    return median_seconds(with_the_host, lambda: None, arguments.runs) / count


def checked_error(arguments: argparse.Namespace, config: Any) -> float:
    """Of the logits behind a prompt, against the reference in float32, at full width and CHECKED_LAYERS layers."""
    from benchmarks.model import relative_error
    from bloomref.dtypes import dtype_policy
    from bloomref.params import init_params
    from bloomref.runtime.engine import Engine

    few = config.replace(num_layers=min(config.num_layers, CHECKED_LAYERS))
    params = init_params(few, 0, policy(arguments).variable_dtype)
    reference = Engine(params.astype(np.dtype(np.float32)), few, dtype_policy("float32"))
    expected, got = (read(e, 2, 9, 9)[1] for e in (reference, engine_of(arguments, params, few)))
    return relative_error(got, expected)


# --- the others --------------------------------------------------------------------------------------------------


def transformers(arguments: argparse.Namespace) -> dict[str, Any]:
    torch, model = torch_model(arguments)
    options: dict[str, Any] = {"do_sample": False, "pad_token_id": 3}
    if arguments.participant == "transformers-compiled":
        options["cache_implementation"] = "static"
        model.forward = torch.compile(model.forward, mode="reduce-overhead", fullgraph=True)

    def generate(rows: int, count: int) -> None:
        ids = torch.from_numpy(ids_of(config_of(arguments.preset), rows, arguments.prompt)).cuda()
        model.generate(ids, max_new_tokens=count, min_new_tokens=count, **options)

    def of_a_step(rows: int) -> float:
        """The difference of two lengths: reading the prompt cancels."""
        short, long = (
            median_seconds(lambda n=n: generate(rows, n), torch.cuda.synchronize, arguments.runs)
            for n in (1, arguments.tokens + 1)
        )
        return (long - short) / arguments.tokens

    try:
        steps = {rows: of_a_step(rows) for rows in arguments.rows}
    except Exception as error:
        raise Absent(f"{type(error).__name__}: {str(error).splitlines()[0]}") from error
    return {"step_seconds": steps}


def torch_model(arguments: argparse.Namespace) -> tuple[Any, Any]:
    """Random weights of the preset's dimensions, made on the device: nothing depends on what they are."""
    try:
        import torch
        from transformers import BloomConfig, BloomForCausalLM
    except ImportError as error:
        raise Absent(f"{error.name} is not installed") from error
    if not torch.cuda.is_available():
        raise Absent("torch finds no CUDA device")
    config = config_of(arguments.preset)
    theirs = BloomConfig(
        vocab_size=config.vocabulary_size, hidden_size=config.hidden_dim, n_layer=config.num_layers,
        n_head=config.num_heads,
    )  # fmt: skip
    torch.set_default_dtype(getattr(torch, arguments.dtype))
    with torch.device("cuda"):
        return torch, BloomForCausalLM(theirs).eval()


def copy_rate(arguments: argparse.Namespace) -> float:
    """Bytes read and written by a copy within the device's memory, in a second."""
    cupy = device_library(arguments)
    source, target = (cupy.zeros(COPIED_BYTES // 4, cupy.float32) for _ in range(2))
    seconds = median_seconds(lambda: cupy.copyto(target, source), cupy.cuda.Device().synchronize, arguments.runs)
    return 2 * COPIED_BYTES / seconds


def products_seconds(arguments: argparse.Namespace) -> float:
    """The products of a prompt's blocks, one after the other over the same memory, with nothing between them."""
    cupy = device_library(arguments)
    from accel.cupy_gpu.cuda_device import cuda_device

    config, device, dtype = config_of(arguments.preset), cuda_device(0), policy(arguments).compute_dtype
    d, f, wide = config.hidden_dim, config.intermediate_dim, np.dtype(np.float32)
    shapes = [(3 * d, d), (d, d), (f, d), (d, f)]
    operands = [
        (device.zeros((arguments.long, k), dtype), device.zeros((n, k), dtype), device.zeros((arguments.long, n), wide))
        for n, k in shapes
    ]

    def run() -> None:
        for _ in range(config.num_layers):
            for x, weight, out in operands:
                device.matmul(x, weight, out)

    return median_seconds(run, cupy.cuda.Device().synchronize, arguments.runs)


def device_library(arguments: argparse.Namespace) -> Any:
    """CuPy, where the backend is CuPy's."""
    if arguments.backend.partition(":")[0] != "cupy":
        raise Absent(f"{arguments.backend} is no GPU")
    try:
        import cupy

        cupy.cuda.Device().synchronize()
    except Exception as error:
        raise Absent(f"CuPy finds no device: {str(error).splitlines()[0]}") from error
    return cupy


if __name__ == "__main__":
    main()
