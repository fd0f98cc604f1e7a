"""The command line, judged by output and exit code."""

import json
import subprocess
import sys
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import command_line
import numpy as np
import pytest
import typer

from bloomref import BloomBackbone, BloomCausalLM
from bloomref.cli import app as bloomref_cli
from bloomref.cli.shared import compile_kernels
from bloomref.dtypes import POLICIES, DTypePolicy, dtype_policy
from bloomref.presets.preset_registry import PRESETS
from bloomref.runtime import registry

COMMANDS = ("generate", "score", "presets", "backends", "info", "trace", "download", "convert", "finetune", "conform")


PLUGINS = Path(__file__).parents[2] / "plugins"


def run(*arguments: str, stdin: str = "", search: Path | None = None) -> subprocess.CompletedProcess[str]:
    """Run one command line, where packages may be searched in a folder."""
    with command_line.packages_of(search) if search else nullcontext():
        return command_line.run(*arguments, stdin=stdin)


def answer(*arguments: str, search: Path | None = None) -> Any:
    done = run(*arguments, "--json", search=search)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@pytest.mark.parametrize("command", COMMANDS)
def test_help_shows_an_example(command: str) -> None:
    done = run(command, "--help")
    assert done.returncode == 0
    assert f"Example: bloomref {command}" in done.stdout


@pytest.mark.parametrize("command", bloomref_cli.COMMANDS)
def test_help_shows_whole_names_on_a_narrow_terminal(command: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    shown = run(command, "--help").stdout
    parameters = typer.main.get_command(bloomref_cli.app).commands[command].params  # type: ignore[attr-defined]
    names = [name for parameter in parameters for name in (*parameter.opts, *parameter.secondary_opts)]
    assert [name for name in names if name.startswith("-") and name not in shown] == []


def test_version_and_command_list() -> None:
    import bloomref

    assert run("--version").stdout.strip() == f"bloomref {bloomref.__version__}"
    assert all(command in run("--help").stdout for command in COMMANDS)


def test_generate_prints_text_on_stdout_and_speed_on_stderr() -> None:
    done = run("generate", "Everyone has", "-n", "8")
    lm = BloomCausalLM.from_preset("bloom_tiny_udhr", backend="auto")
    expected = lm.generate("Everyone has", max_new_tokens=8)
    assert done.stdout == expected + "\n"
    assert "tokens/s" in done.stderr


def test_generate_json_takes_every_option() -> None:
    options = ["--temperature", "0.8", "--top-k", "20", "--top-p", "0.9", "--min-p", "0.01", "--seed", "3"]
    first, second = (answer("generate", "Everyone", "-n", "6", *options) for _ in range(2))
    assert first["continuation"] == second["continuation"]
    expected = {"max_new_tokens": 6, "temperature": 0.8, "top_k": 20, "top_p": 0.9, "min_p": 0.01, "seed": 3}
    assert first["options"] == expected
    beam = answer("generate", "Everyone", "-n", "6", "--num-beams", "2", "--no-repeat-ngram-size", "2")
    assert beam["continuation"]


def test_generate_counts_the_tokens_that_were_generated() -> None:
    """A continuation whose text has other tokens when it is tokenized again."""
    lm = BloomCausalLM.from_preset("bloom_tiny_udhr", backend="auto")
    options: dict[str, Any] = {"max_new_tokens": 12, "temperature": 9.0, "seed": 1}
    ids = lm.generate(lm.tokenizer("Everyone"), strip_prompt=True, **options)
    report = answer("generate", "Everyone", "-n", "12", "--temperature", "9", "--seed", "1")
    assert report["tokens"] == len(ids) != len(lm.tokenizer(report["continuation"]))


def test_generate_reads_standard_input() -> None:
    assert run("generate", "-", "-n", "2", stdin="Everyone has\n").stdout.startswith("Everyone has")


def test_score_is_the_librarys_score() -> None:
    got = answer("score", " right", "--context", "Everyone has the")
    lm = BloomCausalLM.from_preset("bloom_tiny_udhr", backend="auto")
    expected = lm.score(" right", context="Everyone has the")
    assert got["log_likelihood"] == pytest.approx(expected.log_likelihood)
    assert "perplexity" in run("score", "Everyone has").stdout


# --- backends ----------------------------------------------------------------------------------------------------


def chosen_by_auto() -> str:
    return registry.choose("auto", PRESETS["bloom_tiny_udhr"].config, dtype_policy()).name


@pytest.mark.slow
@pytest.mark.clause("BKD-7")
@pytest.mark.parametrize(
    "command", [("generate", "Everyone", "-n", "2"), ("score", "Everyone has")], ids=lambda c: c[0]
)
def test_the_backend_that_was_taken_is_said_on_stderr(command: tuple[str, ...]) -> None:
    for arguments, name in (((), chosen_by_auto()), (("--backend", "numpy"), "numpy"), (("--backend", "fake"), "fake")):
        done = run(*command, *arguments, search=PLUGINS)
        assert done.returncode == 0, done.stderr
        assert f"backend {name}" in done.stderr.splitlines()
        assert "backend" not in done.stdout
        assert answer(*command, *arguments, search=PLUGINS)["backend"] == name


def test_trace_runs_on_the_reference(tmp_path: Path) -> None:
    done = run("trace", "Everyone", "-o", str(tmp_path / "a.safetensors"), "--backend", "numpy")
    assert (done.returncode, "No such option" in done.stderr) == (2, True)


@pytest.mark.parametrize(
    ("backend", "code", "part"), [("nunpy", 2, "did you mean numpy?"), ("other", 3, "pip install other-backend")]
)
def test_a_backend_that_cannot_be_had_is_refused_before_the_model_is_looked_for(
    tmp_path: Path, backend: str, code: int, part: str
) -> None:
    info = tmp_path / "other_backend-1.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: other-backend\nVersion: 1\n", "utf-8")
    (info / "entry_points.txt").write_text("[bloomref.backends]\nother = no_such_package:backend\n", "utf-8")
    for command in (("score", "x", "--model", "./no/such/folder"), ("info", "./no/such/folder")):
        done = run(*command, "--backend", backend, search=tmp_path)
        assert (done.returncode, "Traceback" in done.stderr, done.stdout) == (code, False, "")
        assert part in done.stderr
    (row,) = (row for row in answer("backends", search=tmp_path) if row["backend"] == "other")
    assert (row["installed"], row["works"]) == (False, False)
    assert "pip install other-backend" in row["reason"]


def test_backends_lists_what_is_installed_what_works_and_why_not() -> None:
    rows = {row["backend"]: row for row in answer("backends", search=PLUGINS)}
    rest = [name for name in POLICIES if name != "float32"]
    assert {"numpy", "numba", "cupy", "fake"} <= set(rows)
    good = {"installed": True, "works": True, "reason": None, "install": None, "dtypes": ["float32", *rest]}
    assert rows["numpy"] == {"backend": "numpy"} | good
    assert rows["fake"] == {"backend": "fake"} | good
    text = run("backends", search=PLUGINS).stdout
    for name in ("numba", "cupy"):
        row = rows[name]
        assert row["works"] == (row["reason"] is None)
        if not row["installed"]:
            assert row["install"] == registry.INSTALL[name]
            assert row["install"] in row["reason"]
            assert row["install"] in text
    assert {line.split()[0] for line in text.splitlines()[1:]} == set(rows)


BROKEN = """
from bloomref.runtime.numpy_backend import NumpyBackend

class Backend(NumpyBackend):
    name = "broken"
    def prepare(self, params, config, policy):
        PREPARE

def backend():
    return Backend()
"""


@pytest.mark.clause("BKD-23")
@pytest.mark.parametrize(
    ("body", "reason"),
    [
        ("return None", "expected prepare to return a Prepared (BKD-1), got None"),
        ("return [][0]", "prepare raised IndexError: list index out of range (broken.py, line 7)"),
        ("return super().prepare(params.map(lambda w: 2 * w), config, policy)", "its hidden states differ from the r"),
    ],
)
def test_a_broken_backend_does_not_work_here(tmp_path: Path, body: str, reason: str) -> None:
    info = tmp_path / "broken-1.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: broken\nVersion: 1\n", "utf-8")
    (info / "entry_points.txt").write_text("[bloomref.backends]\nbroken = broken:backend\n", "utf-8")
    (tmp_path / "broken.py").write_text(BROKEN.replace("PREPARE", body), "utf-8")
    rows = {row["backend"]: row for row in answer("backends", search=tmp_path)}
    assert rows["numpy"]["works"]
    assert (rows["broken"]["installed"], rows["broken"]["works"], rows["broken"]["dtypes"]) == (True, False, [])
    assert reason in rows["broken"]["reason"]
    if body == "return None":
        done = run("generate", "Everyone", "-n", "2", "--backend", "broken", search=tmp_path)
        assert (done.returncode, done.stdout, "Traceback" in done.stderr) == (5, "", False)
        assert reason in done.stderr


class Compiling:
    def __init__(self) -> None:
        self.compiled: list[str] = []

    def is_compiled(self, policy: DTypePolicy) -> bool:
        return policy.name in self.compiled

    def compile(self, policy: DTypePolicy) -> None:
        self.compiled.append(policy.name)


@pytest.mark.parametrize(("person", "quiet"), [(True, False), (True, True), (False, False)])
def test_a_terminal_shows_once_that_kernels_are_compiled(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], person: bool, quiet: bool
) -> None:
    backend: Any = Compiling()
    monkeypatch.setattr("sys.stderr.isatty", lambda: person)
    for is_shown in (person and not quiet, False):
        compile_kernels(backend, dtype_policy(), quiet)
        assert backend.compiled == ["float32"]
        assert ("compiling kernels" in capsys.readouterr().err) == is_shown


def test_presets_lists_them_all() -> None:
    assert answer("presets") == BloomBackbone.presets
    assert "559,214,592" in run("presets").stdout


def test_info_needs_no_weights(tmp_path: Path) -> None:
    BloomBackbone.from_preset("bloom_tiny_udhr").save_to_preset(tmp_path)
    (tmp_path / "model.safetensors").unlink()
    report = answer("info", str(tmp_path))
    assert report["parameters"] == 1_593_216
    assert {row["dtype"] for row in report["memory"]} >= {"float32", "bfloat16"}
    assert all(row["total"] == row["weights"] + row["cache"] + row["working"] for row in report["memory"])
    assert "stored as float16" in run("info", "bloom_tiny_udhr").stdout


def test_info_tells_the_memory_of_every_backend_that_tells() -> None:
    def names(*arguments: str) -> set[str]:
        return {row["backend"] for row in answer("info", "bloom_tiny_udhr", *arguments, search=PLUGINS)["memory"]}

    assert "numpy" in names()
    assert "fake" not in names()
    assert names("--backend", "numpy") == {"numpy"}
    assert len(names("--backend", "auto")) == 1
    silent = run("info", "bloom_tiny_udhr", "--backend", "fake", search=PLUGINS)
    assert (silent.returncode, "no method `memory`" in silent.stderr) == (3, True)
    assert "docs/writing-a-backend.md" in silent.stderr


def test_trace_writes_what_the_library_traces(tmp_path: Path) -> None:
    from safetensors.numpy import load_file

    file = tmp_path / "trace.safetensors"
    report = answer("trace", "Everyone has", "-o", str(file), "--names", "layers.3.*")
    model = BloomBackbone.from_preset("bloom_tiny_udhr")
    expected = model.trace({"token_ids": [report["token_ids"]]}, "layers.3.*")
    written = load_file(file)
    assert set(written) == set(expected)
    for name, array in expected.items():
        np.testing.assert_array_equal(written[name], array)


def test_convert_there_and_back_keeps_every_bit(tmp_path: Path) -> None:
    pytest.importorskip("h5py")
    assert run("convert", "bloom_tiny_udhr", str(tmp_path / "keras"), "--to", "keras").returncode == 0
    assert run("convert", str(tmp_path / "keras"), str(tmp_path / "hf"), "--to", "hf").returncode == 0
    first = BloomBackbone.from_preset("bloom_tiny_udhr", dtype="auto").params
    again = BloomBackbone.from_preset(tmp_path / "hf", dtype="auto").params
    for (name, _, a), (_, _, b) in zip(first.named(), again.named(), strict=True):
        np.testing.assert_array_equal(a.view(np.uint16), b.view(np.uint16), err_msg=name)
    assert run("generate", "Everyone", "-n", "4", "-m", str(tmp_path / "hf")).returncode == 0


def test_download_of_the_embedded_preset_is_its_folder() -> None:
    folder = Path(answer("download", "bloom_tiny_udhr")["folder"])
    assert (folder / "config.json").exists()


@pytest.mark.parametrize(
    ("arguments", "code", "part"),
    [
        (("generate", "x", "--model", "bloom_560_multi"), 2, "bloom_560m_multi"),
        (("generate", "x", "--temperature", "-1"), 2, "temperature"),
        (("generate", "x", "--dtype", "int4"), 2, "dtype"),
        (("generate", "x", "--no-such-option"), 2, "No such option"),
        (("generate",), 2, "--input FILE"),
        (("trace", "x", "-o", "x.safetensors", "--names", "nothing"), 2, "names"),
        (("info", "./no/such/folder"), 2, "folder"),
    ],
)
def test_a_users_mistake_ends_in_a_sentence(arguments: tuple[str, ...], code: int, part: str) -> None:
    done = run(*arguments)
    assert done.returncode == code
    assert part in done.stderr
    assert "Traceback" not in done.stderr
    assert done.stdout == ""


def test_bad_weights_have_an_exit_code_of_their_own(tmp_path: Path) -> None:
    BloomBackbone.from_preset("bloom_tiny_udhr").save_to_preset(tmp_path)
    (tmp_path / "model.safetensors").write_bytes(b"not a checkpoint")
    done = run("generate", "x", "-m", str(tmp_path))
    assert (done.returncode, "Traceback" in done.stderr) == (4, False)


def test_a_reader_that_leaves_is_no_error() -> None:
    done = subprocess.run(
        f"{sys.executable} -m bloomref presets | head -1", shell=True, capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stderr) == (0, "")


# --- adapters ----------------------------------------------------------------------------------------------------


def adapter(tmp_path: Path) -> Path:
    """An adapter of the embedded preset, in PEFT's form, with nonzero factors."""
    lm = BloomCausalLM.from_preset("bloom_tiny_udhr")
    lm.add_adapter({"r": 2})
    rng = np.random.default_rng(1)
    lm.assign_variables({name: 0.1 * rng.standard_normal(x.shape) for name, x in lm.trainable_variables().items()})
    lm.save_adapter(tmp_path / "adapter")
    return tmp_path / "adapter"


def test_generate_and_score_with_an_adapter(tmp_path: Path) -> None:
    path = adapter(tmp_path)
    lm = BloomCausalLM.from_preset("bloom_tiny_udhr")
    plain = lm.score("Everyone has").log_likelihood
    lm.load_adapter(path)
    said = answer("generate", "Everyone has", "-n", "6", "--adapter", str(path), "--backend", "numpy")
    assert said["continuation"] == lm.generate("Everyone has", max_new_tokens=6, strip_prompt=True)
    scored = answer("score", "Everyone has", "--adapter", str(path), "--backend", "numpy")
    assert scored["log_likelihood"] == pytest.approx(lm.score("Everyone has").log_likelihood)
    assert abs(scored["log_likelihood"] - plain) > 1e-3


def test_info_and_convert_of_an_adapter(tmp_path: Path) -> None:
    pytest.importorskip("h5py")
    path, target = adapter(tmp_path), tmp_path / "adapter.lora.h5"
    config = PRESETS["bloom_tiny_udhr"].config
    info = answer("info", str(path))
    assert info["parameters"] == config.num_layers * 2 * 4 * config.hidden_dim
    assert info["modules"] == ["query_key_value"]
    refused = run("convert", str(path), str(target), "--to", "keras", "--base", "bloom_tiny_udhr")
    assert refused.returncode == 2
    assert "expand" in refused.stderr
    written = answer("convert", str(path), str(target), "--to", "keras", "--base", "bloom_tiny_udhr", "--expand")
    width, heads = config.hidden_dim, config.num_heads
    rank = config.head_dim
    assert written["parameters"] == config.num_layers * 3 * (width * heads * rank + rank * config.head_dim)
    assert answer("info", str(target))["layers"] == 3 * config.num_layers
    lm = BloomCausalLM.from_preset("bloom_tiny_udhr")
    lm.load_adapter(path, "peft")
    expected = lm({"token_ids": [[5, 6, 7]]})
    lm.load_adapter(target, "keras")
    np.testing.assert_allclose(lm({"token_ids": [[5, 6, 7]]}), expected, rtol=1e-3, atol=1e-3)
