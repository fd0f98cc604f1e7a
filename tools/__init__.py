"""Programs for the maintainers of bloomref: `python -m tools.NAME --help`.

They need a checkout of the repository, and are not part of the wheel.
"""
