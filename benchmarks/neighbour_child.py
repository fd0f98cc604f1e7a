"""One backend of `benchmarks.neighbour`: `python -m benchmarks.neighbour_child BACKEND`, a request a line."""

import sys
from time import perf_counter
from typing import Any

from benchmarks.children import serve

MODELS = {"bloom_tiny_udhr": 256, "width of bloom-560m, 4 layers": 24}
"""Name of a model -> new tokens of a run."""
PROMPT = [[5, 6, 7, 8, 9, 10, 11, 12]]


def main() -> None:
    models = dict(zip(MODELS, _models(sys.argv[1]), strict=True))
    for model in models.values():
        _generate(model, 8)  # compiles and warms up

    def answer(request: dict[str, Any]) -> dict[str, Any]:
        tokens = MODELS[request["model"]]
        began = perf_counter()
        _generate(models[request["model"]], tokens)
        return {"tokens_per_second": tokens / (perf_counter() - began)}

    serve(answer)


def _models(backend: str) -> tuple[Any, Any]:
    from bloomref import BloomBackbone, BloomCausalLM

    wide = BloomBackbone(32768, 4, 16, 1024, 4096, backend=backend)
    return BloomCausalLM.from_preset("bloom_tiny_udhr", backend=backend), BloomCausalLM(wide)


def _generate(model: Any, tokens: int) -> None:
    """Exactly so many new tokens: stop tokens are disabled."""
    model.generate(PROMPT, stop_token_ids=None, strip_prompt=True, max_new_tokens=tokens)


if __name__ == "__main__":
    main()
