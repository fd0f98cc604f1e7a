"""Measurements, each against peers in the same run. `python -m benchmarks.NAME --help` says what it measures."""
