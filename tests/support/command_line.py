"""The command line in this process: arguments, output and exit code of `python -m bloomref`, ten times faster."""

import io
import sys
from contextlib import redirect_stderr, redirect_stdout
from subprocess import CompletedProcess
from unittest import mock

from bloomref.cli.app import run as run_here


def run(*arguments: str, stdin: str = "") -> "CompletedProcess[str]":
    """Run one command line. What it prints is returned, not shown."""
    streams = [io.TextIOWrapper(io.BytesIO(text), encoding="utf-8") for text in (stdin.encode(), b"", b"")]
    with mock.patch.object(sys, "stdin", streams[0]), redirect_stdout(streams[1]), redirect_stderr(streams[2]):
        code = run_here(list(arguments))
    texts = [_written(stream) for stream in streams[1:]]
    return CompletedProcess(arguments, code, *texts)


def _written(stream: io.TextIOWrapper) -> str:
    stream.flush()
    stream.seek(0)
    return stream.read()
