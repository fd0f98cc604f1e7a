"""The command line in this process: arguments, output and exit code of `python -m bloomref`, ten times faster."""

import io
import sys
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from functools import cache
from importlib import invalidate_caches
from pathlib import Path
from subprocess import CompletedProcess
from unittest import mock

from bloomref.cli.app import run as run_here
from bloomref.runtime import registry


def run(*arguments: str, stdin: str = "") -> "CompletedProcess[str]":
    """Run one command line. What it prints is returned, not shown."""
    streams = [io.TextIOWrapper(io.BytesIO(text), encoding="utf-8") for text in (stdin.encode(), b"", b"")]
    with mock.patch.object(sys, "stdin", streams[0]), redirect_stdout(streams[1]), redirect_stderr(streams[2]):
        code = run_here(list(arguments))
    texts = [_written(stream) for stream in streams[1:]]
    return CompletedProcess(arguments, code, *texts)


@contextmanager
def packages_of(folder: Path) -> Iterator[None]:
    """Let the packages of a folder be installed, backends among them."""
    before = set(sys.modules)
    loading = cache(registry.load.__wrapped__)
    with mock.patch.object(sys, "path", [str(folder), *sys.path]), mock.patch.object(registry, "load", loading):
        invalidate_caches()
        yield
    for name in set(sys.modules) - before:
        if (getattr(sys.modules[name], "__file__", None) or "").startswith(str(folder)):
            del sys.modules[name]


def _written(stream: io.TextIOWrapper) -> str:
    stream.flush()
    stream.seek(0)
    return stream.read()
