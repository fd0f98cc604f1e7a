"""Fixtures of the tests of the CuPy backend."""

from emulated_fixtures import device, emulated_backend, emulator

__all__ = ["device", "emulated_backend", "emulator"]
