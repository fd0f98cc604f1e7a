"""A program that breaks down at its start: one sentence and exit code 1 in `conform`, `vectors` and `diff`."""

import shlex
import sys

import pytest

from bloomref.cli.app import run as cli

SOURCE = """
import json, sys, time
mode = sys.argv[1]
for line in sys.stdin:
    request, reply = json.loads(line)["request"], {}
    if request == "hello":
        reply = {"protocol": 1, "name": "broken", "capabilities": {"masks": ["rigth"]} if mode == "word" else {}}
    elif mode == "print":
        print("loaded", flush=True)
    elif mode == "die":
        sys.exit(3)
    elif mode == "hang":
        time.sleep(30)
    elif mode == "flood":
        sys.stdout.write("x" * 2**26)
    elif mode == "nested":
        print('{"error": ' * 900 + "1" + "}" * 900, flush=True)
    elif mode == "digits":
        print('{"error": ' + "9" * 5000 + "}", flush=True)
    elif mode == "boom":
        reply = {"error": {"kind": "Bug", "message": "boom"}}
    print(json.dumps(reply), flush=True)
"""
MODES = {
    "word": "'rigth'; did you mean right? (PRG-3)",
    "print": "one JSON object a line and nothing else (PRG-1), got loaded",
    "die": "it died (status 3) during the request 'load'",
    "flood": "one JSON object a line and nothing else (PRG-1), got xxx",
    "nested": "the program answered: ",
    "digits": "one JSON object a line and nothing else (PRG-1), got {",
    "hang": "no reply within 0.5 s (--timeout) during the request 'load'",
    "boom": "the program answered: boom (kind Bug)",
}


@pytest.fixture(scope="module")
def broken(tmp_path_factory):
    path = tmp_path_factory.mktemp("broken") / "broken.py"
    path.write_text(SOURCE)
    return lambda mode: shlex.join([sys.executable, "-S", str(path), mode])


@pytest.mark.parametrize(
    "mode",
    [
        "word",
        "print",
        *(pytest.param(mode, marks=pytest.mark.slow) for mode in ("die", "hang", "boom", "flood", "nested", "digits")),
    ],
)
@pytest.mark.parametrize("command", ["conform", "vectors", "diff"])
@pytest.mark.clause("PRG-12")
def test_a_broken_start_is_one_sentence(broken, mode, command, capfd):
    target = ["diff", f"program:{broken(mode)}"] if command == "diff" else [command, "--program", broken(mode)]
    timeout = ["--timeout", "0.5" if mode == "hang" else "30"]
    assert cli([*target, *timeout]) == 1
    streams = capfd.readouterr()
    text = streams.out + streams.err
    assert text.count(MODES[mode]) == 1
    assert "Traceback" not in text
    assert "[Errno" not in text


@pytest.mark.parametrize(
    ("arguments", "hint"),
    [
        (["vectors", "--backend", "node bloom.js"], "--program 'node bloom.js'"),
        (["conform", "--backend", "node bloom.js"], "--program 'node bloom.js'"),
        (["vectors", "--program", "./there-is-none"], "--implementation MODULE:NAME"),
        (["conform", "--program", "numba"], "--backend numba"),
        (["vectors", "--implementation", "numpy"], "--backend numpy"),
        (["vectors", "--backend", "numpy", "--keep", "here"], "name it with --program"),
    ],
)
def test_a_wrong_option_proposes_the_right_one(arguments, hint, capsys):
    assert cli(arguments) == 2
    assert hint in capsys.readouterr().err


def test_diff_keeps_the_requests(broken, tmp_path, capsys):
    assert cli(["diff", f"program:{broken('boom')}", "--keep", str(tmp_path)]) == 1
    assert f"repeat it with: sh {tmp_path / 'replay.sh'} 0002-load" in capsys.readouterr().err
    assert (tmp_path / "0002-load/requests.jsonl").read_text().count("\n") == 2


def test_a_misspelled_dtype_of_vectors_is_refused(capsys):
    assert cli(["vectors", "--backend", "numpy", "--dtype", "flaot32"]) == 2
    assert "dtype: expected one of float64, float32" in capsys.readouterr().err


def test_a_size_of_a_random_model_is_named_by_its_option(capsys):
    assert cli(["diff", "numpy", "oracle", "--heads", "2", "--head-dim", "2147483648"]) == 2
    assert "head_dim: expected an integer <= 268435455" in capsys.readouterr().err
