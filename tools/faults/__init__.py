"""Faults: damaged files, hostile arguments, and what the library answers. `python -m tools.faults --help`."""
