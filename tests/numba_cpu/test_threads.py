"""Threads: no kernel shares the processor with BLAS, and the number of threads can be set."""

import os
from pathlib import Path

import pytest

numba = pytest.importorskip("numba", reason="numba is not installed")

from processes import python, source_root  # noqa: E402

from accel.numba_cpu import isa  # noqa: E402

WATCH = str(Path(__file__).with_name("watch_threads.py"))
COUNT = "from accel.numba_cpu.isa import thread_count; print(thread_count())"
PROCESSORS = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else 1
TWO = pytest.mark.skipif(PROCESSORS < 2, reason="one processor only")


def watch(policy: str, threads: int) -> list[int]:
    result = python(WATCH, policy, root=source_root(), NUMBA_NUM_THREADS=str(threads), OPENBLAS_NUM_THREADS="2")
    assert result.returncode == 0, result.stderr
    return [int(number) for number in result.stdout.split()]


@pytest.mark.slow
@TWO
@pytest.mark.skipif(not Path("/proc/self/schedstat").exists(), reason="reads the time of each thread from /proc")
@pytest.mark.parametrize(
    ("policy", "threads", "runs"),
    [("float32", 2, False), ("bfloat16", 2, False), ("float16", 2, False), ("float64", 1, False), ("float64", 2, True)],
)
def test_blas_does_not_run_at_the_same_time_as_the_kernels(policy, threads, runs):
    """In float64 BLAS computes the products, on as many threads as the kernels; in other dtypes it is never called."""
    of_model, of_product, taken = watch(policy, threads)
    assert taken == threads
    assert of_product > 5_000_000
    assert (of_model > 1_000_000) == runs


@TWO
@pytest.mark.parametrize("threads", ["1", "2"])
def test_the_environment_sets_the_threads(threads):
    assert python("-c", COUNT, root=source_root(), NUMBA_NUM_THREADS=threads).stdout == f"{threads}\n"


@TWO
@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="the system has no affinity")
def test_a_process_bound_to_one_processor_has_one_thread():
    """The affinity counts, not the CPUs of the machine."""
    bound = f"import os; os.sched_setaffinity(0, [min(os.sched_getaffinity(0))]); {COUNT}; print(os.cpu_count())"
    inherited = os.environ.pop("NUMBA_NUM_THREADS", None)
    try:
        result = python("-c", bound, root=source_root())
    finally:
        os.environ |= {} if inherited is None else {"NUMBA_NUM_THREADS": inherited}
    assert result.stdout == f"1\n{os.cpu_count()}\n"


@pytest.mark.parametrize(
    ("quota", "granted"),
    [("100000 100000", 1), ("50000 100000", 1), ("150000 100000", 2), ("max 100000", None), ("", None), (None, None)],
)
def test_a_container_gets_the_threads_of_its_quota(quota, granted, tmp_path, monkeypatch):
    monkeypatch.setattr(isa, "QUOTA", tmp_path / "cpu.max")
    monkeypatch.setattr(isa, "_quota", isa._quota.__wrapped__)
    monkeypatch.setattr(numba, "get_num_threads", lambda: 64)
    if quota is not None:
        isa.QUOTA.write_text(quota, "ascii")
    assert isa.thread_count() == (granted or 64)


@TWO
def test_the_threads_can_be_set():
    before = numba.get_num_threads()
    try:
        numba.set_num_threads(1)
        assert isa.thread_count() == 1
    finally:
        numba.set_num_threads(before)


@pytest.mark.parametrize(("environment", "expected"), [({}, "None 10000"), ({"GOMP_SPINCOUNT": "7"}, "7 7")])
def test_the_backend_sets_how_long_idle_threads_spin(environment, expected, monkeypatch):
    """Unless the user has set it. The import of a kernel module sets nothing."""
    monkeypatch.delenv("GOMP_SPINCOUNT", raising=False)
    code = (
        "import os; from accel.numba_cpu import isa, make_backend; before = os.environ.get('GOMP_SPINCOUNT'); "
        "make_backend(); print(before, os.environ['GOMP_SPINCOUNT'])"
    )
    assert python("-c", code, root=source_root(), **environment).stdout.strip() == expected
