"""The properties of backends on narrower instruction sets, and without compilation."""

import os

import pytest

pytest.importorskip("numba", reason="numba is not installed")

from processes import ROOT, copy_packages, python, source_root

PARITY = str(ROOT / "tests/backend/test_every_backend.py")


def parity(chosen: str, *arguments: str, **environment: str) -> None:
    result = python("-m", "pytest", PARITY, "-q", "-k", f"numba and ({chosen})", "-p", "no:cacheprovider", *arguments,
                    root=source_root(), **environment)  # fmt: skip
    assert result.returncode == 0, result.stdout[-3000:] + result.stderr[-1000:]
    assert " passed" in result.stdout


@pytest.mark.slow
@pytest.mark.parametrize("isa", ["generic", "avx512"])
def test_other_instruction_sets(isa):
    """`generic` uses no intrinsic of one processor; `avx512` has wide tiles but no product of bfloat16 pairs."""
    from accel.numba_cpu.isa import ISA

    if not ISA.startswith(isa) and isa != "generic":
        pytest.skip(f"this processor has no {isa}")
    parity("test_property and not many_cases and (blocks or pieces or rows)", BLOOMREF_NUMBA_ISA=isa)


@pytest.mark.slow
def test_kernels_on_other_instruction_sets():
    result = python("-m", "pytest", str(ROOT / "tests/numba_cpu"), "-q", "-m", "not slow", "-p", "no:cacheprovider",
                    root=source_root(), BLOOMREF_NUMBA_ISA="generic")  # fmt: skip
    assert result.returncode == 0, result.stdout[-3000:]


@pytest.mark.slow
def test_interpreted():
    """Without the compiler every index is checked. Python warns where the kernels overflow on purpose."""
    parity("test_a_small_case", "-W", "ignore::RuntimeWarning", NUMBA_DISABLE_JIT="1")


@pytest.mark.slow
def test_an_index_out_of_bounds_is_detected_when_interpreted(tmp_path):
    """Compiled code has no bounds checks: the same mistake would pass in silence."""
    root = copy_packages(tmp_path)
    source = root / "accel/numba_cpu/attention.py"
    right = "range(items * t // threads, items * (t + 1) // threads)"
    text = source.read_text("utf-8")
    assert text.count(right) == 1
    source.write_text(text.replace(right, right.replace("(t + 1) // threads", "(t + 1) // threads + 1")), "utf-8")
    result = python("-m", "pytest", PARITY, "-q", "-x", "-k", "numba and float32 and test_a_small_case",
                    "-W", "ignore::RuntimeWarning", "-p", "no:cacheprovider",
                    root=root, NUMBA_DISABLE_JIT="1")  # fmt: skip
    assert result.returncode == 1
    assert "IndexError" in result.stdout


def test_an_unknown_instruction_set_is_refused():
    result = python(
        "-c",
        "from bloomref.runtime import registry as r; r.load('numba')",
        root=source_root(),
        BLOOMREF_NUMBA_ISA="sse9",
    )
    assert result.returncode
    assert "BLOOMREF_NUMBA_ISA: expected one of" in result.stderr
    assert "sse9" not in os.environ.values()
