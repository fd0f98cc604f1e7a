"""Faults at the edge of the command line: each is one sentence and a documented exit code, never a traceback."""

import errno
import io
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import typer
from hypothesis import given, settings
from hypothesis import strategies as st

from bloomref import BloomBackbone, BloomConfig, GenerationOptions
from bloomref.cli import app as application
from bloomref.cli import info, open_closed_streams, shared
from bloomref.cli.app import EXIT_CODES, run
from bloomref.cli.system_errors import sentence
from bloomref.config import MAX_LAYERS, MAX_SIZE
from bloomref.errors import BadWeights, InvalidInput, Unsupported, describe, invalid, visible
from bloomref.formats.files import MAX_CONFIG_BYTES
from bloomref.machine_memory import check_memory, machine_bytes
from bloomref.params import count_params, keys

SIZES = {"vocab_size": 8, "hidden_size": 4, "n_layer": 1, "n_head": 1}


def raising(monkeypatch: pytest.MonkeyPatch, error: BaseException) -> int:
    """Exit code of a command that ends with the error."""

    def command(*_: Any) -> None:
        raise error

    monkeypatch.setattr(application, "app", command)
    return run([])


def system(number: int, name: object = "some/path") -> OSError:
    return OSError(number, os.strerror(number), name)


def memory_error() -> MemoryError:
    with pytest.raises(MemoryError) as caught:
        np.empty(2**60, np.uint8)
    return caught.value


@pytest.mark.parametrize(
    ("error", "code", "text"),
    [
        (system(errno.EACCES), 2, "some/path: Permission denied"),
        (system(errno.ENAMETOOLONG, "a" * 5000), 2, "File name too long"),
        (system(errno.EIO), 3, "Input/output error"),
        (system(errno.ENOSPC), 3, "No space left on device"),
        (system(errno.ENOENT, "a\x1b[2J\nb"), 2, r"a\x1b[2J\nb"),
        (OSError("something"), 3, "something"),
        (MemoryError(), 3, "memory"),
        (memory_error(), 3, "Unable to allocate"),
        (OverflowError("Python int too large to convert to C long"), 2, "too large"),
        (ValueError("Maximum allowed dimension exceeded"), 2, "too large"),
        (RuntimeError("Could not determine home directory."), 2, "home of a user"),
        (RecursionError("maximum recursion depth exceeded"), 2, "nesting"),
        (UnicodeDecodeError("utf-8", b"ab\xff", 2, 3, "invalid start byte"), 2, "0xff at 2"),
        (UnicodeEncodeError("utf-8", "a\udcff", 1, 2, "surrogates not allowed"), 2, "lone surrogate"),
        (UnicodeEncodeError("latin-1", "a意", 1, 2, "ordinal"), 3, "PYTHONIOENCODING"),
        (UnicodeError("label too long"), 2, "label too long"),
        (InvalidInput("a\nb"), 2, r"a\nb"),
        (KeyboardInterrupt(), 130, "interrupted"),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, BaseException) else "",
)
def test_an_error_is_one_sentence(
    error: BaseException, code: int, text: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(application, "_discard_output", lambda: None)
        assert raising(patch, error) == code
    printed = capsys.readouterr().err
    assert text in printed
    assert printed.startswith("bloomref: ")
    assert printed.count("\n") == 1
    assert len(printed) < 700
    assert code in {1, *EXIT_CODES.values()}


@pytest.mark.parametrize("error", [ValueError("a bug"), TypeError("a bug"), ZeroDivisionError()])
def test_a_bug_stays_a_traceback(error: Exception, monkeypatch: pytest.MonkeyPatch) -> None:
    assert sentence(error) is None
    with pytest.raises(type(error)):
        raising(monkeypatch, error)


def test_a_pipe_that_is_closed_ends_quietly(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> None:
    reader, writer = os.pipe()
    os.close(reader)
    with os.fdopen(writer, "w") as broken, monkeypatch.context() as patch:
        patch.setattr(sys, "stdout", broken)
        assert run(["presets", "--json"]) == 0
    assert capfd.readouterr().err == ""


def test_a_full_disk_is_a_sentence(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> None:
    if not Path("/dev/full").exists():
        pytest.skip("needs /dev/full")
    with open("/dev/full", "w") as full, monkeypatch.context() as patch:
        patch.setattr(sys, "stdout", full)
        assert run(["presets", "--json"]) == 3
    assert "No space left" in capfd.readouterr().err


def test_closed_streams_are_opened() -> None:
    script = (
        "import os, sys\nfor n in (0, 1, 2): os.close(n)\nsys.stdin = sys.stdout = sys.stderr = None\n"
        "from bloomref.cli import open_closed_streams as f\nf()\nprint('x'); print('y', file=sys.stderr)\n"
        "ok = os.fstat(1).st_rdev == os.stat('/dev/null').st_rdev\nos._exit(0 if ok and sys.stdin.read() == '' else 1)"
    )
    assert subprocess.run([sys.executable, "-c", script], check=False).returncode == 0
    streams = (sys.stdin, sys.stdout, sys.stderr)
    open_closed_streams()
    assert streams == (sys.stdin, sys.stdout, sys.stderr)


def test_ctrl_c_during_the_imports_is_no_traceback() -> None:
    script = (
        "import os, signal, sys\nclass Finder:\n    def find_spec(self, name, *_):\n"
        "        if name == 'bloomref.cli.app': os.kill(os.getpid(), signal.SIGINT)\n"
        "signal.signal(signal.SIGINT, signal.default_int_handler)\n"
        "sys.meta_path.insert(0, Finder())\nfrom bloomref.cli import main\nmain()"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (130, "bloomref: interrupted\n")


# --- sizes -------------------------------------------------------------------------------------


@pytest.mark.clause("CFG-12")
@pytest.mark.parametrize("name", SIZES)
@pytest.mark.parametrize("size", [10**9, 2**31, 2**40, 2**64, 10**400])
def test_sizes_of_a_config_are_not_believed(
    name: str, size: int, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "config.json").write_text(json.dumps(SIZES | {name: size}))
    code = run(["info", str(tmp_path)])
    printed = capsys.readouterr()
    limit = {"n_layer": MAX_LAYERS, "hidden_size": MAX_SIZE // 4, "n_head": 4}.get(name, MAX_SIZE)  # F is 4 D
    assert (code == 0) is (size <= limit), printed.err
    assert code in (0, 4)
    assert len(printed.err) < 500


@pytest.mark.clause("CFG-12")
def test_the_largest_config_is_counted_at_once() -> None:
    size = 2**30
    largest = BloomConfig(
        vocabulary_size=size, num_layers=MAX_LAYERS, num_heads=1, hidden_dim=size, intermediate_dim=size
    )
    assert count_params(largest) > 2**64
    small = BloomConfig(vocabulary_size=9, num_layers=3, num_heads=2, hidden_dim=8, intermediate_dim=5)
    for config in (small, small.replace(tie_word_embeddings=False), small.replace(num_layers=0)):
        assert count_params(config) == sum(int(np.prod(weight.shape(config))) for _, weight in keys(config))
    with pytest.raises(Unsupported, match="memory of this machine"):
        BloomBackbone.from_config({"dtype": "float32"} | {n: getattr(largest, n) for n in info_sizes()})


def info_sizes() -> tuple[str, ...]:
    return ("vocabulary_size", "num_layers", "num_heads", "hidden_dim", "intermediate_dim")


@pytest.mark.parametrize(
    "options",
    [
        {"max_new_tokens": 2**31},
        {"max_new_tokens": 10**400},
        {"max_length": 2**62},
        {"num_beams": 2**31},
        {"num_return_sequences": 2**40, "temperature": 1.0},
        {"best_of": 2**40, "temperature": 1.0},
    ],
    ids=str,
)
def test_a_generation_that_cannot_fit_is_refused_with_the_number(options: dict[str, Any], lm: Any) -> None:
    GenerationOptions(**options)
    for call in (lm.generate, lambda *a, **k: list(lm.stream(*a, **k))):
        with pytest.raises((Unsupported, InvalidInput), match=r"the cache: .*GB|one result|num_return|best_of"):
            call("Everyone", **options)


@pytest.fixture(scope="module")
def lm() -> Any:
    from small_models import text_lm

    return text_lm()


def test_what_fits_is_not_refused() -> None:
    check_memory("x", machine_bytes())
    assert machine_bytes() > 10**8
    with pytest.raises(Unsupported, match=r"x: expected at most .*, got more than 10\^15 GB; less"):
        check_memory("x", 10**400, "less")


def test_a_config_of_many_megabytes_is_not_parsed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name in ("config.json", "adapter_config.json"):
        folder = tmp_path / name
        folder.mkdir()
        (folder / name).write_bytes(b'{"a": [' + b"0," * MAX_CONFIG_BYTES + b"0]}")
        assert run(["info", str(folder)]) == 4
        assert "at most" in capsys.readouterr().err


# --- names from files --------------------------------------------------------------------------


@given(st.text(max_size=200), st.integers(10, 100))
@settings(max_examples=30)
def test_a_shown_text_is_one_printable_line(text: str, limit: int) -> None:
    shown = visible(text, limit)
    assert len(shown) <= limit
    assert shown.isprintable()
    if text.isprintable() and len(text) <= limit:
        assert shown == text


@given(st.text(), st.text(), st.one_of(st.text(), st.binary(), st.integers(), st.lists(st.text())), st.text())
@settings(max_examples=30)
def test_every_message_is_one_printable_line(name: str, expected: str, got: object, hint: str) -> None:
    for error in (invalid(name, expected, got, hint), BadWeights(name + hint), Unsupported(describe(name, "", got))):
        assert str(error).isprintable()
        assert len(str(error)) <= 1000


def test_a_value_that_cannot_be_shown() -> None:
    class Liar:
        def __repr__(self) -> str:
            raise RuntimeError

    assert describe("x", "y", Liar()) == "x: expected y, got a value of type Liar"
    assert describe("x", "y", 10**5000) == "x: expected y, got a value of type int"


@pytest.mark.parametrize("name", ["\x1b]52;c;aGk=\x07", "a\nbloomref: all is well", "x" * 100_000, "\u202eabc"])
def test_info_shows_names_and_values_of_files_escaped(
    name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "config.json").write_text(json.dumps({**SIZES, name: name}))
    assert run(["info", str(tmp_path)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert all(line.isprintable() and len(line) < 300 for line in lines)


def test_a_path_with_markup_is_shown_as_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    monkeypatch.setattr(sys, "stderr", Terminal())
    with shared.working("loading /models/[/x]/[bold]y\x1b[2J"):
        pass
    assert "[/x]/[bold]y" in sys.stderr.getvalue()  # type: ignore[attr-defined]
    assert "\x1b[2J" not in sys.stderr.getvalue()  # type: ignore[attr-defined]


def test_json_has_no_numbers_that_json_does_not_have(capsys: pytest.CaptureFixture[str]) -> None:
    shared.print_json({"a": [float("nan"), 1.5, (float("inf"),)], "b": {"c": float("-inf")}})
    assert json.loads(capsys.readouterr().out, parse_constant=lambda _: pytest.fail("NaN")) == {
        "a": [None, 1.5, [None]],
        "b": {"c": None},
    }


def test_the_exit_codes_are_in_the_help() -> None:
    assert isinstance(application.app, typer.Typer)
    assert all(str(code) in application.EPILOG for code in EXIT_CODES.values())
    assert info.command.__doc__
