"""Python threads, forks and pickles: the right result or a sentence, never an abort or a hang."""

import contextlib
import copy
import multiprocessing
import pickle
import threading
from pathlib import Path

import pytest

numba = pytest.importorskip("numba", reason="numba is not installed")

from processes import python, source_root  # noqa: E402

from accel.numba_cpu import parallel  # noqa: E402
from bloomref import BloomBackbone, BloomCausalLM  # noqa: E402
from bloomref.errors import Unsupported  # noqa: E402

INPUT = {"token_ids": [[1, 2, 3]]}
WORK = str(Path(__file__).with_name("work_in_processes.py"))


def model(**options: object) -> BloomBackbone:
    return BloomBackbone(10, 1, 2, 8, 16, backend="numba", **options)


def meet(call, patience: float) -> bool:
    """True if two threads are inside of `call` at the same time. The first waits for the other, but not for ever."""
    both, met = threading.Barrier(2), []

    def enter() -> None:
        with contextlib.suppress(threading.BrokenBarrierError):
            both.wait(patience)
            met.append(True)

    threads = [threading.Thread(target=call(enter)) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return bool(met)


@pytest.mark.parametrize(("layer", "several"), [("workqueue", False), (None, False), ("omp", True), ("tbb", True)])
def test_one_thread_at_a_time_where_the_layer_allows_no_more(layer, several, monkeypatch):
    monkeypatch.setattr(parallel, "layer", lambda: layer)
    monkeypatch.setattr(parallel, "_process", parallel._Process())
    parallel.enters_kernels(int)()  # the layer is known after the first call
    assert meet(parallel.enters_kernels, patience=60 if several else 0.05) == several


def test_a_nested_call_does_not_wait_for_itself(monkeypatch):
    monkeypatch.setattr(parallel, "layer", lambda: "workqueue")
    monkeypatch.setattr(parallel, "_process", parallel._Process())
    assert parallel.enters_kernels(parallel.enters_kernels(lambda: 7))() == 7


@pytest.mark.parametrize(("layer", "refused"), [("omp", True), ("tbb", False), ("workqueue", False), (None, False)])
def test_a_forked_child_is_refused_where_it_would_be_ended(layer, refused, monkeypatch):
    monkeypatch.setattr(parallel, "layer", lambda: layer)
    process = parallel._Process()
    held = process.lock
    held.acquire()
    process.after_fork()
    assert process.lock is not held
    monkeypatch.setattr(parallel, "_process", process)
    if refused:
        with pytest.raises(Unsupported, match="spawn"):
            parallel.enters_kernels(int)()
    else:
        assert parallel.enters_kernels(int)() == 0


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float64"])
def test_every_kernel_of_a_model_is_behind_the_door(dtype, monkeypatch):
    orphan = parallel._Process()
    backbone, lm = model(dtype=dtype), BloomCausalLM(model())
    orphan.is_orphan = True
    monkeypatch.setattr(parallel, "_process", orphan)
    for call in (
        lambda: backbone(INPUT),
        lambda: model(dtype=dtype),
        lambda: lm.loss_and_gradients(INPUT),
        lambda: backbone.token_embedding([1]) is None or backbone(INPUT),
    ):
        with pytest.raises(Unsupported, match="spawn"):
            call()


@pytest.mark.parametrize("copied", [copy.copy, copy.deepcopy, lambda x: pickle.loads(pickle.dumps(x))])
@pytest.mark.parametrize("dtype", ["float32", "mixed_bfloat16"])
def test_models_are_copied_and_pickled(copied, dtype):
    backbone = model(dtype=dtype)
    expected = backbone(INPUT).tobytes()
    twin = copied(backbone)
    assert twin.engine.backend == "numba"
    assert twin(INPUT).tobytes() == expected
    backbone.add_adapter()
    assert list(copied(backbone).adapter_set.loaded) == ["default"]


@pytest.mark.slow
@pytest.mark.parametrize("layer", ["omp", "workqueue"])
def test_threads_forks_and_spawned_processes(layer):
    if layer == "omp":
        pytest.importorskip("numba.np.ufunc.omppool", reason="no OpenMP")
    if "fork" not in multiprocessing.get_all_start_methods():
        pytest.skip("no fork")
    done = python(WORK, root=source_root(), NUMBA_THREADING_LAYER=layer)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[0] == layer
    allowed = {"spawn: same", "fork: same", "fork: Unsupported"}
    assert set(done.stdout.splitlines()[1:]) <= allowed
    assert len(done.stdout.splitlines()) == 3
