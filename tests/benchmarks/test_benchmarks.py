"""Parts of the benchmark, without peers: tables, plots and figures of given samples."""

import io
import json
import sys
import time

import numpy as np
import pytest
from rich.console import Console
from rich.progress import Progress

from benchmarks import generate as generate_benchmark
from benchmarks import neighbour, run, threads
from benchmarks.children import Child, ChildError
from benchmarks.field import Field
from benchmarks.figures import floors, results
from benchmarks.floors import Memory, product_rate
from benchmarks.kernels import Kernel, measure, table
from benchmarks.machine import without_folders
from benchmarks.model import Sizes, model_config, relative_error, sizes
from benchmarks.plan import Job, Plan
from benchmarks.table import lines, render
from bloomref import BloomBackbone, BloomCausalLM
from bloomref.runtime.engine import Engine

PLAN = Plan(
    preset="bloom_tiny_udhr",
    dtype="bfloat16",
    participants=["numpy", "keras"],
    pythons={},
    prefill=[64],
    decode=[1, 4],
    context=[64, 2048],
    rounds=3,
    starts=1,
)
MODEL = Sizes(layers=2, hidden=4, parameters=1000, head=100)


def sample(prefill, decode):
    return {"prefill": prefill, "decode": decode, "read": 10.0, "product": 100.0}


def report():
    samples = {
        job: {"numba": [sample(0.5, 0.01), sample(0.4, 0.02), sample(9.0, 0.03)], "keras": [sample(1.0, 0.04)]}
        for job in PLAN.jobs()
    }
    states = {"loaded": {"peak_mb": 2000}, "end": {"peak_mb": 3000}}
    start = {"first_token_seconds": [1.0, 3.0, 2.0], "load_seconds": [0.5], **states}
    return {
        "what": PLAN.describe(),
        "machine": {"processor": "a processor"},
        "threads": {"numba": [], "keras": []},
        "absent": {"openvino": "[openvino] not installed"},
        "logit_error_rms": {"numba": 1e-7, "keras": 2e-3},
        "floors": floors(samples),
        "results": results(PLAN, MODEL, samples),
        "starts": {"numba": start},
        "memory": {"numba": states, "keras": {"loaded": {}, "end": {}}},
    }


def test_a_prompt_is_read_once_for_both_measurements():
    assert PLAN.jobs() == [Job(1, 32, True), Job(4, 32, True), Job(1, 64, True), Job(1, 2048, True)]


def test_long_jobs_run_in_every_second_round():
    assert [Job(1, 2048, True).in_round(number) for number in range(6)] == [True, True, False, True, False, True]
    assert all(Job(1, 64, True).in_round(number) for number in range(6))


def test_work_follows_from_the_sizes():
    assert MODEL.step_bytes("bfloat16", 3, 7) == 2 * 1000 + 2 * 2 * 4 * 3 * 7 * 2
    assert MODEL.step_bytes("float32", 1, 0) == 4000
    assert MODEL.step_bytes("float16", 1, 0) == 2000
    one, two = MODEL.prompt_flops(1), MODEL.prompt_flops(2)
    assert one == 2 * (2 * 12 * 16 + 2 * 2 * 4) + 2 * 100
    assert two - one == 2 * (2 * 12 * 16 + 4 * 2 * 4)  # the second position attends to two


def test_sizes_and_cut_of_a_preset():
    config = model_config("bloom_560m_multi")
    assert sizes(config).parameters == 559_214_592
    assert sizes(config).head == 250_880 * 1024
    assert model_config("bloom_560m_multi", 2).num_layers == 2


def test_figures_are_medians_with_their_share_of_the_floor():
    rows = report()["results"]
    decode = next(row for row in rows if row["what"] == "decode" and row["rows"] == 4 and row["participant"] == "numba")
    assert decode["tokens_per_second"] == 4 / 0.02
    assert decode["gb_per_second"] == pytest.approx(MODEL.step_bytes("bfloat16", 4, 40) / 0.02 / 1e9, rel=1e-3)
    assert decode["percent_of_read_floor"] == pytest.approx(10 * decode["gb_per_second"], rel=1e-3)
    prefill = [row for row in rows if row["what"] == "prefill"]
    assert [row["participant"] for row in prefill] == ["numba", "keras"]
    assert prefill[0]["tokens_per_second"] == 64 / 0.5
    assert prefill[0]["percent_of_product_floor"] == pytest.approx(prefill[0]["gflop_per_second"], rel=1e-3)


def test_a_participant_without_samples_has_no_row():
    assert results(PLAN, MODEL, {Job(1, 64, True): {"numpy": []}}) == []
    assert floors({}) == {}


def test_the_table_marks_the_best_and_names_who_is_absent():
    console = Console(width=120, record=True, file=io.StringIO())
    render(report(), console)
    text = console.export_text()
    assert "* 128" in text
    assert "[openvino] not installed" in text
    assert "* 1.0e-07" in text
    assert next(line for line in lines(report()) if "first token, s" in line.title).values == {"numba": 2.0}


def test_json_has_lists_of_numbers_on_one_line():
    text = run.as_json({"seconds": [1.5, 2e-05, -3], "rows": [{"a": []}]})
    assert json.loads(text) == {"seconds": [1.5, 2e-05, -3], "rows": [{"a": []}]}
    assert "[ 1.5, 2e-05, -3 ]" in text


def test_the_plot_is_written(tmp_path):
    pytest.importorskip("matplotlib")
    from benchmarks.plot import draw

    draw([report(), report()], tmp_path / "plot.png")
    assert (tmp_path / "plot.png").stat().st_size > 10_000


def test_floors_are_positive():
    memory = Memory(1 << 20)
    assert memory.read_rate() > 0
    assert product_rate(np.ones((8, 8), np.float32)) > 0


def test_folders_of_the_machine_are_left_out():
    assert without_folders("keras=/some/where/bin/python") == "keras=python"
    assert without_folders("benchmarks/results/cpu.json and/or 3 / 4") == "benchmarks/results/cpu.json and/or 3 / 4"


def test_relative_error():
    assert relative_error(np.array([3.0, 5.0]), np.array([3.0, 4.0])) == pytest.approx(0.2)


@pytest.fixture
def field(tmp_path):
    with Progress(disable=True) as progress:
        found = Field(PLAN, tmp_path, progress)
        yield found
        found.close()


def test_a_participant_that_fails_leaves_with_its_reason(field):
    def act(name):
        if name == "keras":
            raise ChildError("ended with code 1: no such thing")
        return 1

    assert field.each("loading", act) == {"numpy": 1}
    assert field.names == ["numpy"]
    assert field.absent == {"keras": "ended with code 1: no such thing"}


def test_the_reference_is_absent_in_bfloat16(field):
    pytest.importorskip("threadpoolctl")
    assert "no contestant" in field.once("probe", "numpy")["reason"]


def test_a_child_that_dies_says_its_last_words(tmp_path):
    child = Child("benchmarks.no_such_module", python=sys.executable, log=tmp_path / "log")
    with pytest.raises(ChildError, match=r"code 1: python.*No module named benchmarks\.no_such_module"):
        child.ask(what="anything")
    child.close()


def test_an_interpreter_that_is_not_there_is_refused():
    with pytest.raises(Exception, match="an interpreter, got keras=/nowhere"):
        run._interpreter("keras=/nowhere")
    assert run._interpreter(f"keras={sys.executable}") == ("keras", sys.executable)


def test_kernels_of_a_block_are_timed_with_their_floor():
    """The floor is the arithmetic at the best rate: the best kernel is on it, one without arithmetic has none."""
    calls = []
    kernels = [
        Kernel("fast", lambda: calls.append("fast"), 10**9),
        Kernel("slow", lambda: time.sleep(0.01), 10**9),
        Kernel("copy", lambda: calls.append("copy"), times=2),
    ]
    fast, slow, copy = measure(kernels, 3)
    assert calls == ["fast", "copy"] * 4  # in turns, the first untimed
    assert fast["milliseconds"] == pytest.approx(fast["floor_milliseconds"])
    assert slow["milliseconds"] >= 10 > slow["floor_milliseconds"]
    assert copy["floor_milliseconds"] == copy["gflop_per_second"] == 0
    shown = io.StringIO()
    Console(file=shown, width=100).print(table("a block", [fast, slow, copy]))
    assert all(word in shown.getvalue() for word in ("a block", "slow", "copy", "all"))


def test_generate_is_timed_next_to_the_engine_alone(monkeypatch):
    """Both run the same number of passes through the model, over the same number of positions."""
    passes = []
    read = Engine.read
    monkeypatch.setattr(
        Engine, "read", lambda self, c, at, ids, *rest: passes.append((at, ids.shape)) or read(self, c, at, ids, *rest)
    )
    model = BloomCausalLM(BloomBackbone(50, 1, 2, 8, 16))
    ids = np.ones((2, 5), np.int64)
    generate_benchmark.engine_alone(model.backbone.engine, ids, 4)
    alone, passes[:] = list(passes), []
    assert [len(row) for row in generate_benchmark.generate(model, ids, 4, {})] == [4, 4]
    assert passes == alone == [(0, (2, 5)), (5, (2, 1)), (6, (2, 1)), (7, (2, 1))]


def test_generate_has_a_figure_of_each_line():
    pytest.importorskip("threadpoolctl")
    plan = generate_benchmark.Plan(
        preset="bloom_tiny_udhr", layers=1, dtype="float32", backend="numpy", rows=[1, 2], tokens=2, rounds=1
    )
    report = json.loads(json.dumps(generate_benchmark.measure(plan)))
    lines = 2 + len(generate_benchmark.OPTIONS)
    assert [result["rows"] for result in report["results"]] == [1] * lines + [2] * lines
    assert report["machine"]["load_average"]
    shares = {
        result["line"]: (result["percent_of_engine"], result["percent_of_greedy"]) for result in report["results"]
    }
    assert (shares["engine alone"][0], shares["greedy"][1]) == (100, 100)
    assert all(len(result["seconds"]) == 1 for result in report["results"])
    shown = io.StringIO()
    Console(file=shown, width=120).print(generate_benchmark.table(report))
    assert all(name in shown.getvalue() for name in generate_benchmark.OPTIONS)


# --- threads and neighbours ----------------------------------------------------------------------------------------


def test_busy_processes_run_within_the_context_only():
    with neighbour.busy(2) as processes:
        assert [process.poll() for process in processes] == [None, None]
    assert all(process.poll() is not None for process in processes)


def test_what_a_model_keeps_is_the_ratio_of_the_medians():
    rates = {"a": {"alone": [100.0, 90.0, 500.0], "beside": [39.0, 39.0, 90.0]}, "b": {"alone": [5.0], "beside": [4.0]}}
    a, b = neighbour.figures("numba", rates)
    assert (a["alone"], a["beside"], a["percent"], a["reaches_goal"]) == (100, 39, 39, False)
    assert (b["percent"], b["reaches_goal"]) == (80, True)
    shown = io.StringIO()
    report = {"machine": {"load_average": [0.1]}, "neighbours": 2, "results": [a, b]}
    Console(file=shown, width=120).print(neighbour.table(report))
    assert all(word in shown.getvalue() for word in ("39 % (goal 40 %)", "80 %", "2 busy processes"))


def test_one_thread_and_all_are_timed_for_the_same_call():
    pytest.importorskip("numba")
    row = threads.measure(32, 2, "float32", 1)
    assert (row["width"], row["rows"], row["shared"]) == (32, 2, False)
    assert min(row["one"], row["all"]) > 0
    shown = io.StringIO()
    Console(file=shown, width=120).print(threads.table("MLP", [row]))
    assert "one thread, ms" in shown.getvalue()
