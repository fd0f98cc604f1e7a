"""Runs one model in several threads, in a forked and in a spawned process; prints the layer and each outcome."""

import multiprocessing
import threading

import numba
import numpy as np

from bloomref import BloomBackbone
from bloomref.errors import BloomrefError

INPUT = {"token_ids": [[1, 2, 3, 4, 5, 6, 7]] * 3}


def hidden(model: BloomBackbone) -> np.ndarray:
    return model(INPUT)


def outcome(method: str, model: BloomBackbone, expected: np.ndarray) -> str:
    with multiprocessing.get_context(method).Pool(1) as pool:
        try:
            result = pool.apply_async(hidden, (model,)).get(timeout=60)
        except BloomrefError as error:
            return type(error).__name__
    return "same" if np.array_equal(result, expected) else "differs"


def main() -> None:
    model = BloomBackbone(50, 2, 2, 64, 256, backend="numba")
    expected, wrong = hidden(model), []

    def work() -> None:
        wrong.extend(1 for _ in range(20) if not np.array_equal(hidden(model), expected))

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong
    print(numba.threading_layer())
    for method in ("spawn", "fork"):
        print(f"{method}: {outcome(method, model, expected)}")


if __name__ == "__main__":
    main()
