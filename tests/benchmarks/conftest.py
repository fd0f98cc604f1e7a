"""Fixtures of the tests of `benchmarks.gpu`, which need the emulated backend."""

from emulated_fixtures import emulated_backend, emulator

__all__ = ["emulated_backend", "emulator"]
