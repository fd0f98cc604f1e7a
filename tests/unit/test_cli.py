"""The command line, run as its users run it: in a process of its own, judged by output and exit code."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from bloomref import BloomBackbone, BloomCausalLM

COMMANDS = ("generate", "score", "presets", "info", "trace", "download", "convert")


def run(*arguments: str, stdin: str = "") -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "bloomref", *arguments]
    return subprocess.run(command, input=stdin, capture_output=True, text=True, timeout=120, check=False)


def answer(*arguments: str) -> dict:  # type: ignore[type-arg]
    done = run(*arguments, "--json")
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@pytest.mark.parametrize("command", COMMANDS)
def test_help_shows_an_example(command: str) -> None:
    done = run(command, "--help")
    assert done.returncode == 0
    assert f"Example: bloomref {command}" in done.stdout


def test_version_and_command_list() -> None:
    import bloomref

    assert run("--version").stdout.strip() == f"bloomref {bloomref.__version__}"
    assert all(command in run("--help").stdout for command in COMMANDS)


def test_generate_prints_text_on_stdout_and_speed_on_stderr() -> None:
    done = run("generate", "Everyone has", "-n", "8")
    expected = BloomCausalLM.from_preset("bloom_tiny_udhr").generate("Everyone has", max_new_tokens=8)
    assert done.stdout == expected + "\n"
    assert "tokens/s" in done.stderr


def test_generate_json_takes_every_option() -> None:
    options = ["--temperature", "0.8", "--top-k", "20", "--top-p", "0.9", "--min-p", "0.01", "--seed", "3"]
    first, second = (answer("generate", "Everyone", "-n", "6", *options) for _ in range(2))
    assert first["continuation"] == second["continuation"]
    assert first["options"] == {"temperature": 0.8, "top_k": 20, "top_p": 0.9, "min_p": 0.01, "seed": 3}
    beam = answer("generate", "Everyone", "-n", "6", "--num-beams", "2", "--no-repeat-ngram-size", "2")
    assert beam["continuation"]


def test_generate_reads_standard_input() -> None:
    assert run("generate", "-", "-n", "2", stdin="Everyone has\n").stdout.startswith("Everyone has")


def test_score_is_the_librarys_score() -> None:
    got = answer("score", " right", "--context", "Everyone has the")
    expected = BloomCausalLM.from_preset("bloom_tiny_udhr").score(" right", context="Everyone has the")
    assert got["log_likelihood"] == pytest.approx(expected.log_likelihood)
    assert "perplexity" in run("score", "Everyone").stdout


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
        (("generate",), 2, "Missing argument"),
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
